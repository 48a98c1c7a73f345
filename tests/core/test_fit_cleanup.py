"""However a fit ends, the model is restored and no thread is left."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from types import FrameType
from typing import Any

import pytest
import torch
from helpers import (
    Chain,
    TensorModel,
    assert_identical,
    calling_before,
    chain,
    prompts,
    randomise,
    swapped,
    walkers,
)
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from act_core import ActMap, MapError, fit
from act_core.errors import FitError
from act_core.fitting.memory import BatchPlan, SampleMemory
from act_core.models.transformers import TransformersModel

SOURCE, TARGET = prompts("source", 6), prompts("target", 6)
LAYERS = "toy/layers.*"


class OddError(Exception):
    """An exception class of the model."""


@contextlib.contextmanager
def ends_cleanly(model: TensorModel) -> Generator[None]:
    before = {name: dict(part.__dict__) for name, part in model.module.named_modules()}
    threads = set(walkers())
    yield
    assert set(walkers()) == threads
    assert swapped(model.module) == []
    assert before == {name: dict(part.__dict__) for name, part in model.module.named_modules()}
    assert model.resident == 0


FAILURES = [OddError("odd"), KeyboardInterrupt(), SystemExit(3), GeneratorExit(), MapError("mine")]


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("prompt", [SOURCE[0], SOURCE[3], TARGET[5]], ids=["first", "middle", "last"])
def test_error_in_one_micro_batch_ends_all(error: BaseException, prompt: str) -> None:
    model = chain()

    def fail(batch: Sequence[str]) -> None:
        if batch == [prompt]:
            raise error

    model.on_run = fail
    with ends_cleanly(model), pytest.raises(type(error)) as caught:
        fit(model, SOURCE, TARGET, sites=LAYERS, batch_size=1)
    assert caught.value is error


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
def test_error_at_a_later_site_is_raised_unchanged(error: BaseException) -> None:
    model, calls = chain(), 0

    def fail() -> None:
        nonlocal calls
        calls += 1
        if calls == 8:  # the dry run, and then in the midst of the twelve micro-batches
            raise error

    with (
        ends_cleanly(model),
        calling_before(model.module.get_submodule("layers.1"), fail),
        pytest.raises(type(error)) as caught,
    ):
        fit(model, SOURCE, TARGET, sites=LAYERS, batch_size=1)
    assert caught.value is error
    assert calls == 8


@pytest.mark.parametrize("at", [1, 2, 3])
def test_progress_callback_can_cancel_the_fit(at: int) -> None:
    model, error = chain(), OddError("cancelled")

    def cancel(done: int, *_: object) -> None:
        if done == at:
            raise error

    with ends_cleanly(model), pytest.raises(OddError) as caught:
        fit(model, SOURCE, TARGET, sites=LAYERS, batch_size=2, progress=cancel)
    assert caught.value is error


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


def test_failure_to_start_a_thread_ends_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    model, started, start = chain(), 0, threading.Thread.start

    def limited(thread: threading.Thread) -> None:
        nonlocal started
        started += thread.name == "act-walk"
        if started > 3:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    with ends_cleanly(model), pytest.raises(RuntimeError, match="can't start new thread"):
        fit(model, SOURCE, TARGET, sites=LAYERS, batch_size=1)


def test_model_that_swallows_exceptions_is_unwound() -> None:
    class Swallowing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                with contextlib.suppress(Exception):
                    x = layer(x)
            return x

    model = TensorModel(Swallowing(), (4,))

    def cancel(*_: object) -> None:
        raise OddError

    with ends_cleanly(model), pytest.raises(OddError):
        fit(model, SOURCE, TARGET, sites=LAYERS, batch_size=2, progress=cancel)


def test_fit_succeeds_after_a_failed_fit() -> None:
    model = chain()
    expected = fit(chain(), SOURCE, TARGET, sites=LAYERS)

    def fail(*_: object) -> None:
        raise OddError

    with pytest.raises(OddError):
        fit(model, SOURCE, TARGET, sites=LAYERS, progress=fail)
    assert_identical(fit(model, SOURCE, TARGET, sites=LAYERS), expected)


@pytest.mark.parametrize("fails", [False, True])
def test_forward_of_another_library_is_restored(fails: bool) -> None:
    model, calls = chain(), []
    layer = model.module.get_submodule("layers.1")
    original = layer.forward

    def theirs(x: Tensor) -> Tensor:
        calls.append(1)
        return original(x) * 2

    def progress(done: int, *_: object) -> None:
        if fails and done == 2:
            raise OddError

    layer.__dict__["forward"] = theirs
    with contextlib.suppress(OddError):
        fit(model, SOURCE, TARGET, sites=LAYERS, progress=progress)
    assert calls
    assert layer.__dict__["forward"] is theirs
    assert swapped(model.module) == ["layers.1"]


def test_fit_leaves_weights_and_gradients_unchanged(llama: TransformersModel) -> None:
    module = llama.module
    before = {name: value.clone() for name, value in module.state_dict().items()}
    fit(llama, SOURCE, TARGET, sites="all", batch_size=3)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in module.parameters())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_activations_name_their_site(value: float) -> None:
    model = chain()
    layer = model.module.get_submodule("layers.1")
    assert isinstance(layer.bias, Tensor)
    layer.bias.data[2] = value
    with ends_cleanly(model), pytest.raises(MapError, match=r"At site toy/layers\.1: .*NaN or infinite"):
        fit(model, SOURCE, TARGET, sites=LAYERS)


# --- training mode


class Dropping(nn.Module):
    """Two dropouts, one of them frozen in evaluation mode, as finetuning scripts do."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 4), nn.Dropout(0.5)])
        randomise(self)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.mark.parametrize("fails", [False, True])
