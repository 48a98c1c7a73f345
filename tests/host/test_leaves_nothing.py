"""A map that is removed, bypassed, muted, set to 0 or swapped leaves nothing behind in the host, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from graphs import Parts, apply, free, plain, steered

from tools.comfyui.frontend import Frontend
from tools.comfyui.server import Graph, Host
from tools.comfyui.workflow import add_titles, as_graph

INK = "plain_to_ink.safetensors"
PROMPT = "a cat on a mat"


def graph_of(name: str, *, bypassed: bool = False, **changes: Any) -> Graph:
    """A picture steered in the model and the text encoder; bypassed, its links go past Apply ACT Steering."""
    graph = Graph()
    parts = Parts(graph, "demo")
    applied = apply(graph, parts.model, graph.add("LoadACTMap", name=name), parts.clip, **changes)
    model, clip = (parts.model, parts.clip) if bypassed else (applied[0], applied[1])
    parts.sampled(model, parts.encoded(PROMPT, clip))
    return graph


@pytest.mark.parametrize("kind", ["demo", "sd15", "flux"])
def test_bypassed_node_leaves_nothing_after_a_steered_run(host: Host, saved: dict[str, str], kind: str) -> None:
    steps: dict[str, Any] = {"steps": 2}
    before = plain(host, kind, **steps)
    assert not torch.equal(steered(host, kind, saved[kind], sampling=steps), before)
    # In the same process, with the same loaded model; the node is still in the graph, but nothing is behind it.
    graph = Graph()
    parts = Parts(graph, kind)
    apply(graph, parts.model, graph.add("LoadACTMap", name=saved[kind]), parts.clip)
    parts.sampled(seed=2, **steps)
    other = plain(host, kind, seed=2, **steps)
    assert torch.equal(host.latent(host.run(graph)), other)
    assert torch.equal(plain(host, kind, **steps), before)


def test_bypassed_equals_unsteered(host: Host, saved: dict[str, str]) -> None:
    host.run(graph_of(saved["demo"]))
    assert torch.equal(host.latent(host.run(graph_of(saved["demo"], bypassed=True))), plain(host, "demo"))


def test_strength_zero_leaves_nothing_after_a_steered_run(host: Host, saved: dict[str, str]) -> None:
    before = plain(host, "demo")
    assert not torch.equal(host.latent(host.run(graph_of(saved["demo"]))), before)
    zero = graph_of(saved["demo"], strength=0.0, strength_clip=0.0)
    assert torch.equal(host.latent(host.run(zero)), before)


def test_swapped_map_equals_its_first_run(host: Host, saved: dict[str, str]) -> None:
    first, second = (host.latent(host.run(graph_of(name))) for name in (saved["demo"], INK))
    # Other strengths in between, so that the host does not answer from its cache.
    host.run(graph_of(saved["demo"], strength=0.3))
    free(host, unload_models=False)
    assert torch.equal(host.latent(host.run(graph_of(INK))), second)
    free(host, unload_models=False)
    assert torch.equal(host.latent(host.run(graph_of(saved["demo"]))), first)
    assert not torch.equal(first, second)


def stack(graph: Graph, name: str) -> Any:
    return graph.add("ACTMapStack", map_1=name, strength_1=0.5, map_2=INK, strength_2=0.4)


def loaded(graph: Graph, name: str) -> Any:
    return graph.add("LoadACTMap", name=name)


@pytest.mark.parametrize(
    ("maps", "changes"),
    [
        (stack, {}),
        (loaded, {"sites": "*norm*, clip_l/*"}),
        (loaded, {"blocks": "late"}),
        (loaded, {"schedule": "fade out"}),
        (loaded, {"schedule": "fade in", "blocks": "early", "start_percent": 0.2}),
    ],
)
def test_settings_of_a_map_leave_nothing(
    host: Host, saved: dict[str, str], maps: Callable[[Graph, str], Any], changes: dict[str, Any]
) -> None:
    def run(**more: Any) -> torch.Tensor:
        graph = Graph()
        parts = Parts(graph, "demo")
        applied = apply(graph, parts.model, maps(graph, saved["demo"]), parts.clip, **changes | more)
        parts.sampled(applied[0], parts.encoded(PROMPT, applied[1]))
        return host.latent(host.run(graph))

    before = plain(host, "demo")
    assert not torch.equal(run(), before)
    assert torch.equal(run(strength=0.0, strength_clip=0.0), before)
    free(host, unload_models=False)
    assert torch.equal(plain(host, "demo"), before)


def test_interrupted_stack_leaves_nothing(host: Host, saved: dict[str, str]) -> None:
    before = plain(host, "demo")
    graph = Graph()
    parts = Parts(graph, "demo")
    applied = apply(graph, parts.model, stack(graph, saved["demo"]), parts.clip, schedule="fade out")
    parts.sampled(applied[0], parts.encoded(PROMPT, applied[1]), steps=4000)
    assert host.interrupted(graph, 1.0) == "interrupted"
    free(host, unload_models=False)
    assert torch.equal(plain(host, "demo"), before)


# What the page calls the modes of a node.
ALWAYS, MUTED, BYPASSED = 0, 2, 4
SET_MODE = """([type, mode]) => {
    for (const node of window.app.graph._nodes) if (node.type === type) node.mode = mode;
}"""


@pytest.mark.parametrize("node", ["ApplyACTSteering", "ACTMapStack"])
def test_nodes_that_the_page_bypasses_or_mutes(
    frontend: Frontend, host: Host, saved: dict[str, str], node: str
) -> None:
    """A steered picture and, beside it, a plain one: the page leaves out what is behind a muted node."""
    graph = Graph()
    parts = Parts(graph, "demo")
    applied = apply(graph, parts.model, stack(graph, saved["demo"]), parts.clip)
    parts.sampled(applied[0], parts.encoded(PROMPT, applied[1]), seed=31)
    parts.sampled(seed=32)
    plain_pictures = [plain(host, "demo", seed=31), plain(host, "demo", seed=32)]
    listed = host.get("/object_info")
    add_titles(graph.prompt, listed)
    frontend.page.evaluate("graph => window.app.loadGraphData(graph)", as_graph(graph.prompt, listed))

    def drawn(mode: int) -> list[torch.Tensor]:
        frontend.page.evaluate(SET_MODE, [node, mode])
        free(host, unload_models=False)
        run = frontend.run()
        assert not run.error
        return host.latents(run)

    steered_picture, other = drawn(ALWAYS)
    assert not torch.equal(steered_picture, plain_pictures[0])
    assert torch.equal(other, plain_pictures[1])
    (alone,) = drawn(MUTED)
    assert torch.equal(alone, plain_pictures[1])
    if node == "ApplyACTSteering":
        assert all(torch.equal(*pair) for pair in zip(drawn(BYPASSED), plain_pictures, strict=True))
    again, _ = drawn(ALWAYS)
    assert torch.equal(again, steered_picture)
