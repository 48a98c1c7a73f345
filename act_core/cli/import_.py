"""``act-steering import``"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from .arguments import Commands, add_command, add_new_file, new_file, words

# The arguments of `--layer`: one number, or a range of them.
_LAYERS = re.compile(r"([0-9]{1,4})(?:-([0-9]{1,4}))?")


def add(commands: Commands) -> None:
    """Add the command."""
    example = "happy.gguf --architecture qwen2 --out happy.safetensors"
    purpose = "Make a map of another tool's file: a control vector, a steering vector, or hooks of apple/ml-act."
    parser = add_command(commands, "import", _run, purpose, example)
    parser.add_argument("source", type=Path, help="a .gguf, .pt or .npy file, or a folder of .statedict files")
    add_new_file(parser)
    parser.add_argument("--architecture", help="kind of language model it is for, such as qwen2 (that of its hint)")
    parser.add_argument("--model", type=Path, help="folder or GGUF file of that model, to compare its size with")
    parser.add_argument(
        "--layer",
        type=_layers,
        action="append",
        default=[],
        metavar="N",
        help="block that a vector is for, counted from 0, or a range such as 4-9; can be given several times",
    )
    parser.add_argument(
        "--layer-offset", type=int, default=0, help="added to each layer number; -1 for files that count from 1"
    )
    parser.add_argument(
        "--estimator", choices=("mean", "gaussian"), help="of hooks of apple/ml-act that do not say which they are"
    )
    parser.add_argument("--title", type=words, help="title of the map (that of the file)")


def _layers(text: str) -> list[int]:
    found = _LAYERS.fullmatch(text)
    if not found or int(found[2] or found[1]) < int(found[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is not a layer, such as 4, or a range, such as 4-9")
    return list(range(int(found[1]), int(found[2] or found[1]) + 1))


def _run(args: argparse.Namespace) -> None:
    from ..interop.importing import import_map
    from ..mapfile import save_map

    out = new_file(args)
    act_map = import_map(
        args.source,
        architecture=args.architecture,
        model=args.model,
        layers=[number for layers in args.layer for number in layers],
        layer_offset=args.layer_offset,
        estimator=args.estimator,
    )
    save_map(act_map, out, title=args.title)
    print(f"{out}: {act_map}")
    for note in act_map.record.notes:
        print(note)
