"""Load and Apply ACT Map in the host: it does what Load ACT Map and Apply ACT Steering do."""

from __future__ import annotations

import pytest
import torch
from graphs import Parts, plain, steered

from act_core import load_map, save_map
from tools.comfyui.server import PACK, Graph, Host, Run


def loaded(host: Host, name: str, strength: float, strength_clip: float, *, clip: bool = True) -> Run:
    graph = Graph()
    parts = Parts(graph, "demo")
    clips = {"clip": parts.clip} if clip else {}
    node = graph.add(
        "ACTMapLoader", model=parts.model, name=name, strength=strength, strength_clip=strength_clip, **clips
    )
    positive = parts.encoded("a cat on a mat", node[1] if clip else parts.clip)
    parts.sampled(node[0], positive)
    return host.run(graph)


@pytest.mark.parametrize(("strength", "strength_clip"), [(1.0, 1.0), (0.5, 0.0), (-1.0, 0.3)])
def test_loader_equals_load_and_apply(host: Host, saved: dict[str, str], strength: float, strength_clip: float) -> None:
    found = host.latent(loaded(host, saved["demo"], strength, strength_clip))
    expected = steered(host, "demo", saved["demo"], strength=strength, strength_clip=strength_clip)
    assert torch.equal(found, expected)


def test_loader_at_strength_zero_changes_nothing(host: Host, saved: dict[str, str]) -> None:
    assert torch.equal(host.latent(loaded(host, saved["demo"], 0.0, 0.0)), plain(host, "demo"))


def test_loader_without_clip_steers_the_model_alone(host: Host, saved: dict[str, str]) -> None:
    found = host.latent(loaded(host, saved["demo"], 1.0, 1.0, clip=False))
    assert torch.equal(found, host.latent(loaded(host, saved["demo"], 1.0, 0.0)))


def test_loader_reports_range_and_shows_cover(host: Host) -> None:
    run = loaded(host, "plain_to_ink.safetensors", 1.0, 1.0)
    (report,) = (text for output in run.outputs.values() for text in output.get("text", ()))
    assert "0 to 1 recommended" in report
    assert "sites found" in report
    assert len(host.images(run)) == 1


def test_load_shows_what_the_map_is(host: Host) -> None:
    graph = Graph()
    graph.add("InspectACTMap", act_map=graph.add("LoadACTMap", name="plain_to_ink.safetensors"))
    shown = host.run(graph).outputs["1"]
    assert len(shown["images"]) == 1
    (text,) = shown["text"]
    assert text.splitlines()[:2] == [
        "Plain to ink: 0 to 1 recommended.",
        "For clip_text_model + OpenAISignatureMMDITWrapper.",
    ]
    assert "Apply ACT Steering with model and CLIP at strength 0 to 1." in text.splitlines()
    (measured,) = load_map(PACK / "pretrained_maps" / "plain_to_ink.safetensors").evidence
    assert f"Measured: {measured.measure} {measured.value:.3g} ({measured.low:.3g} to {measured.high:.3g})" in text
    assert "/" not in text  # the list of sites is in the report, which others read


def test_load_of_a_bare_map_shows_no_picture(host: Host, saved: dict[str, str]) -> None:
    graph = Graph()
    graph.add("InspectACTMap", act_map=graph.add("LoadACTMap", name=saved["demo"]))
    shown = host.run(graph).outputs["1"]
    assert "images" not in shown
    assert shown["text"][0].startswith("demo: no recommended range.")


def test_loader_notices_a_changed_file(host: Host, saved: dict[str, str]) -> None:
    path = host.base / "models" / "act_maps" / "changing.safetensors"
    act_map = load_map(host.base / "models" / "act_maps" / saved["demo"])
    found: list[torch.Tensor] = []
    for strength in (1.0, -1.0):
        save_map(act_map.scaled(strength), path)
        found.append(host.latent(loaded(host, path.name, 1.0, 1.0)))
    assert not torch.equal(*found)


def test_loader_names_a_missing_map(host: Host) -> None:
    graph = Graph()
    parts = Parts(graph, "demo")
    node = graph.add("ACTMapLoader", model=parts.model, name="gone.safetensors", strength=1.0, strength_clip=1.0)
    parts.sampled(node[0])
    with pytest.raises(AssertionError, match=r"gone\.safetensors"):
        host.run(graph)
