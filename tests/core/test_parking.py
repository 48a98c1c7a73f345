"""Parking: maps of the exact walk while only one micro-batch takes memory, whatever the model does with its tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import accelerate
import pytest
import torch
from helpers import TensorModel, assert_identical, chain, tiny_llama
from parking_helpers import LAYERS, SOURCE, TARGET, Skipping, both
from quantised_layers import QUANTISED, quantise

from act_core import fit
from act_core.fitting import parking
from act_core.fitting.parking import Parking
from act_core.fitting.temporary_file import TemporaryFile
from act_core.models.diffusers import DiffusersModel


@pytest.fixture
def parks(monkeypatch: pytest.MonkeyPatch, always_parks: None) -> list[int]:
    """The number of storages that are parked each time, with `always_parks`."""
    numbers: list[int] = []
    move_away = Parking.move_away

    def counting(self: Parking, leaving: Sequence[Any]) -> None:
        numbers.append(len(leaving))
        move_away(self, leaving)

    monkeypatch.setattr(Parking, "move_away", counting)
    return numbers


def test_parked_map_is_that_of_the_unbounded_walk(parks: list[int]) -> None:
    act_map = both(tiny_llama(), sites="all", support="observed")
    assert len(parks) == len(act_map) * 6  # micro-batches
    assert max(parks) > 3


@pytest.mark.parametrize("settings", [{"moved": "both"}, {"order": "simultaneous"}, {"interval": "pooled"}])
def test_parked_map_is_exact_with_other_settings(always_parks: None, settings: dict[str, Any]) -> None:
    both(TensorModel(Skipping(), (5, 16)), sites=LAYERS, support="observed", **settings)


def test_parked_map_of_vectors_is_exact(always_parks: None) -> None:
    both(chain(), sites=LAYERS)


@pytest.mark.usefixtures("always_parks")
def test_parked_map_of_a_pipeline_is_exact(model: DiffusersModel) -> None:
    both(model, sites="auto")


@pytest.mark.usefixtures("always_parks")
@pytest.mark.parametrize("library", QUANTISED)
def test_parked_map_of_a_quantised_model_is_exact(library: str) -> None:
    model = tiny_llama()
    quantise(model.module, library)
    both(model, sites="norms")


@pytest.mark.usefixtures("always_parks")
def test_parked_map_under_inference_mode_and_autocast_is_exact() -> None:
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        both(tiny_llama(), sites="norms")
    with torch.autocast("cpu", dtype=torch.bfloat16):  # caches the weights that it has cast
        both(tiny_llama(), sites="norms")


@pytest.mark.usefixtures("always_parks")
def test_parked_map_of_an_offloaded_model_is_exact() -> None:
    model = tiny_llama()
    accelerate.cpu_offload(model.module, torch.device("cpu"))
    free = fit(tiny_llama(), SOURCE, TARGET, sites="norms", batch_size=3)
    assert_identical(free, fit(model, SOURCE, TARGET, sites="norms", batch_size=3, memory_budget=1))


def test_main_memory_holds_what_an_accelerator_parks(monkeypatch: pytest.MonkeyPatch, parks: list[int]) -> None:
    # A CPU has storages of the same kind, so that the same code can copy and resize them.
    monkeypatch.setattr(TemporaryFile, "write", lambda _, storage: parking._copied(storage))
    both(TensorModel(Skipping(), (5, 16)), sites=LAYERS)
    assert max(parks) > 1
