"""Save ACT Map and Load ACT Map in the host; `test_map_names` tests the names of files."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from graphs import KINDS, Parts, apply, plain, steered

from act_core import load_map, save_map
from act_core.components import DIFFUSION_MODEL
from act_core.records import Card, Fingerprint
from tools.comfyui.server import Graph, Host


@pytest.mark.parametrize("kind", KINDS)
def test_map_is_fitted_saved_loaded_and_applied(host: Host, saved: dict[str, str], kind: str) -> None:
    steps: dict[str, Any] = {"steps": 2}
    before = plain(host, kind, **steps)
    moved = steered(host, kind, saved[kind], sampling=steps)
    assert torch.isfinite(moved).all()
    assert (moved - before).abs().mean() > 1e-3 * before.abs().mean()
    assert torch.equal(plain(host, kind, **steps), before)  # the same seed on the same machine, so no tolerance
    assert torch.equal(steered(host, kind, saved[kind], strength=0.0, strength_clip=0.0, sampling=steps), before)


def test_save_keeps_card_unless_changed(host: Host, saved: dict[str, str]) -> None:
    def saved_as(name: str, act_map: Any, **given: Any) -> str:
        usual = {"title": "", "author": "", "description": "", "license": "", "strength_low": 0.0, "strength_high": 1.0}
        graph = Graph()
        loaded = graph.add("LoadACTMap", name=act_map)
        edited = graph.add("EditACTMap", act_map=loaded, invert=False, scale=1.0)
        graph.add("SaveACTMap", act_map=edited, name=name, **usual | given)
        host.run(graph)
        return f"{name}.safetensors"

    told = {"title": "Ink", "author": "A. Friend", "description": "Like ink.", "license": "CC-BY-4.0"}
    first = saved_as("of_a_friend", saved["demo"], **told, strength_low=-2.0, strength_high=3.0)
    second = saved_as("turned", first)
    third = saved_as("renamed", second, title="Colour", strength_high=0.5)
    folder = host.base / "models" / "act_maps"
    cards = [load_map(folder / name).card for name in (first, second, third)]
    assert cards[0] == cards[1]
    assert cards[1] == Card("Ink", "A. Friend", "Like ink.", "CC-BY-4.0", (-2.0, 3.0))
    assert cards[2] == Card("Colour", "A. Friend", "Like ink.", "CC-BY-4.0", (0.0, 0.5))


def test_save_adds_no_range(host: Host, saved: dict[str, str]) -> None:
    assert load_map(host.base / "models" / "act_maps" / saved["demo"]).card.strength_range is None
    graph = Graph()
    parts = Parts(graph, "demo")
    graph.add(
        "PreviewAny", source=apply(graph, parts.model, graph.add("LoadACTMap", name=saved["demo"]), strength=1.5)[2]
    )
    assert "outside the recommended range" not in host.shown(graph)["text"][0]


def test_load_notices_changed_file(host: Host, saved: dict[str, str]) -> None:
    folder = host.base / "models" / "act_maps"
    changing = folder / "changing.safetensors"

    def sites() -> str:
        graph = Graph()
        graph.add("InspectACTMap", act_map=graph.add("LoadACTMap", name=changing.name))
        output = host.shown(graph)
        return output["text"][0]

    changing.write_bytes((folder / saved["demo"]).read_bytes())
    first = sites()
    changing.write_bytes((folder / saved["sd3"]).read_bytes())
    assert sites() != first
    changing.write_bytes(b"no map")
    graph = Graph()
    graph.add("InspectACTMap", act_map=graph.add("LoadACTMap", name=changing.name))
    run = host.fail(graph)
    assert "changing.safetensors is not a usable map" in run.error


def test_load_allows_another_architecture(host: Host, saved: dict[str, str]) -> None:
    folder = host.base / "models" / "act_maps"
    act_map = load_map(folder / saved["sd3"])
    base = {**act_map.record.base, DIFFUSION_MODEL: Fingerprint("Chroma", "", "Chroma")}
    save_map(replace(act_map, record=replace(act_map.record, base=base)), folder / "of_chroma.safetensors")

    def graph(**allowed: bool) -> Graph:
        graph = Graph()
        parts = Parts(graph, "sd3")
        loaded = graph.add("LoadACTMap", name="of_chroma.safetensors", **allowed)
        edited = graph.add("EditACTMap", act_map=loaded, invert=True, scale=0.5)
        parts.sampled(apply(graph, parts.model, edited)[0])
        return graph

    for refused in (graph(), graph(allow_other_architecture=False)):
        run = host.fail(refused)
        assert run.node == "ApplyACTSteering"
        assert "fitted on Chroma (diffusion_model), but this model is OpenAISignatureMMDITWrapper" in run.error
    outputs = host.run(graph(allow_other_architecture=True)).outputs.values()
    assert any("fitted on Chroma" in text for output in outputs for text in output.get("text", ()))
