"""Inspect, edit, compare and blend maps in the host."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from graphs import KINDS, Parts, apply, steered

from tools.comfyui.server import Graph, Host


@pytest.mark.parametrize("kind", KINDS)
def test_inspect_lists_all_components(host: Host, saved: dict[str, str], kind: str) -> None:
    graph = Graph()
    graph.add("InspectACTMap", act_map=graph.add("LoadACTMap", name=saved[kind]))
    output = host.shown(graph)
    assert "clip_l/" in output["text"][0]
    assert "diffusion_model/" in output["text"][0]
    assert "5 source, such as 'a cat on a mat'" in output["text"][0]


def test_edit_inverts_and_scales(host: Host, saved: dict[str, str]) -> None:
    def drawn(**edit: Any) -> torch.Tensor:
        graph = Graph()
        parts = Parts(graph, "demo")
        edited = graph.add("EditACTMap", act_map=graph.add("LoadACTMap", name=saved["demo"]), **edit)
        parts.sampled(apply(graph, parts.model, edited, strength_clip=0.0))
        return host.latent(host.run(graph))

    half = steered(host, "demo", saved["demo"], strength=0.5, strength_clip=0.0)
    scaled = drawn(invert=False, scale=0.5)
    assert torch.allclose(scaled, half, atol=1e-4)  # the same move, folded in another order of float32 rounding
    assert not torch.allclose(drawn(invert=True, scale=1.0), half, atol=1e-2)


def test_edit_prunes(host: Host, saved: dict[str, str]) -> None:
    def sites(**edit: Any) -> int:
        graph = Graph()
        loaded = graph.add("LoadACTMap", name=saved["demo"])
        graph.add("InspectACTMap", act_map=graph.add("EditACTMap", act_map=loaded, invert=False, scale=1.0, **edit))
        output = host.shown(graph)
        assert len(output["images"]) == 1
        return sum(output["text"][0].count(f"{component}/") for component in ("diffusion_model", "clip_l"))

    assert 0 < sites(keep=0.5) < sites(keep=0.9, keep_by="sites") < sites()


def test_edit_refuses_nan(host: Host, saved: dict[str, str]) -> None:
    graph = Graph()
    loaded = graph.add("LoadACTMap", name=saved["demo"])
    graph.add("InspectACTMap", act_map=graph.add("EditACTMap", act_map=loaded, invert=False, scale=float("nan")))
    run = host.fail(graph)
    assert run.node == "EditACTMap"
    assert "the strength is nan" in run.error.lower()


def test_maps_are_compared_and_blended(host: Host, saved: dict[str, str]) -> None:
    graph = Graph()
    loaded = graph.add("LoadACTMap", name=saved["demo"])
    half = graph.add("EditACTMap", act_map=loaded, invert=False, scale=0.5)
    quarter = {"act_map_2": half, "weight_2": 0.5}
    mixed = graph.add("BlendACTMaps", act_map_1=loaded, weight_1=0.5, **quarter, act_map_3=half, weight_3=-0.5)
    graph.add("CompareACTMaps", act_map_a=loaded, act_map_b=mixed)
    output = host.shown(graph)
    assert "cosine 1.00, size of B 0.50 times that of A" in output["text"][0]
    assert len(output["images"]) == 1


def test_blend_refuses_maps_of_different_models(host: Host, saved: dict[str, str]) -> None:
    graph = Graph()
    one, other = (graph.add("LoadACTMap", name=saved[kind]) for kind in ("demo", "flux"))
    mixed = graph.add("BlendACTMaps", act_map_1=one, weight_1=0.5, act_map_2=other, weight_2=0.5)
    graph.add("InspectACTMap", act_map=mixed)
    run = host.fail(graph)
    assert run.node == "BlendACTMaps"
    assert "different models" in run.error
    assert run.error.count("\n") == 0
