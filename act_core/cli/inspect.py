"""``act-steering inspect``"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..errors import MapError
from .arguments import Commands, add_command, add_device, add_permission, add_size
from .load import any_model, is_pipeline, map_of, print_remarks


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands, "inspect", _run, "Show what is in a map, or in a folder of maps.", "cheerful.safetensors"
    )
    parser.add_argument("map", type=Path, nargs="?", help="the map, a .safetensors file")
    parser.add_argument("--folder", type=Path, help="list all maps in this folder and its subfolders instead")
    parser.add_argument(
        "--sidecars",
        action="store_true",
        help="also write the cover and the metadata of the map beside it, for managers of models",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace files that --sidecars would write")
    parser.add_argument("--model", help="also try the map on this model: a folder, a GGUF file, or 'default'")
    add_permission(parser)
    add_device(parser)
    add_size(parser)


def _run(args: argparse.Namespace) -> None:
    if args.folder:
        if args.map or args.model or args.sidecars:
            raise MapError("--folder lists a whole folder; leave out the map, --model and --sidecars.")
        from ..mapfile import list_maps, table_of

        print(table_of(list_maps(args.folder)))
        return
    if args.map is None:
        raise MapError("Name a map, or a folder with --folder.")
    from ..mapfile import write_sidecars
    from ..summary import describe

    act_map = map_of(args)
    print(describe(act_map))
    if args.sidecars:
        for path in write_sidecars(args.map, overwrite=args.overwrite):
            print(f"Saved {path}.")
    if not args.model:
        return
    model = any_model(args)
    shortest: dict[str, Any] = {"steps": 1} if is_pipeline(args.model) else {"max_new_tokens": 1}
    with model.steer(act_map) as steering:
        model.generate(["The"], **shortest)
    print(f"\nOn {args.model}: {steering.coverage}.")
    print_remarks(steering)
