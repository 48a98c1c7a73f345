"""``act-steering prune``"""

from __future__ import annotations

import argparse
from pathlib import Path

from .arguments import Commands, add_command, add_new_file, new_file, number


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "prune",
        _run,
        "Keep only the sites or channels of a map that carry most of its effect.",
        "ink.safetensors --share 0.9 --out small_ink.safetensors",
    )
    parser.add_argument("map", type=Path, help="the map, a .safetensors file")
    parser.add_argument("--share", type=number, default=0.9, help="of the effect, above 0 and up to 1 (%(default)s)")
    parser.add_argument(
        "--by", default="sites", help="drop whole 'sites', which makes the file smaller, or 'channels' (%(default)s)"
    )
    add_new_file(parser)


def _run(args: argparse.Namespace) -> None:
    out = new_file(args)
    from ..mapfile import load_map, save_map

    act_map = load_map(args.map)
    pruned = act_map.pruned(args.share, args.by)
    save_map(pruned, out)
    sizes = (path.stat().st_size / 1000 for path in (out, args.map))
    print(f"Saved {out}: {len(pruned)} of {len(act_map)} sites, {next(sizes):.1f} of {next(sizes):.1f} kB.")
