"""Ctrl-C ends a fit, at any line, and leaves the model as it was."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

import pytest
import torch
from helpers import Chain, TensorModel, chain, ends_cleanly, prompts
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from act_core import fit
from act_core.fitting.memory import BatchPlan, SampleMemory

SOURCE, TARGET = prompts("source", 6), prompts("target", 6)
LAYERS = "toy/layers.*"


@pytest.fixture
def python_handles_ctrl_c() -> Iterator[None]:
    """If the parent process ignores SIGINT, as `nohup` does, Python does not install its handler."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("python_handles_ctrl_c")
def test_ctrl_c_ends_the_fit() -> None:
    model = chain()

    def interrupt(batch: Sequence[str]) -> None:
        if SOURCE[3] in batch and len(batch) == 1:
            os.kill(os.getpid(), signal.SIGINT)

    model.on_run = interrupt
    with ends_cleanly(model), pytest.raises(KeyboardInterrupt):
        fit(model, SOURCE, TARGET, sites=LAYERS, batch_size=1)


# Files that patch the model or handle threads.
SENSITIVE = ("fit.py", "lockstep.py", "workers.py", "prepare.py", "memory.py", "interception.py", "threading.py")
PARKING = ("parking.py", "temporary_file.py")


def lines_run(run: Callable[[], object], files: tuple[str, ...]) -> list[tuple[str, int]]:
    """The distinct lines of some files that a call runs in this thread."""
    lines: dict[tuple[str, int], None] = {}
    trace_lines(run, lambda line: lines.setdefault(line))
    return [line for line in lines if line[0].endswith(files)]


def trace_lines(run: Callable[[], object], at_line: Callable[[tuple[str, int]], object]) -> None:
    def trace(frame: FrameType, event: str, _: object) -> Any:
        file = frame.f_code.co_filename
        if not file.endswith((*SENSITIVE, *PARKING)):
            return None
        if event == "line":
            at_line((file, frame.f_lineno))
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        run()
    finally:
        sys.settrace(before)


@pytest.mark.usefixtures("python_handles_ctrl_c")
@pytest.mark.parametrize(("budget", "files"), [(None, SENSITIVE), (1 << 30, ("memory.py",)), (1, PARKING)])
def test_ctrl_c_at_any_line_leaves_the_model_as_it_was(
    budget: int | None, files: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    if files == PARKING:
        monkeypatch.setattr(SampleMemory, "plan", lambda *_: BatchPlan(4, 1, parked=True))
    model = TensorModel(Chain(channels=2, layers=2), (2,))
    model.module.train()

    def run() -> None:
        fit(model, SOURCE[:2], TARGET[:2], sites=LAYERS, batch_size=1, memory_budget=budget)

    run()
    with torch.enable_grad():
        for interrupted in lines_run(run, files):
            pending = [interrupted]

            def interrupt(line: tuple[str, int], pending: list[tuple[str, int]] = pending) -> None:
                if line in pending:
                    pending.clear()
                    signal.raise_signal(signal.SIGINT)

            # The traceback is kept, as a caller may, so that nothing is tidied up by reference counting alone.
            with ends_cleanly(model), pytest.raises(KeyboardInterrupt):
                trace_lines(run, interrupt)
            assert model.module.training, interrupted
            assert torch.is_grad_enabled(), interrupted
            assert not _get_current_dispatch_mode_stack(), interrupted
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, interrupted
    run()
