"""Maps beside what other packs do to a model: patches in any order, taken away in any order."""

from __future__ import annotations

from typing import Any

import pytest
from in_host import ResultsOf

KINDS = ("model", "as weights", "clip")


@pytest.fixture
def found(results_of: ResultsOf) -> dict[str, Any]:
    return results_of("patch_combinations.py")


@pytest.mark.parametrize("kind", KINDS)
def test_patches_in_any_order_equal_those_on_a_new_model(found: dict[str, Any], kind: str) -> None:
    """Also after one of them is taken away: attention and function replaced, forwards swapped, weights changed."""
    assert found[kind]["chains"] >= 5
    assert found[kind]["failures"] == []


@pytest.mark.parametrize("kind", KINDS)
def test_each_patch_changes_the_result_beside_all_others(found: dict[str, Any], kind: str) -> None:
    assert found[kind]["without effect"] == []


@pytest.mark.parametrize("kind", ["model", "clip"])
def test_map_acts_on_what_patched_layers_return(found: dict[str, Any], kind: str) -> None:
    assert found[f"{kind} beside doubled weights"]


@pytest.mark.parametrize("kind", ["model", "clip"])
def test_map_is_fitted_on_what_patched_layers_return(found: dict[str, Any], kind: str) -> None:
    assert found[f"{kind} fitted"] == 0  # infinite if sites are missing
