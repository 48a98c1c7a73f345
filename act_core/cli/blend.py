"""``act-steering blend``"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import MapError
from .arguments import Commands, add_command, add_new_file, new_file, number, words


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "blend",
        _run,
        "Blend several maps of one model into one, each with a weight.",
        "ink.safetensors night.safetensors --weight 0.7 --weight 0.3 --out ink_night.safetensors",
    )
    parser.add_argument("maps", type=Path, nargs="+", metavar="MAP", help="two or more maps, .safetensors files")
    parser.add_argument(
        "--weight", type=number, action="append", help="of each map, in the same order (equal ones that add up to 1)"
    )
    parser.add_argument("--title", type=words, help="title of the blend (those of its maps)")
    add_new_file(parser)


def _run(args: argparse.Namespace) -> None:
    out = new_file(args)
    weights: list[float] = args.weight or [1 / len(args.maps)] * len(args.maps)
    if len(weights) != len(args.maps):
        raise MapError(f"There are {len(args.maps)} maps, but {len(weights)} weights; give --weight once for each map.")
    from ..blending import blend
    from ..mapfile import load_map, save_map

    blended = blend([(load_map(path), weight) for path, weight in zip(args.maps, weights, strict=True)])
    save_map(blended, out, title=args.title)
    print(f"Saved {out}: {len(blended)} sites.")
