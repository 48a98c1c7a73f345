"""Parking within a memory budget, and when memory runs out."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from helpers import TensorModel, assert_identical, chain, encoded, prompts
from parking_helpers import LAYERS, SOURCE, TARGET, Skipping
from torch import Tensor, UntypedStorage, nn
from torch.utils._python_dispatch import TorchDispatchMode

from act_core import MapError, fit
from act_core.fitting import room
from act_core.fitting.memory import SCRATCH, storage_of


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that were made under any instance, in any thread, and that are alive."""

    made: dict[int, weakref.ref[UntypedStorage]]
    peak = 0

    def __init__(self, other: LiveBytes | None = None) -> None:
        super().__init__()
        self.first = other or self
        self.made = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = self.first.made
        for tensor in result if isinstance(result, (list, tuple)) else [result]:
            if isinstance(tensor, Tensor) and (storage := storage_of(tensor)) is not None:
                made[storage._cdata] = weakref.ref(storage)
        alive = [storage for ref in list(made.values()) if (storage := ref()) is not None]
        self.first.peak = max(self.first.peak, sum(storage.nbytes() for storage in alive))
        return result


class Counted(TensorModel):
    """30 KiB for each activation of a prompt, all of them counted."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module, ())
        self.live = LiveBytes()

    def rows(self, prompts: Sequence[str]) -> Tensor:
        return torch.stack([encoded(prompt, (480, 16)) for prompt in prompts])

    def _run(self, prompts: Sequence[str]) -> Any:
        with LiveBytes(self.live):
            return super()._run(prompts)


def test_live_storages_stay_within_the_budget() -> None:
    source, target, budget = prompts("source", 30), prompts("target", 30), 2 << 20
    model, free = Counted(Skipping()), Counted(Skipping())
    with model.live:
        act_map = fit(model, source, target, sites=LAYERS, memory_budget=SCRATCH + budget)
    with free.live:
        fit(free, source, target, sites=LAYERS)
    assert free.live.peak > 3 * budget
    assert budget / 4 < model.live.peak <= budget
    assert act_map.record.walk == "exact"
    assert not act_map.record.notes


def test_smallest_budget_that_is_named_is_enough() -> None:
    model = Counted(Skipping())
    with pytest.raises(MapError, match=r"allow at least 73 MiB"):
        fit(model, SOURCE, TARGET, sites=LAYERS, memory_budget=1 << 20)
    with model.live:
        assert fit(model, SOURCE, TARGET, sites=LAYERS, memory_budget=73 << 20).record.walk == "exact"
    assert model.live.peak <= (73 << 20) - SCRATCH


def test_short_main_memory_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "available_memory", lambda: 2 << 20)
    many = prompts("source", 30), prompts("target", 30)
    act_map = fit(Counted(Skipping()), *many, sites=LAYERS, memory_budget=SCRATCH + (1 << 20))
    assert act_map.record.walk == "streamed"


def test_unknown_devices_park_nothing() -> None:
    assert room.room_to_park({"cpu"}) > 0
    assert room.room_to_park({"cuda"}) > 0
    assert room.room_to_park({"mps", "cpu"}) == 0


def test_full_disk_leaves_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    assert room.room_to_park({"cpu"}) == 500
    assert room.room_to_park({"cuda"}) > 500


# --- running out of memory


def test_out_of_memory_parks_and_halves_the_batch() -> None:
    model = chain()

    def check(batch: Sequence[str]) -> None:
        if len(batch) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    model.on_run = check
    act_map = fit(model, SOURCE, TARGET, sites=LAYERS)
    assert act_map.record.walk == "exact"
    assert act_map.record.notes == tuple(
        f"out of memory: restarted with {size} prompts at a time, others parked" for size in (8, 4)
    )
    assert_identical(act_map, fit(chain(), SOURCE, TARGET, sites=LAYERS, batch_size=4))
