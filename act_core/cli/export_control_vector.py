"""``act-steering export-control-vector``"""

from __future__ import annotations

import argparse
from pathlib import Path

from .arguments import Commands, add_command, check_writable


def add(commands: Commands) -> None:
    """Add the command."""
    example = "happy.safetensors --output happy.gguf"
    purpose = "Save a map of estimator mean and sites blocks as a GGUF control vector, for llama.cpp and repeng."
    parser = add_command(commands, "export-control-vector", _run, purpose, example)
    parser.add_argument("map", type=Path, help="the map, a .safetensors file")
    parser.add_argument("--output", "--out", type=Path, required=True, help="the control vector to write, a .gguf file")


def _run(args: argparse.Namespace) -> None:
    from ..interop.control_vectors import export_control_vector
    from ..mapfile import load_map

    check_writable(args.output)
    notes = export_control_vector(load_map(args.map), args.output)
    print(f"{args.output}: llama.cpp adds it at strength 1 with '--control-vector {args.output.name}'.")
    for note in notes:
        print(note)
