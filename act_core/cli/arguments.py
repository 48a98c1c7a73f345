"""Helpers that commands share: parsing and checking arguments, and printing commands that can be pasted."""

from __future__ import annotations

import argparse
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, get_args

from ..errors import MapError
from ..settings import MAX_SEED, Dtype, as_integer

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[Any]  # pyright: ignore[reportPrivateUsage]
else:
    Commands = Any


class Parser(argparse.ArgumentParser):
    """Reports an error in one sentence, without the usage."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        # argparse would read -1e-1 and -inf as options; -inf should be refused as a number.
        self._negative_number_matcher = re.compile(r"-(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$|-(inf|nan)", re.IGNORECASE)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"act-steering: {message}; see '{self.prog} --help'.\n")


def add_command(
    commands: Commands, name: str, run: Callable[[argparse.Namespace], None], purpose: str, example: str
) -> argparse.ArgumentParser:
    """Add a command; its arguments are added to the parser that is returned.

    Args:
        commands: the subparsers of the main parser.
        name: name of the command.
        run: called with the parsed arguments.
        purpose: what it does, in a sentence.
        example: arguments of the example that its help shows.
    """
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=purpose,
        description=purpose,
        epilog=f"example:\n  act-steering {name}{example and ' '}{example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def add_device(parser: argparse.ArgumentParser) -> None:
    """``--dtype`` and ``--device``, for `load.language_model` and `load.pipeline`."""
    parser.add_argument("--dtype", choices=get_args(Dtype), default="float32", help="dtype of weights (%(default)s)")
    parser.add_argument("--device", help="device, such as cpu or cuda (cuda if available)")


def add_model(parser: argparse.ArgumentParser) -> None:
    """``--model``, with the small language model as the default, ``--dtype`` and ``--device``."""
    parser.add_argument(
        "--model",
        default="default",
        help="a model folder, a pipeline folder or a GGUF file (the small default language model)",
    )
    add_device(parser)


def add_size(parser: argparse.ArgumentParser) -> None:
    """``--size`` of the pictures of a pipeline."""
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("WIDTH", "HEIGHT"), help="size of the pictures in pixels, for pipelines"
    )


def add_strength(parser: argparse.ArgumentParser, default: str) -> None:
    """``--strength``, which can be given several times."""
    parser.add_argument(
        "--strength", type=number, action="append", help=f"of the map; can be given several times ({default})"
    )


def add_permission(parser: argparse.ArgumentParser) -> None:
    """``--allow-other-architecture``, for `load.map_of`."""
    parser.add_argument(
        "--allow-other-architecture",
        action="store_true",
        help="steer a model of another architecture than that of the map, if its sites have the same names",
    )


def add_seed(parser: argparse.ArgumentParser, purpose: str) -> None:
    """``--seed``."""
    parser.add_argument("--seed", type=seed, default=0, help=f"{purpose} (%(default)s)")


def number(text: str) -> float:
    """A number from the command line.

    Example:
        >>> number("-1e-1")
        -0.1
    """
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def seed(text: str) -> int:
    """A seed from the command line.

    Example:
        >>> seed("7")
        7
    """
    try:
        return as_integer("seed", int(text), 0, MAX_SEED)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to {MAX_SEED}") from None


def bytes_of_mebibytes(mebibytes: float | None) -> int | None:
    """A memory budget in bytes; None for none.

    Raises:
        MapError: it is not a finite number above 0.

    Example:
        >>> bytes_of_mebibytes(2.0)
        2097152
    """
    if mebibytes is None:
        return None
    if not 0 < mebibytes < math.inf:
        raise MapError(f"The memory budget is {mebibytes:g} MiB; it must be a finite number above 0.")
    return int(mebibytes * 2**20)


def words(text: str) -> str:
    """A prompt or title from the command line, decoded as UTF-8 even if Python used another encoding.

    Example:
        >>> words("a cat")
        'a cat'
    """
    return os.fsencode(text).decode("utf-8", "replace")


def given(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The options that the user gave, by name, for settings that have defaults of their own.

    Example:
        >>> given(argparse.Namespace(steps=3, batch_size=None), "steps", "batch_size")
        {'steps': 3}
    """
    return {name: value for name in names if (value := getattr(args, name)) is not None}


def check_writable(path: Path, what: str = "", suffix: str = "") -> None:
    """Raise a MapError if a file of that name cannot be written, or does not end in the suffix of its kind.

    Args:
        path: the file.
        what: its kind, such as "chart"; needed with a suffix.
        suffix: how its name must end; empty for any.

    Example:
        >>> check_writable(Path("chart.gif"), "chart", ".png")
        Traceback (most recent call last):
        ...
        act_core.errors.MapError: chart.gif is not a name for a chart; it must end in .png.
    """
    if suffix and path.suffix != suffix:
        raise MapError(f"{path} is not a name for a {what}; it must end in {suffix}.")
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise MapError(f"{path} cannot be written; choose a folder that you may write to.")


def add_new_file(parser: argparse.ArgumentParser, what: str = "map", suffix: str = ".safetensors") -> None:
    """``--out`` and ``--overwrite``, for `new_file`."""
    parser.add_argument("--out", "--output", type=Path, required=True, help=f"the {what} to write, a {suffix} file")
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it exists")
    parser.set_defaults(out_kind=(what, suffix))


def new_file(args: argparse.Namespace) -> Path:
    """The file to write, of a command that has `add_new_file`.

    Raises:
        MapError: its name ends in another suffix, it cannot be written, or it exists and is not to be replaced.
    """
    out: Path = args.out
    if out.exists() and not args.overwrite:
        raise MapError(f"{out} already exists; choose another name with --out, or add --overwrite.")
    check_writable(out, *args.out_kind)
    return out


def command_name() -> str:
    """The command that runs ``act-steering`` again in the same shell, quoted."""
    called = Path(sys.argv[0])
    if called.name == "__main__.py":
        return quoted(sys.executable, "-m", "act_core")
    found = shutil.which("act-steering")
    if found and called.exists() and Path(found).samefile(called):
        return "act-steering"
    try:
        return quoted(os.path.relpath(called))
    except ValueError:  # on another drive
        return quoted(str(called))


def quoted(*arguments: str) -> str:
    """Arguments as they can be pasted into a shell.

    Example:
        >>> quoted("--out", "my map.safetensors")
        "--out 'my map.safetensors'"
    """
    return subprocess.list2cmdline(arguments) if os.name == "nt" else shlex.join(arguments)
