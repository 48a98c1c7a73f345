"""Apply ACT Steering at some of the sites of a map."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from graphs import Parts, apply, plain, steered

from tools.comfyui.server import Graph, Host


def graph_of(name: str, **changes: Any) -> Graph:
    graph = Graph()
    parts = Parts(graph, "demo")
    applied = apply(graph, parts.model, graph.add("LoadACTMap", name=name), parts.clip, **changes)
    graph.add("PreviewAny", source=applied[2])
    parts.sampled(applied[0], parts.encoded("a cat on a mat", applied[1]))
    return graph


@pytest.mark.parametrize(
    ("pattern", "strengths"),
    [("diffusion_model/*", {"strength_clip": 0.0}), ("clip_l/*", {"strength": 0.0}), (" , ", {})],
)
def test_pattern_equals_strength_of_its_component(
    host: Host, saved: dict[str, str], pattern: str, strengths: dict[str, Any]
) -> None:
    found = steered(host, "demo", saved["demo"], sites=pattern)
    assert torch.equal(found, steered(host, "demo", saved["demo"], **strengths))


def test_thirds_differ_and_together_make_the_map(host: Host, saved: dict[str, str]) -> None:
    drawn = {depth: steered(host, "demo", saved["demo"], blocks=depth) for depth in ("early", "middle", "late", "all")}
    for one in drawn:
        assert not torch.equal(drawn[one], plain(host, "demo"))
        assert all(one == other or not torch.equal(drawn[one], drawn[other]) for other in drawn)
    graph = Graph()
    parts = Parts(graph, "demo")
    model, clip = parts.model, parts.clip
    loaded = graph.add("LoadACTMap", name=saved["demo"])
    for depth in ("late", "early", "middle"):
        applied = apply(graph, model, loaded, clip, blocks=depth)
        model, clip = applied[0], applied[1]
    parts.sampled(model, parts.encoded("a cat on a mat", clip))
    assert torch.equal(host.latent(host.run(graph)), drawn["all"])


def test_report_names_the_sites(host: Host, saved: dict[str, str]) -> None:
    run = host.run(graph_of(saved["demo"], sites="diffusion_model/*", blocks="early"))
    texts = [text for output in run.outputs.values() for text in output.get("text", ())]
    first, second = texts[0].splitlines()
    assert first.startswith("Acts at ")
    assert first.endswith(" sites of the map: early blocks, diffusion_model/*.")
    count = first.split()[2]
    assert second.startswith(f"diffusion_model: {count} of {count} sites found, strength 1, ")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"sites": "*nowhere*"}, "No site of the map matches *nowhere*; the first is clip_l/"),
        ({"strength": 21.0}, ""),
    ],
)
def test_nothing_to_steer_is_an_error(
    host: Host, saved: dict[str, str], changes: dict[str, Any], sentence: str
) -> None:
    if not sentence:
        with pytest.raises(AssertionError, match="strength is 21; it must be a number from -20 to 20"):
            host.queue(graph_of(saved["demo"], **changes))
        return
    run = host.fail(graph_of(saved["demo"], **changes))
    assert run.node == "ApplyACTSteering"
    assert sentence in run.error


def test_strength_beyond_the_slider_is_taken(host: Host) -> None:
    limits = host.get("/object_info/ApplyACTSteering")["ApplyACTSteering"]["input"]["required"]["strength"][1]
    assert limits["display"] == "gradientslider"
    assert limits["max"] == 2
    run = host.run(graph_of("plain_to_ink.safetensors", strength=3.0, strength_clip=0.0))
    texts = [text for output in run.outputs.values() for text in output.get("text", ())]
    said = "Strength 3 is outside the recommended range of the map, 0 to 1."
    assert any(text.startswith(said) for text in texts)
    assert torch.isfinite(host.latent(run)).all()
