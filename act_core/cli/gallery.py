"""``act-steering gallery``"""

from __future__ import annotations

import argparse
from pathlib import Path

from .arguments import Commands, add_command


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands, "gallery", _run, "Write a page that shows all maps in a folder.", "my_maps --out gallery.html"
    )
    parser.add_argument("folder", type=Path, help="the folder that has the maps, also in subfolders")
    parser.add_argument(
        "--out",
        type=Path,
        help="the page, an .html file with all pictures inside (gallery.html in the folder, where names of files are "
        "links). A picture NAME.sweep.png or NAME.sweep.jpg beside NAME.safetensors is shown with that map",
    )


def _run(args: argparse.Namespace) -> None:
    from ..gallery import write_gallery

    out = args.out or args.folder / "gallery.html"
    found = write_gallery(args.folder, out)
    for listed in found:
        if listed.header is None:
            print(f"{listed.name} was left out: {listed.problem}")
    count = sum(listed.header is not None for listed in found)
    print(f"Saved {out} with {count} map{'s' * (count != 1)}.")
