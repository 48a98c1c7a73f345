"""The part of a sampling schedule in which a map acts, on a schedule that stands in for the host's."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import act_core

FILE = Path(__file__).parents[2] / "nodes" / "host" / "schedule.py"


class Sampling:
    """The host's `model_sampling` for a schedule that falls evenly from 1 to 0."""

    def percent_to_sigma(self, percent: float) -> float:
        return 1 - percent


@pytest.fixture
def schedule(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, which needs nothing of the host; in a package, as the host loads it."""
    name = "pack.nodes.host.schedule"
    spec = importlib.util.spec_from_file_location(name, FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "pack.act_core", act_core)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


def factors(window: Any, *sigmas: float) -> list[float | None]:
    return [window.factor(Sampling(), {"sigmas": torch.tensor([sigma])}) for sigma in sigmas]


def test_window_has_its_first_step_but_not_that_at_its_end(schedule: Any) -> None:
    first, second = schedule.Window(0.0, 0.5), schedule.Window(0.5, 1.0)
    assert factors(first, 1.0, 0.75, 0.5, 0.25) == [1.0, 1.0, None, None]
    # So two windows that touch never act at the same step.
    assert factors(second, 1.0, 0.75, 0.5, 0.25) == [None, None, 1.0, 1.0]


def test_fades_go_from_the_start_of_the_window_to_its_end(schedule: Any) -> None:
    fade_in, fade_out = (schedule.Window(0.0, 0.5, shape) for shape in ("fade in", "fade out"))
    assert factors(fade_in, 1.0, 0.875, 0.75) == pytest.approx([0.0, 0.25, 0.5], abs=1e-3)
    assert factors(fade_out, 1.0, 0.875, 0.75) == pytest.approx([1.0, 0.75, 0.5], abs=1e-3)
