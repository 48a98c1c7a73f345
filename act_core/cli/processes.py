"""Runs a command in several processes, as `torchrun` starts them: they end together, and one of them prints.

torchrun gives each process its rank and the address of a store. A process that fails first claims the message in the
store, so that of many reports one is printed, and ends. torchrun then ends the others with SIGTERM.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from datetime import timedelta
from types import FrameType
from typing import NoReturn

from ..errors import MapError, ProcessError, first_line

_GIVEN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# Seconds that the others leave to the first process, so that it prints if it can.
_COURTESY = 1.0


def count() -> int:
    """The number of processes that run this command; 1 outside torchrun."""
    given = [os.environ.get(name, "") for name in _GIVEN]
    return int(given[1]) if all(given) and given[1].isdigit() else 1


def is_first() -> bool:
    """Whether this process is the one that writes files and prints.

    Example:
        >>> is_first()
        True
    """
    return count() == 1 or os.environ["RANK"] == "0"


def run(parse: Callable[[], argparse.Namespace], outcome: Callable[[argparse.Namespace], tuple[int, str]]) -> int:
    """Run a command in one of several processes.

    Args:
        parse: parses the arguments.
        outcome: runs the command; returns the exit status and, after an error, a message.

    Returns:
        0. After an error this does not return: the process ends at once.
    """
    # Before torch is imported: its warnings of lost connections would surround the message.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    signal.signal(signal.SIGTERM, _on_end_of_others)
    if not is_first():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  (until the process ends)
        logging.disable()
        warnings.simplefilter("ignore")
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            args = parse()
    except SystemExit as stop:
        if stop.code:
            _end(2, errors.getvalue().rstrip())
        return 0  # after --help
    try:
        _connect(args)
        status, message = outcome(args)
        if status == 0:
            _wait_for_all()
    except MapError as error:
        status, message = 2, f"act-steering: {error}"
    except Exception as error:  # noqa: BLE001  (the tracebacks of all processes would bury the message)
        status, message = 2, f"act-steering: {type(error).__name__}: {first_line(error)}"
    if status:
        _end(status, message)
    return 0


def _on_end_of_others(_number: int, _frame: FrameType | None) -> NoReturn:
    _end(2, "act-steering: Another process of this command has ended, and so have all; torchrun's report names it.")


def _end(status: int, message: str) -> NoReturn:
    """End this process, after the message if no other process has printed one."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if not is_first():
        time.sleep(_COURTESY)
    with contextlib.suppress(BrokenPipeError):
        if message and _has_the_word():
            print(message, file=sys.stderr, flush=True)
        sys.stdout.flush()
    # Not by way of the interpreter, which would wait for threads and connections.
    os._exit(status)


def _has_the_word() -> bool:
    """Whether this process is the first of all to ask, since torchrun last started them."""
    from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    try:
        store = TCPStore(address, port, is_master=False, timeout=timedelta(seconds=5))
        return store.add(f"act-steering/message/{restarts}", 1) == 1
    except RuntimeError:  # the process that held the store has ended, too
        return True


def _connect(args: argparse.Namespace) -> None:
    """Join the other processes, with a GPU for each where there are GPUs."""
    if not getattr(args, "in_processes", False):
        raise MapError("Only 'fit' runs in several processes; start this command without torchrun.")
    if ":" in (args.device or ""):
        raise MapError(f"--device {args.device} is one device for all processes; leave out the number for one each.")
    import torch
    import torch.distributed as dist

    from ..fitting.gather import LOADING

    backend = "gloo"
    if torch.cuda.is_available() and (args.device or "cuda").startswith("cuda"):
        backend = "cpu:gloo,cuda:nccl"
        local, gpus = int(os.environ.get("LOCAL_RANK", os.environ["RANK"])), torch.cuda.device_count()
        if local >= gpus:
            raise MapError(
                f"There are more processes than GPUs ({gpus}); start one for each GPU, or fit with --device cpu."
            )
        torch.cuda.set_device(local)
    try:
        dist.init_process_group(backend, timeout=timedelta(seconds=LOADING))
    except RuntimeError as error:
        raise ProcessError(f"The processes cannot reach each other: {first_line(error)}") from error


def _wait_for_all() -> None:
    """Wait until the first process has written the file, so that all end alike."""
    import torch.distributed as dist

    try:
        dist.all_gather_object([None] * count(), None)
    except RuntimeError as error:
        raise ProcessError("Another process has ended before all were done.") from error
    dist.destroy_process_group()
