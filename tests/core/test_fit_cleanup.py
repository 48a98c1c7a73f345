"""However a fit ends, the model is restored and no thread is left."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence

import pytest
from helpers import OddError, TensorModel, assert_identical, calling_before, chain, ends_cleanly, prompts
from torch import Tensor, nn

from act_core import MapError, fit

SOURCE, TARGET = prompts("source", 6), prompts("target", 6)
LAYERS = "toy/layers.*"

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


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_activations_name_their_site(value: float) -> None:
    model = chain()
    layer = model.module.get_submodule("layers.1")
    assert isinstance(layer.bias, Tensor)
    layer.bias.data[2] = value
    with ends_cleanly(model), pytest.raises(MapError, match=r"At site toy/layers\.1: .*NaN or infinite"):
        fit(model, SOURCE, TARGET, sites=LAYERS)
