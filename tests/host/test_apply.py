"""Apply ACT Steering in the host: windows, branches, and refused maps and settings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from graphs import Parts, apply, plain, steered

from tools.comfyui.server import Graph, Host


def test_window_acts_at_its_steps_only(host: Host, saved: dict[str, str]) -> None:
    kind, name = "demo", saved["demo"]
    only_model: dict[str, Any] = {"strength_clip": 0.0}
    whole = steered(host, kind, name, **only_model)
    none = plain(host, kind)
    early = steered(host, kind, name, **only_model, end_percent=0.5)
    late = steered(host, kind, name, **only_model, start_percent=0.5)
    for one, other in ((early, whole), (late, whole), (early, none), (late, none), (early, late)):
        assert not torch.equal(one, other)
    both = steered(host, kind, name, **only_model, start_percent=0.0, end_percent=1.0)
    assert torch.equal(both, whole)


def test_window_follows_schedule_shift_before_or_after(host: Host, saved: dict[str, str]) -> None:
    def drawn(*, first: bool) -> torch.Tensor:
        graph = Graph()
        parts = Parts(graph, "demo")
        loaded = graph.add("LoadACTMap", name=saved["demo"])
        shifted: dict[str, Any] = {"shift": 9.0}
        model = graph.add("ModelSamplingSD3", model=parts.model, **shifted) if first else parts.model
        model = apply(graph, model, loaded, end_percent=0.45)[0]
        parts.sampled(model if first else graph.add("ModelSamplingSD3", model=model, **shifted))
        return host.latent(host.run(graph))

    assert torch.equal(drawn(first=True), drawn(first=False))


def test_branches_without_guidance(host: Host, saved: dict[str, str]) -> None:
    sampling = {"cfg": 1.0}
    before = plain(host, "demo", **sampling)
    only_model: dict[str, Any] = {"strength_clip": 0.0, "sampling": sampling}
    name = saved["demo"]
    assert torch.equal(steered(host, "demo", name, **only_model, branch="negative"), before)
    positive = steered(host, "demo", name, **only_model)
    assert torch.equal(steered(host, "demo", name, **only_model, branch="both"), positive)
    assert not torch.equal(positive, before)


def test_branches_differ_under_guidance(host: Host, saved: dict[str, str]) -> None:
    branches = ("positive", "negative", "both")
    drawn = [steered(host, "demo", saved["demo"], strength_clip=0.0, branch=branch) for branch in branches]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert not torch.equal(drawn[one], drawn[other])


def test_apply_refuses_map_for_another_model(host: Host, saved: dict[str, str]) -> None:
    graph = Graph()
    parts = Parts(graph, "sd15")
    loaded = graph.add("LoadACTMap", name=saved["flux"])
    parts.sampled(apply(graph, parts.model, loaded))
    run = host.fail(graph)
    assert run.node == "ApplyACTSteering"
    assert "'flux' was fitted on" in run.error
    assert "Flux" in run.error
    assert "UNetModel" in run.error
    assert run.error.count("\n") == 0
    assert torch.isfinite(plain(host, "sd15")).all()  # the queue runs on


def test_apply_refuses_map_for_another_size(host: Host, saved: dict[str, str]) -> None:
    graph = Graph()
    parts = Parts(graph, "sd15_wide")
    parts.sampled(apply(graph, parts.model, graph.add("LoadACTMap", name=saved["sd15"])))
    run = host.fail(graph)
    assert run.node == "ApplyACTSteering"
    assert "'sd15' was fitted on clip_text_model (clip_l) and UNetModel (diffusion_model)" in run.error
    assert "does not fit this model, UNetModel: of its " in run.error
    assert "320 in the map, 640 here) and 0 are missing" in run.error
    assert "fit a map for this one" in run.error


def test_clip_output_without_clip_is_an_error(host: Host, saved: dict[str, str]) -> None:
    graph = Graph()
    parts = Parts(graph, "demo")
    applied = apply(graph, parts.model, graph.add("LoadACTMap", name=saved["demo"]))
    parts.sampled(applied[0], parts.encoded("a cat", applied[1]))
    assert "The node that applies the map has no CLIP to pass on" in host.fail(graph).error


@pytest.mark.parametrize("next_node", ["ApplyACTSteering", "ApplyACTSteeringCLIP", "LoraLoader", "FitACTMap"])
def test_missing_clip_is_an_error_in_next_node(host: Host, saved: dict[str, str], next_node: str) -> None:
    graph = Graph()
    parts = Parts(graph, "demo")
    loaded = graph.add("LoadACTMap", name=saved["demo"])
    applied = apply(graph, parts.model, loaded)
    if next_node == "ApplyACTSteering":
        parts.clip = apply(graph, parts.model, loaded, applied[1])[1]
    elif next_node == "ApplyACTSteeringCLIP":
        parts.clip = graph.add(next_node, clip=applied[1], act_map=loaded, strength_clip=1.0)
    elif next_node == "LoraLoader":
        strengths = {"strength_model": 1.0, "strength_clip": 1.0}
        lora = {"lora_name": "tiny.safetensors", **strengths}
        parts.clip = graph.add(next_node, model=parts.model, clip=applied[1], **lora)[1]
    else:
        parts.clip = applied[1]
        graph.add("InspectACTMap", act_map=parts.fit(components="text"))
    parts.sampled()
    run = host.fail(graph)
    assert "has no CLIP to pass on" in run.error
    assert run.error.count("\n") == 0


def applied(host: Host, name: str, **changes: Any) -> Graph:
    graph = Graph()
    parts = Parts(graph, "demo")
    parts.sampled(apply(graph, parts.model, graph.add("LoadACTMap", name=name), **changes)[0])
    return graph


@pytest.mark.parametrize("setting", ["strength", "strength_clip", "start_percent", "end_percent"])
def test_apply_refuses_nan(host: Host, saved: dict[str, str], setting: str) -> None:
    run = host.fail(applied(host, saved["demo"], **{setting: float("nan")}))
    assert run.node == "ApplyACTSteering"
    assert "nan" in run.error
    assert run.error.count("\n") == 0
