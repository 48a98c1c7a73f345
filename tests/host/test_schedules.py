"""The shape of a schedule: on the host's own schedules, and in a sampling run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from graphs import STEPS, Parts, apply, plain, steered
from in_host import ResultsOf

from tools.comfyui.server import Graph, Host, Node

ONLY_MODEL: dict[str, Any] = {"strength_clip": 0.0}


@pytest.mark.parametrize("kind", ["discrete", "edm", "flow", "flux"])
def test_shape_is_linear_in_percent(results_of: ResultsOf, kind: str) -> None:
    results = results_of("schedules.py")
    percents, found = results["percents"], results["found"][kind]
    # The position of a sigma is rounded to four decimals.
    assert found["in"] == pytest.approx(percents, abs=2e-4)
    assert found["out"] == pytest.approx([1 - percent for percent in percents], abs=2e-4)
    assert found["constant"] == [1.0 if 0.25 < percent < 0.75 else None for percent in percents]
    inside = [None if not 0.15 < percent < 0.75 else (percent - 0.15) / 0.6 for percent in percents]
    assert found["in_part"] == pytest.approx(inside, abs=4e-4)
    curve = [None if percent < 0.5 else 3 * (2 * percent - 1) ** 2 for percent in percents]
    assert found["curve"] == pytest.approx(curve, abs=3e-3)


@pytest.mark.parametrize("kind", ["discrete", "edm", "flow", "flux"])
def test_ends_of_a_fade_are_exact(results_of: ResultsOf, kind: str) -> None:
    found = results_of("schedules.py")["found"][kind]
    assert found["in"][0] == 0
    assert found["out"][0] == 1


def test_fade_in_leaves_the_first_step_unsteered(host: Host, saved: dict[str, str]) -> None:
    one = {"steps": 1}
    assert torch.equal(
        steered(host, "demo", saved["demo"], **ONLY_MODEL, schedule="fade in", sampling=one), plain(host, "demo", **one)
    )
    faded = steered(host, "demo", saved["demo"], **ONLY_MODEL, schedule="fade out", sampling=one)
    assert torch.equal(faded, steered(host, "demo", saved["demo"], **ONLY_MODEL, sampling=one))


@pytest.mark.parametrize("schedule", ["fade in", "fade out"])
def test_fade_steers_less_than_the_whole_map(host: Host, saved: dict[str, str], schedule: str) -> None:
    none, whole = plain(host, "demo"), steered(host, "demo", saved["demo"], **ONLY_MODEL)
    faded = steered(host, "demo", saved["demo"], **ONLY_MODEL, schedule=schedule)
    assert 0 < (faded - none).abs().mean() < (whole - none).abs().mean()


def test_fade_equals_a_strength_for_each_step(host: Host, saved: dict[str, str]) -> None:
    """Fading out over the first half of six steps: 1 at 0, and less at the two steps after it."""
    faded = steered(host, "demo", saved["demo"], **ONLY_MODEL, schedule="fade out", end_percent=0.5)
    # Where the simple scheduler puts six steps on a schedule of 1000.
    percents = [int(number * 1000 / STEPS) / 1000 for number in range(STEPS)]
    graph = Graph()
    parts = Parts(graph, "demo")
    model = parts.model
    loaded = graph.add("LoadACTMap", name=saved["demo"])
    for percent in (percent for percent in percents if percent < 0.5):
        window: dict[str, Any] = {"start_percent": max(0.0, percent - 0.01), "end_percent": percent + 0.01}
        model = apply(graph, model, loaded, strength=1 - 2 * percent, **ONLY_MODEL, **window)[0]
    parts.sampled(model)
    # Positions are rounded to four decimals.
    torch.testing.assert_close(host.latent(host.run(graph)), faded, atol=2e-3, rtol=2e-3)


def _curved(host: Host, name: str, points: list[tuple[float, float]] | None, **changes: Any) -> Graph:
    graph = Graph()
    parts = Parts(graph, "demo")
    curves: dict[str, Node] = {}
    if points is not None:
        curves["curve"] = graph.add("CurveEditor", curve={"points": points, "interpolation": "linear"})
    loaded = graph.add("LoadACTMap", name=name)
    applied = apply(graph, parts.model, loaded, **ONLY_MODEL, **curves, **changes)
    graph.add("PreviewAny", source=applied[2])
    parts.sampled(applied[0])
    return graph


@pytest.mark.parametrize(
    ("points", "schedule"),
    [([(0.0, 1.0), (1.0, 0.0)], "fade out"), ([(0.0, 0.0), (1.0, 1.0)], "fade in"), ([(0.0, 1.0), (1.0, 1.0)], "")],
)
def test_curve_of_the_host_takes_the_place_of_a_shape(
    host: Host, saved: dict[str, str], points: list[tuple[float, float]], schedule: str
) -> None:
    run = host.run(_curved(host, saved["demo"], points, schedule="fade out"))
    shape = {"schedule": schedule} if schedule else {}
    expected = host.latent(host.run(_curved(host, saved["demo"], None, **shape)))
    torch.testing.assert_close(host.latent(run), expected, atol=1e-4, rtol=1e-4)
    assert any("a curve over the schedule." in text for out in run.outputs.values() for text in out.get("text", ()))


def test_curve_that_is_zero_leaves_nothing(host: Host, saved: dict[str, str]) -> None:
    graph = _curved(host, saved["demo"], [(0.0, 0.0), (1.0, 0.0)])
    before = len(host.log.read_text())
    assert torch.equal(host.latent(host.run(graph)), plain(host, "demo"))
    text = host.log.read_text()[before:]
    assert "its schedule, a curve over the schedule, makes its strength 0 at each step of the run" in text


def test_report_names_the_shape(host: Host, saved: dict[str, str]) -> None:
    run = host.run(_curved(host, saved["demo"], None, schedule="fade out", start_percent=0.1, end_percent=0.6))
    texts = [text for output in run.outputs.values() for text in output.get("text", ())]
    assert any("positive branch, fade out over 0.1 to 0.6 of the schedule." in text for text in texts)
