"""However a parked fit ends, nothing stays parked."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Generator
from typing import Any

import pytest
from helpers import OddError, TensorModel, chain, swapped, walkers
from parking_helpers import LAYERS, SOURCE, TARGET, Cached, cached_is_whole
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from act_core import MapError, fit
from act_core.fitting.temporary_file import TemporaryFile


@contextlib.contextmanager
def leaves_nothing(module: Cached, monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    files: list[Any] = []
    create: Callable[..., Any] = tempfile.TemporaryFile
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **given: files.append(create(**given)) or files[-1])
    threads = set(walkers())
    yield
    assert set(walkers()) == threads
    assert swapped(module) == []
    assert not _get_current_dispatch_mode_stack()
    assert [file.closed for file in files] == [True]
    cached_is_whole(module)


@pytest.mark.usefixtures("always_parks")
@pytest.mark.parametrize("error", [OddError(), KeyboardInterrupt()], ids=["error", "interrupt"])
@pytest.mark.parametrize("place", ["progress", "first prompt", "last prompt", "later site"])
def test_failed_fit_leaves_nothing_parked(place: str, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    module = Cached()
    model, runs, calls = TensorModel(module, (16,)), 0, 0

    def on_run(_: object) -> None:
        nonlocal runs
        runs += 1
        module.table = module.table if runs > 2 else None
        if runs - 1 == {"last prompt": 6}.get(place, 99):
            raise error

    def later(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls == {"first prompt": 2, "later site": 4}.get(place, 99):
            raise error

    def progress(done: int, *_: object) -> None:
        if place == "progress" and done == 2:
            raise error

    model.on_run = on_run
    with leaves_nothing(module, monkeypatch), contextlib.ExitStack() as stack:
        stack.callback(module.layers[2].register_forward_pre_hook(later).remove)
        with pytest.raises(type(error)) as caught:
            fit(model, SOURCE, TARGET, sites=LAYERS, batch_size=3, memory_budget=1, progress=progress)
    assert caught.value is error


@pytest.mark.usefixtures("always_parks")
def test_model_that_cleans_up_while_it_unwinds_reads_its_tensors() -> None:
    totals: list[float] = []

    class Tidy(Cached):
        def forward(self, x: Tensor) -> Tensor:
            try:
                return super().forward(x)
            finally:
                totals.append(float((x * 0 + 1).mean()))

    def cancel(*_: object) -> None:
        raise OddError

    with pytest.raises(OddError):
        fit(TensorModel(Tidy(), (16,)), SOURCE, TARGET, sites=LAYERS, memory_budget=1, progress=cancel, batch_size=3)
    assert totals == [1.0] * 7


@pytest.mark.usefixtures("always_parks")
def test_full_folder_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TemporaryFile, "write", full)
    with pytest.raises(MapError, match=r"^Cannot write to the folder .* \(No space left on device\); free some space"):
        fit(chain(), SOURCE, TARGET, sites=LAYERS, memory_budget=1)
