"""ACT Strength Sweep in the host."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from graphs import Parts, apply
from PIL import Image

from tools.comfyui.server import Graph, Host, Node


def sweep(graph: Graph, act_map: str, **changes: Any) -> Node:
    loaded = graph.add("LoadACTDemoModel")
    positive, negative = (graph.add("CLIPTextEncode", text=text, clip=loaded[1]) for text in ("cat", ""))
    settings = {"seed": 0, "steps": 4, "cfg": 3.0, "sampler_name": "euler", "scheduler": "simple", "strengths": "0, 1"}
    inputs = {**settings, "clip": loaded[1], "prompt": "cat", **changes}
    return graph.add(
        "ACTStrengthSweep",
        model=loaded[0],
        act_map=graph.add("LoadACTMap", name=act_map),
        positive=positive,
        negative=negative,
        latent=graph.add("EmptySD3LatentImage", width=64, height=64, batch_size=2),
        vae=loaded[2],
        **{name: value for name, value in inputs.items() if value is not None},
    )


def test_sweep_returns_grid_and_pictures(host: Host, saved: dict[str, str]) -> None:
    graph = Graph()
    graph.add("SaveImage", images=sweep(graph, saved["demo"])[1], filename_prefix="sweep")
    pictures = [Image.open(path) for path in host.images(host.run(graph))]
    sizes = sorted(picture.size for picture in pictures)
    assert sizes[:4] == [(64, 64)] * 4  # two rows at two strengths
    assert sizes[4][0] > 128
    assert sizes[4][1] > 128


def pixels(paths: Iterable[Path], prefix: str) -> list[bytes]:
    return [Image.open(path).tobytes() for path in paths if path.name.startswith(prefix)]


@pytest.mark.parametrize("branch", ["positive", "negative", "both"])
def test_sweep_steers_the_branch_that_is_set(host: Host, saved: dict[str, str], branch: str) -> None:
    graph = Graph()
    swept = sweep(graph, saved["demo"], strengths="1", branch=branch)
    graph.add("SaveImage", images=swept[1], filename_prefix="swept")
    parts = Parts(graph, "demo")
    applied = apply(graph, parts.model, graph.add("LoadACTMap", name=saved["demo"]), parts.clip, branch=branch)
    sampled = graph.add(
        "KSampler",
        model=applied,
        positive=parts.encoded("cat", applied[1]),
        negative=parts.encoded(""),
        latent_image=graph.add("EmptySD3LatentImage", width=64, height=64, batch_size=2),
        **{"seed": 0, "steps": 4, "cfg": 3.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0},
    )
    decoded = graph.add("VAEDecode", samples=sampled, vae=parts.vae)
    graph.add("SaveImage", images=decoded, filename_prefix="applied")
    paths = host.images(host.run(graph))
    assert pixels(paths, "swept") == pixels(paths, "applied")
    assert len(pixels(paths, "swept")) == 2


@pytest.mark.parametrize("change", [{"clip": None}, {"prompt": " "}, {"prompt": None}])
def test_sweep_needs_both_clip_and_prompt(host: Host, saved: dict[str, str], change: dict[str, Any]) -> None:
    graph = Graph()
    sweep(graph, saved["demo"], **change)
    run = host.fail(graph)
    assert run.node == "ACTStrengthSweep"
    assert "give both, or neither" in run.error
