"""Tiny models of several kinds: a map from pictures by noise level, and the fallback where none can be refined."""

from __future__ import annotations

from typing import Any

import pytest
from in_host import ResultsOf

KINDS = ("SD 1.5", "SDXL", "SD3", "Flux.1 dev", "Qwen-Image", "Z-Image", "Wan 2.1")
# Fused kernels of the host without gradients.
FALLBACK = ("Anima", "Cosmos Predict 2")


@pytest.fixture(scope="module")
def everything(results_of: ResultsOf) -> dict[str, Any]:
    return results_of("transport_models.py")


@pytest.mark.parametrize("name", [*KINDS, *FALLBACK])
def test_map_acts_at_each_level_and_model_is_left_alone(name: str, everything: dict[str, Any]) -> None:
    found = everything[name]
    assert found["fitted by"] == "transport"
    assert found["levels of the map"] == [0.9, 0.4]
    assert found["levels again"] == pytest.approx([0.9, 0.4], abs=1e-3)  # one of 1000 timesteps
    assert found["moves"] == [True, True]
    assert found["same weights"]
    assert found["left behind"] == 0


@pytest.mark.parametrize("name", FALLBACK)
def test_record_says_why_it_is_not_refined(name: str, everything: dict[str, Any]) -> None:
    note = everything[name]["notes"][0]
    assert note.startswith("fitted by transport rather than refined, since this model cannot be differentiated")