def test_fit_runs_in_evaluation_mode_and_restores_each_submodule(fails: bool) -> None:
    def progress(done: int, *_: object) -> None:
        if fails and done == 2:
            raise OddError

    expected = fit(TensorModel(Dropping().eval(), (4,)), SOURCE, TARGET, sites="toy/layers.[02]")
    model = TensorModel(Dropping(), (4,))
    model.module.get_submodule("layers.3").eval()
    modes = {name: part.training for name, part in model.module.named_modules()}
    assert len(set(modes.values())) == 2
    with contextlib.suppress(OddError):
        act_map = fit(model, SOURCE, TARGET, sites="toy/layers.[02]", progress=progress)
        assert_identical(act_map, expected)
    assert {name: part.training for name, part in model.module.named_modules()} == modes


def test_fit_does_not_call_the_models_own_eval() -> None:
    """Some adapter layers merge their weights when `eval` is called."""

    class Merging(Chain):
        def train(self, mode: bool = True) -> Any:
            raise AssertionError("the mode was switched by a method that has side effects")

    assert len(fit(TensorModel(Merging(), (4,)), SOURCE, TARGET, sites=LAYERS)) == 3


# --- two fits at once


def test_second_fit_of_a_model_in_another_thread_is_refused() -> None:
    model, errors = chain(), []

    def second() -> None:
        try:
            fit(TensorModel(nn.Sequential(model.module), (4,)), SOURCE, TARGET, sites="toy/0.layers.*")
        except FitError as error:
            errors.append(str(error))

    def progress(done: int, *_: object) -> None:
        if done == 2:
            thread = threading.Thread(target=second)
            thread.start()
            thread.join()

    act_map = fit(model, SOURCE, TARGET, sites=LAYERS, progress=progress)
    assert errors == ["This model is already being fitted; wait for that fit to finish."]
    assert_identical(act_map, fit(chain(), SOURCE, TARGET, sites=LAYERS))
    assert swapped(model.module) == []
    fit(model, SOURCE, TARGET, sites=LAYERS)


def test_fits_of_two_models_at_once_do_not_disturb_each_other() -> None:
    maps: list[ActMap] = []

    def second() -> None:
        maps.append(fit(chain(), SOURCE, TARGET, sites=LAYERS, batch_size=1))

    def progress(done: int, *_: object) -> None:
        if done == 1:
            thread = threading.Thread(target=second)
            thread.start()
            thread.join()

    maps.append(fit(chain(), SOURCE, TARGET, sites=LAYERS, batch_size=1, progress=progress))
    assert_identical(*maps)
