"""Calibrate ACT Map in the host, and the nodes that use its even scale."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from graphs import Parts, apply, plain, steered
from test_sweep import sweep

from act_core import ActMap, load_map, save_map
from act_core.calibration import Calibration
from tools.comfyui.server import PACK, Graph, Host, Node, Run

SHIPPED = "plain_to_ink.safetensors"
FOUND = Calibration((-0.8, 0.0, 1.2), (-0.5, 0.0, 1.0), (0.9, 1.0, 0.7), (0.0, 0.75, 1.0), (0.0, -0.5), "inverse")


def calibrate(graph: Graph, act_map: Node, **changes: Any) -> Node:
    parts = Parts(graph, "demo")
    settings = {"prompts": "", "targets": "", "negative": "", "steps": 4, "cfg": 3.0, "sampler_name": "euler"}
    settings |= {"scheduler": "simple", "width": 0, "height": 0, "seed": 0}
    inputs = {"model": parts.model, "clip": parts.clip, **settings, **changes}
    return graph.add("CalibrateACTMap", act_map=act_map, **inputs)


@pytest.fixture(scope="module")
def calibrated(host: Host, saved: dict[str, str]) -> str:
    """A map of the demo model with a calibration that was made up."""
    folder = host.base / "models" / "act_maps"
    save_map(replace(_map(host, saved["demo"]), calibration=FOUND), folder / "calibrated.safetensors")
    return "calibrated.safetensors"


def _map(host: Host, name: str) -> ActMap:
    return load_map(host.base / "models" / "act_maps" / name)


def texts(run: Run) -> str:
    return "\n".join(text for output in run.outputs.values() for text in output.get("text", ()))


def test_calibrated_map_is_saved_loaded_and_shown(host: Host) -> None:
    graph = Graph()
    node = calibrate(graph, graph.add("LoadACTMap", name=SHIPPED))
    card = {"title": "", "author": "", "description": "", "license": "", "strength_low": 0.0, "strength_high": 1.0}
    graph.add("SaveACTMap", act_map=node[0], name="measured", **card)
    run = host.run(graph)
    assert "0 to 1 is strength 0 to" in texts(run)
    assert len(host.images(run)) == 2  # the curve, and the cover of the loaded map
    found = _map(host, "measured.safetensors")
    low, high = found.calibrated.range
    assert 0.75 < high < 1.5  # ink is complete near strength 1
    assert low <= 0
    assert found.card.strength_range == (pytest.approx(0, abs=1.5), pytest.approx(high, abs=0.01))
    graph = Graph()
    graph.add("InspectACTMap", act_map=graph.add("LoadACTMap", name="measured.safetensors"))
    assert f"0 to 1 is strength 0 to {high:.2f}" in texts(host.run(graph))


def test_calibration_depends_on_the_branch(host: Host) -> None:
    card = {"title": "", "author": "", "description": "", "license": "", "strength_low": 0.0, "strength_high": 1.0}
    graph = Graph()
    for branch in ("positive", "both"):
        settings = {"prompts": "cat\nhouse\nrocket", "steps": 1, "branch": branch}
        node = calibrate(graph, graph.add("LoadACTMap", name="pictures_sepia.safetensors"), **settings)
        graph.add("SaveACTMap", act_map=node, name=f"measured_on_{branch}", **card)
    host.run(graph)
    positive, both = (_map(host, f"measured_on_{branch}.safetensors").calibrated for branch in ("positive", "both"))
    assert positive.kept != both.kept


def test_positions_are_strengths_of_the_even_scale(host: Host, calibrated: str) -> None:
    raw: dict[str, Any] = {"strength": 0.75, "strength_clip": 1.0}
    even: dict[str, Any] = {"strength": 0.5, "strength_clip": 1.0, "calibrated": True}
    assert torch.equal(steered(host, "demo", calibrated, **even), steered(host, "demo", calibrated, **raw))
    even = {"strength": 0.0, "strength_clip": 0.0, "calibrated": True}
    assert torch.equal(steered(host, "demo", calibrated, **even), plain(host, "demo"))


def test_position_below_zero_is_the_measured_opposite(host: Host, calibrated: str) -> None:
    inverse = "inverse_of_calibrated.safetensors"
    save_map(_map(host, calibrated).inverse(), host.base / "models" / "act_maps" / inverse)
    even: dict[str, Any] = {"strength": -1.0, "strength_clip": -1.0, "calibrated": True}
    expected = steered(host, "demo", inverse, strength=0.5, strength_clip=0.5)
    assert torch.equal(steered(host, "demo", calibrated, **even), expected)


@pytest.mark.parametrize(("position", "is_outside"), [(1.0, False), (-1.0, False), (-1.2, True)])
def test_report_knows_the_range_of_the_measured_opposite(host: Host, position: float, is_outside: bool) -> None:
    longer, name = replace(FOUND, down=(0.0, -1.755)), "longer_opposite.safetensors"
    act_map = replace(load_map(PACK / "pretrained_maps" / SHIPPED), calibration=longer)
    save_map(act_map, host.base / "models" / "act_maps" / name, strength_range=longer.strength_range)
    graph = Graph()
    parts = Parts(graph, "demo")
    changes: dict[str, Any] = {"strength": position, "strength_clip": 0.0, "calibrated": True}
    node = apply(graph, parts.model, graph.add("LoadACTMap", name=name), parts.clip, **changes)
    parts.sampled(node[0], parts.encoded("a cat on a mat", node[1]))
    assert ("is outside the recommended range" in texts(host.run(graph))) is is_outside


def test_calibrated_scale_on_a_map_that_has_none_is_refused(host: Host, saved: dict[str, str]) -> None:
    graph = Graph()
    parts = Parts(graph, "demo")
    act_map = graph.add("LoadACTMap", name=saved["demo"])
    parts.sampled(apply(graph, parts.model, act_map, calibrated=True)[0])
    run = host.fail(graph)
    assert run.node == "ApplyACTSteering"
    assert "is not calibrated; run Calibrate ACT Map" in run.error


def test_sweep_and_loader_take_positions(host: Host, calibrated: str) -> None:
    graph = Graph()
    sweep(graph, calibrated, calibrated=True)
    assert "sites" in texts(host.run(graph))
    graph = Graph()
    parts = Parts(graph, "demo")
    given: dict[str, Any] = {"name": calibrated, "strength": 0.5, "strength_clip": 1.0, "calibrated": True}
    node = graph.add("ACTMapLoader", model=parts.model, clip=parts.clip, **given)
    parts.sampled(node[0], parts.encoded("a cat on a mat", node[1]))
    expected = steered(host, "demo", calibrated, strength=0.75, strength_clip=1.0)
    assert torch.equal(host.latent(host.run(graph)), expected)


def test_steered_model_is_not_calibrated(host: Host) -> None:
    graph = Graph()
    act_map = graph.add("LoadACTMap", name=SHIPPED)
    steered_model = apply(graph, Parts(graph, "demo").model, act_map)[0]
    calibrate(graph, act_map, model=steered_model)
    assert "already steered" in host.fail(graph).error
