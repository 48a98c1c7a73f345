"""``act-steering check-prompts``"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import MapError
from .arguments import Commands, add_command


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "check-prompts",
        _run,
        "Check prompt sets or lists of prompts before a fit.",
        "prompt_sets/look_cinematic.txt",
    )
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="a prompt set, or one prompt per line")


def _run(args: argparse.Namespace) -> None:
    from ..prompt_checks import check_prompt_file

    unusable: list[str] = []
    for path in args.files:
        try:
            print(check_prompt_file(path))
        except MapError as error:
            unusable.append(str(error))
    if unusable:
        others = f" {len(unusable) - 1} more of the files cannot be used, either." if len(unusable) > 1 else ""
        raise MapError(unusable[0] + others)
