"""Steering seen from inside the host's process: sweeps, calibrations, rows of other packs, and what stays in memory."""

from __future__ import annotations

from typing import Any

import pytest
from in_host import ResultsOf


@pytest.fixture(scope="module")
def inside(results_of: ResultsOf) -> dict[str, Any]:
    return results_of("steering.py")


def test_sweep_of_video(inside: dict[str, Any]) -> None:
    grid, images = inside["video sweep"]
    assert images == [2 * 3, 64, 64, 3]  # two strengths, three frames
    assert len(grid) == 4
    assert grid[0] == 1


@pytest.mark.parametrize("branch", ["positive", "negative"])
def test_rows_appended_by_another_pack_are_left_alone(inside: dict[str, Any], branch: str) -> None:
    found = inside["appended rows"]
    assert found[f"{branch} moved"] > 1e-2
    assert found[f"{branch} changed"] < 1e-3 * found[f"{branch} moved"]  # float32, in a batch of another size


def test_calibration_steers_the_positive_prompt_alone(inside: dict[str, Any]) -> None:
    assert inside["calibration"]["cfg 3"] > 1e-3
    assert inside["calibration"]["cfg 0"] == 0


def test_host_does_not_warn_when_a_steered_clip_is_freed(inside: dict[str, Any]) -> None:
    assert set(inside["leak warnings"].values()) == {0}


def test_hook_keeps_nothing_of_a_model_that_is_gone(inside: dict[str, Any]) -> None:
    assert inside["kept by a hook"] == {"models": 0, "steerings": 0}
