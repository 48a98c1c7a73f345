"""Probe ACT Map in the host: how far a map moves a prompt and a model, before and after."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from graphs import Parts, apply, free, plain
from PIL import Image

from tools.comfyui.server import Graph, Host, Run

SETTINGS = {"prompt": "a cat on a mat", "strength": 1.0, "seed": 1, "steps": 3, "width": 0, "height": 0}


def probed(host: Host, kind: str, name: str, **changes: Any) -> Run:
    graph = Graph()
    parts = Parts(graph, kind)
    sizes = {} if kind == "demo" else {"width": parts.size, "height": parts.size}
    loaded = graph.add("LoadACTMap", name=name)
    inputs = {"model": parts.model, "clip": parts.clip, "act_map": loaded, **SETTINGS, **sizes}
    graph.add("ProbeACTMap", **inputs | changes)
    return host.run(graph)


def report_of(run: Run) -> str:
    *_, report = (text for output in run.outputs.values() for text in output.get("text", ()))
    return report


@pytest.mark.parametrize("kind", ["demo", "sd15", "sd3", "flux"])
def test_probe_shows_text_encoders_and_model(host: Host, saved: dict[str, str], kind: str) -> None:
    run = probed(host, kind, saved[kind])
    lines = report_of(run).splitlines()
    assert lines[0].startswith("clip_l: ")
    assert "Tokens: " in lines[0]
    assert re.fullmatch(
        r"diffusion model: \d+ sites move by [\d.]+ on average in units of the activation, most at "
        r"diffusion_model/\S+ \([\d.]+\)\. First step [\d.]+, last step [\d.]+\.",
        lines[1],
    )
    assert any("sites found, strength 1" in line for line in lines)
    assert "clip_l: 6 sites" in lines[0] if kind == "demo" else "sites move" in lines[0]
    (picture,) = host.images(run)
    chart = Image.open(picture).convert("RGB")
    assert (240, 110, 30) in {colour for _, colour in chart.getcolors(1 << 24) or ()}


def test_tokens_are_those_of_the_prompt(host: Host, saved: dict[str, str]) -> None:
    line = report_of(probed(host, "demo", saved["demo"], prompt="red cat", strength=0.7)).splitlines()[0]
    words = re.findall(r"(\S+) [\d.]+(?:,|\.$)", line.split("Tokens: ")[1])
    assert len(set(words)) == 3
    assert set(words) <= {"<s>", "red", "cat", "</s>", "<pad>"}


def test_strength_zero_moves_nothing(host: Host, saved: dict[str, str]) -> None:
    lines = report_of(probed(host, "demo", saved["demo"], strength=0.0)).splitlines()
    assert "sites move by 0.00 on average" in lines[0]
    assert "First step 0.00, last step 0.00." in lines[1]


def test_probe_leaves_nothing_behind(host: Host, saved: dict[str, str]) -> None:
    before = plain(host, "demo")
    probed(host, "demo", saved["demo"], seed=5)
    free(host, unload_models=False)
    assert torch.equal(plain(host, "demo"), before)


def test_map_of_text_encoders_alone(host: Host, saved: dict[str, str]) -> None:
    graph = Graph()
    parts = Parts(graph, "demo")
    graph.add("ProbeACTMap", model=parts.model, clip=parts.clip, act_map=parts.fit(components="text"), **SETTINGS)
    lines = report_of(host.run(graph)).splitlines()
    assert lines[0].startswith("clip_l: ")
    assert not any(line.startswith("diffusion") for line in lines)


def test_steered_clip_is_refused(host: Host, saved: dict[str, str]) -> None:
    graph = Graph()
    parts = Parts(graph, "demo")
    loaded = graph.add("LoadACTMap", name=saved["demo"])
    clip = apply(graph, parts.model, loaded, parts.clip)[1]
    graph.add("ProbeACTMap", model=parts.model, clip=clip, act_map=loaded, **SETTINGS)
    run = host.fail(graph)
    assert run.node == "ProbeACTMap"
    assert "connect the CLIP from before Apply ACT Steering" in run.error
