"""``act-steering export-control-vector``"""

from __future__ import annotations

import argparse
from pathlib import Path

from .arguments import Commands, add_command, add_new_file, new_file


def add(commands: Commands) -> None:
    """Add the command."""
    example = "happy.safetensors --out happy.gguf"
    purpose = "Save a map of estimator mean and sites blocks as a GGUF control vector, for llama.cpp and repeng."
    parser = add_command(commands, "export-control-vector", _run, purpose, example)
    parser.add_argument("map", type=Path, help="the map, a .safetensors file")
    add_new_file(parser, "control vector", ".gguf")


def _run(args: argparse.Namespace) -> None:
    from ..interop.control_vectors import export_control_vector
    from ..mapfile import load_map

    out = new_file(args)
    notes = export_control_vector(load_map(args.map), out)
    print(f"{out}: llama.cpp adds it at strength 1 with '--control-vector {out.name}'.")
    for note in notes:
        print(note)
