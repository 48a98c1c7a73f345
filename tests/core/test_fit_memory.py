"""How a fit stays within a memory budget, and what happens when memory runs out, where nothing can be parked.

`test_parking_budget` covers machines with enough main memory.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from helpers import (
    Chain,
    TensorModel,
    assert_identical,
    chain,
    encoded,
    keys,
    largest_difference,
    prompts,
    tensors_of,
)
from torch import Tensor

from act_core import MapError, fit
from act_core.fitting.memory import SCRATCH
from act_core.models.transformers import TransformersModel

SOURCE, TARGET = prompts("source", 6), prompts("target", 6)
LAYERS = "toy/layers.*"


@pytest.fixture(autouse=True)
def main_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("act_core.fitting.room.available_memory", lambda: 0)


# --- streamed fits

MANY_SOURCE, MANY_TARGET = prompts("source", 30), prompts("target", 30)


class LongPrompts(TensorModel):
    """30 KiB per activation, so that a few dozen prompts take more than a mebibyte."""

    def rows(self, prompts: Sequence[str]) -> Tensor:
        tokens = torch.stack([encoded(f"tokens of {prompt}", (480, 16)) for prompt in prompts])
        return torch.stack([encoded(prompt, (1, 16)) for prompt in prompts]) + 0.3 * tokens


def long_prompts() -> TensorModel:
    return LongPrompts(Chain(channels=16), ())


def streaming_budget() -> int:
    return SCRATCH + (2 << 20)


def test_progress_counts_all_groups_of_a_streamed_fit() -> None:
    model, budget = long_prompts(), streaming_budget()
    calls: list[tuple[int, int]] = []
    fit(model, MANY_SOURCE, MANY_TARGET, sites=LAYERS, memory_budget=budget, progress=lambda *c: calls.append(c[:2]))
    total = calls[0][1]
    assert total > 3
    assert total % 3 == 0
    assert calls == [(done, total) for done in range(1, total + 1)]


def test_large_budget_gives_the_exact_map() -> None:
    free = fit(long_prompts(), MANY_SOURCE, MANY_TARGET, sites=LAYERS, batch_size=8)
    ample = fit(long_prompts(), MANY_SOURCE, MANY_TARGET, sites=LAYERS, batch_size=8, memory_budget=1 << 30)
    assert ample.record.walk == "exact"
    assert_identical(free, ample)


def test_small_budget_streams_the_prompts() -> None:
    exact = fit(long_prompts(), MANY_SOURCE, MANY_TARGET, sites=LAYERS)
    streamed = fit(long_prompts(), MANY_SOURCE, MANY_TARGET, sites=LAYERS, memory_budget=streaming_budget())
    assert streamed.record.walk == "streamed"
    first, *rest = keys(exact)
    # At the first site nothing acts upstream: the same values, in other batches and another order.
    assert largest_difference(exact.restrict(first), streamed.restrict(first)) < 1e-4
    for key in rest:
        one, other, statistics = exact[key], streamed[key], exact[key].statistics
        assert statistics is not None
        # The first groups walk with maps of eight prompts per side, whose means err by a third of a standard deviation.
        shift = (other.apply(statistics.source_mean) - one.apply(statistics.source_mean)) / statistics.source_std
        assert float(shift.abs().median()) < 0.5
        assert float((other.omega - one.omega).norm() / one.omega.norm()) < 0.25


def test_streamed_fit_depends_only_on_its_seed() -> None:
    maps = [
        fit(long_prompts(), MANY_SOURCE, MANY_TARGET, sites=LAYERS, memory_budget=streaming_budget(), seed=seed)
        for seed in (3, 3, 4)
    ]
    assert_identical(maps[0], maps[1])
    assert largest_difference(maps[0], maps[2]) > 0
    assert [m.record.seed for m in maps] == [3, 3, 4]


def test_streamed_fit_stays_within_its_budget() -> None:
    model, most = long_prompts(), 0

    def note(_: object) -> None:
        nonlocal most
        most = max(most, model.resident)

    model.on_run = note
    fit(model, MANY_SOURCE, MANY_TARGET, sites=LAYERS, memory_budget=streaming_budget())
    assert 4 <= most < 60
    assert most * 480 * 16 * 4 <= streaming_budget() - SCRATCH  # one activation of each


def test_simultaneous_fit_in_groups_is_exact() -> None:
    settings: dict[str, Any] = {"sites": LAYERS, "order": "simultaneous", "support": "observed"}
    free = fit(long_prompts(), MANY_SOURCE, MANY_TARGET, **settings)
    grouped = fit(long_prompts(), MANY_SOURCE, MANY_TARGET, memory_budget=streaming_budget(), **settings)
    assert grouped.record.walk == "exact"
    assert largest_difference(free, grouped) < 1e-4  # other batches, summed in another order
    for key in keys(free):
        for one, other in zip(tensors_of(free[key]), tensors_of(grouped[key]), strict=True):
            assert one is not None
            assert other is not None
            assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)  # as above


def test_too_small_budget_names_a_sufficient_one() -> None:
    with pytest.raises(MapError, match=r"budget of 0 MiB is too small for 60 prompts and 3 sites") as caught:
        fit(long_prompts(), MANY_SOURCE, MANY_TARGET, sites=LAYERS, memory_budget=100_000)
    least = int(re.findall(r"at least (\d+) MiB", str(caught.value))[0])
    fitted = fit(long_prompts(), MANY_SOURCE, MANY_TARGET, sites=LAYERS, memory_budget=least << 20)
    assert len(fitted) == 3


@pytest.mark.parametrize("many", ["source", "target"])
def test_streamed_fit_accepts_sides_of_very_different_size(many: str) -> None:
    sides: dict[str, Any] = {"source": MANY_SOURCE[:2], "target": MANY_TARGET[:2], many: prompts(many, 58)}
    act_map = fit(long_prompts(), **sides, sites=LAYERS, memory_budget=streaming_budget())
    assert act_map.record.walk == "streamed"
    exact = fit(long_prompts(), **sides, sites="toy/layers.0")
    assert largest_difference(exact, act_map.restrict("toy/layers.0")) < 1e-4  # as above


def test_budget_streams_a_language_model(llama: TransformersModel) -> None:
    source, target = ([text * 8 for text in side] for side in (MANY_SOURCE, MANY_TARGET))
    streamed = fit(llama, source, target, sites="attention", memory_budget=SCRATCH + (3 << 20))
    assert streamed.record.walk == "streamed"


# --- running out of memory


class Small(TensorModel):
    """Raises like CUDA when too many prompts are in the walk, or too many run in one batch."""

    def __init__(self, resident: int = 10**6, rows: int = 10**6) -> None:
        super().__init__(Chain(), (4,))
        self.attempts = 0

        def check(prompts: Sequence[str]) -> None:
            if self.resident > resident or len(prompts) > rows:
                self.attempts += 1
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

        self.on_run = check


@pytest.mark.parametrize("limits", [{"resident": 6}, {"rows": 3}, {"resident": 7, "rows": 2}])
def test_out_of_memory_restarts_in_smaller_groups(limits: dict[str, int], caplog: pytest.LogCaptureFixture) -> None:
    model = Small(**limits)
    with caplog.at_level(logging.WARNING, "act_core"):
        act_map = fit(model, SOURCE, TARGET, sites=LAYERS)
    assert model.attempts >= 1
    assert len(act_map.record.notes) == model.attempts
    assert all("out of memory: restarted with" in note for note in act_map.record.notes)
    assert len(caplog.records) == model.attempts
    assert act_map.record.walk == "streamed"
    exact = fit(chain(), SOURCE, TARGET, sites="toy/layers.0")
    assert largest_difference(exact, act_map.restrict("toy/layers.0")) < 1e-4  # the same values in other batches


@pytest.mark.parametrize("resident", [4, 5])
def test_out_of_memory_goes_down_to_two_prompts_per_side(resident: int) -> None:
    assert len(fit(Small(resident), SOURCE, TARGET, sites=LAYERS)) == 3


def test_out_of_memory_with_two_prompts_per_side_is_an_error() -> None:
    with pytest.raises(MapError, match="out of memory with few prompts at a time"):
        fit(Small(resident=3), SOURCE, TARGET, sites=LAYERS)


def test_out_of_memory_in_the_dry_run_is_an_error() -> None:
    with pytest.raises(MapError, match="memory"):
        fit(Small(resident=0), SOURCE, TARGET, sites=LAYERS)
