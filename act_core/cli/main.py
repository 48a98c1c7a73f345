"""The entry point. Exit status: 0 on success, 2 with a one-sentence error, 130 after Ctrl-C."""

from __future__ import annotations

import argparse
import io
import os
import sys

from .. import __version__
from ..errors import MapError
from ..interrupts import interruptible
from . import (
    blend,
    calibrate,
    check_prompts,
    compare,
    demo,
    export_control_vector,
    export_lora,
    fit,
    fit_all,
    gallery,
    generate,
    import_,
    inspect,
    processes,
    prune,
    sweep,
)
from .arguments import Parser
from .load import quiet_libraries

__all__ = ["main", "quiet_libraries"]

_COMMANDS = (
    demo,
    fit,
    fit_all,
    inspect,
    generate,
    sweep,
    calibrate,
    export_lora,
    import_,
    export_control_vector,
    check_prompts,
    gallery,
    blend,
    compare,
    prune,
)


def main(arguments: list[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: command-line arguments; those of the process if None.

    Returns:
        The exit status.

    Example:
        >>> main(["inspect", "nowhere.safetensors"])
        2
    """
    for stream in (sys.stdout, sys.stderr):
        # Titles and prompts may be in any script, whatever the encoding of the terminal or file.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    if processes.count() > 1:
        return processes.run(lambda: _parser().parse_args(arguments), _outcome)
    status, message = _outcome(_parser().parse_args(arguments))
    if message:
        print(message, file=sys.stderr)
    return status


def _outcome(args: argparse.Namespace) -> tuple[int, str]:
    """Run a command; the exit status, and after an error what went wrong."""
    try:
        with interruptible():
            args.run(args)
            print(end="", flush=True)  # sys.stdout is None where the caller closed it
    except MapError as error:
        return 2, f"act-steering: {error}"
    except ModuleNotFoundError as error:
        return 2, f"act-steering: {error.name} is missing; run 'pip install \"act-steering[demo]\"'."
    except KeyboardInterrupt:
        return 130, "act-steering: stopped."
    except BrokenPipeError:  # the reader, such as head, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        name = error.filename or "A file"
        return 2, f"act-steering: {name} cannot be used ({error.strerror or error}); choose another."
    return 0, ""


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="act-steering", description="Steer generative models with Activation Transport maps.")
    parser.add_argument("--version", action="version", version=f"act-steering {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in _COMMANDS:
        command.add(commands)
    return parser
