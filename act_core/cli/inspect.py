"""``act-steering inspect``"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .arguments import Commands, add_command, add_device, add_permission, add_size
from .load import any_model, is_pipeline, map_of, print_remarks


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "inspect", _run, "Show what is in a map.", "cheerful.safetensors")
    parser.add_argument("map", type=Path, help="the map, a .safetensors file")
    parser.add_argument("--model", help="also try the map on this model: a folder, a GGUF file, or 'default'")
    add_permission(parser)
    add_device(parser)
    add_size(parser)


def _run(args: argparse.Namespace) -> None:
    from ..summary import describe

    act_map = map_of(args)
    print(describe(act_map))
    if not args.model:
        return
    model = any_model(args)
    shortest: dict[str, Any] = {"steps": 1} if is_pipeline(args.model) else {"max_new_tokens": 1}
    with model.steer(act_map) as steering:
        model.generate(["The"], **shortest)
    print(f"\nOn {args.model}: {steering.coverage}.")
    print_remarks(steering)
