"""ACT Map Stack in the host: several maps in one node, applied by Apply ACT Steering."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from graphs import Parts, apply, plain, steered

from act_core import load_map, save_map
from tools.comfyui.server import Graph, Host, Node, Run

INK = "plain_to_ink.safetensors"


def texts(run: Run) -> list[str]:
    return [text for output in run.outputs.values() for text in output.get("text", ())]


def drawn(graph: Graph, stack: Node, **changes: Any) -> Graph:
    """A picture that is steered by a stack, with the report of Apply ACT Steering."""
    parts = Parts(graph, "demo")
    applied = apply(graph, parts.model, stack, parts.clip, **changes)
    graph.add("PreviewAny", source=applied[2])
    parts.sampled(applied[0], parts.encoded("a cat on a mat", applied[1]))
    return graph


def stacked(host: Host, changes: dict[str, Any] | None = None, **rows: Any) -> Run:
    graph = Graph()
    return host.run(drawn(graph, graph.add("ACTMapStack", **rows), **changes or {}))


def chained(host: Host, *maps: tuple[str, float], **changes: Any) -> torch.Tensor:
    """The same maps in a chain of Apply ACT Steering."""
    graph = Graph()
    parts = Parts(graph, "demo")
    model, clip = parts.model, parts.clip
    for name, strength in maps:
        strengths = {"strength": strength, "strength_clip": strength}
        applied = apply(graph, model, graph.add("LoadACTMap", name=name), clip, **strengths | changes)
        model, clip = applied[0], applied[1]
    parts.sampled(model, parts.encoded("a cat on a mat", clip))
    return host.latent(host.run(graph))


def test_stack_equals_a_chain_in_order(host: Host, saved: dict[str, str]) -> None:
    name = saved["demo"]
    run = stacked(host, map_1=INK, strength_1=0.5, map_3=name, strength_3=-0.25)
    expected = chained(host, (INK, 0.5), (name, -0.25))
    assert torch.equal(host.latent(run), expected)
    assert not torch.equal(expected, chained(host, (name, -0.25), (INK, 0.5)))


def test_stack_of_one_row_equals_its_map(host: Host, saved: dict[str, str]) -> None:
    assert torch.equal(host.latent(stacked(host, map_8=saved["demo"])), steered(host, "demo", saved["demo"]))


def test_strengths_of_apply_multiply_those_of_rows(host: Host, saved: dict[str, str]) -> None:
    run = stacked(host, {"strength": 0.5, "strength_clip": 0.0}, map_1=saved["demo"], strength_1=0.5)
    assert torch.equal(host.latent(run), steered(host, "demo", saved["demo"], strength=0.25, strength_clip=0.0))


def test_stacks_and_single_maps_join_a_stack(host: Host, saved: dict[str, str]) -> None:
    name = saved["demo"]
    graph = Graph()
    single = graph.add("ACTMapStack", act_maps=graph.add("LoadACTMap", name=name), map_1=INK, strength_1=0.5)
    both = graph.add("ACTMapStack", act_maps=single, map_1=name, strength_1=0.25)
    run = host.run(drawn(graph, both))
    assert torch.equal(host.latent(run), chained(host, (name, 1.0), (INK, 0.5), (name, 0.25)))


@pytest.mark.parametrize("rows", [{}, {"map_1": INK, "on_1": False}, {"map_1": INK, "strength_1": 0.0}])
def test_stack_with_nothing_on_leaves_nothing(host: Host, saved: dict[str, str], rows: dict[str, Any]) -> None:
    steered(host, "demo", saved["demo"])
    assert torch.equal(host.latent(stacked(host, **rows)), plain(host, "demo"))


def test_row_that_is_off_may_name_a_missing_file(host: Host, saved: dict[str, str]) -> None:
    run = stacked(host, map_1=saved["demo"], map_2="gone.safetensors", on_2=False)
    assert torch.equal(host.latent(run), steered(host, "demo", saved["demo"]))
    graph = Graph()
    with pytest.raises(AssertionError, match=r"Row 2 of ACT Map Stack: there is no map gone\.safetensors"):
        host.run(drawn(graph, graph.add("ACTMapStack", map_2="gone.safetensors")))


def test_reports_name_each_row(host: Host, saved: dict[str, str]) -> None:
    run = stacked(host, map_1=INK, strength_1=1.5, map_2=saved["demo"], on_2=False, map_4=saved["demo"])
    of_stack = next(text for text in texts(run) if "recommended" in text and "sites found" not in text)
    first, second = of_stack.splitlines()
    assert first == f"Row 1 of ACT Map Stack, {INK}: strength 1.5, 0 to 1 recommended."
    assert second.startswith(f"Row 4 of ACT Map Stack, {saved['demo']}: strength 1, ")
    of_apply = next(text for text in texts(run) if "sites found" in text).splitlines()
    assert of_apply[0] == f"Row 1 of ACT Map Stack, {INK}:"
    assert of_apply[1] == "  Strength 1.5 is outside the recommended range of the map, 0 to 1."
    assert f"Row 4 of ACT Map Stack, {saved['demo']}:" in of_apply
    assert sum("sites found, strength 1.5" in line for line in of_apply) == 2  # model and text encoder


def test_errors_name_the_row(host: Host, saved: dict[str, str]) -> None:
    graph = Graph()
    stack = graph.add("ACTMapStack", map_1=saved["demo"], map_2=saved["flux"])
    run = host.fail(drawn(graph, stack))
    assert run.node == "ApplyACTSteering"
    assert run.error.startswith(f"Row 2 of ACT Map Stack, {saved['flux']}: The map 'flux' was fitted on ")
    (host.base / "models" / "act_maps" / "broken.safetensors").write_bytes(b"no map")
    graph = Graph()
    run = host.fail(drawn(graph, graph.add("ACTMapStack", map_3="broken.safetensors")))
    assert run.node == "ACTMapStack"
    assert run.error.startswith("Row 3 of ACT Map Stack, broken.safetensors: ")
    graph = Graph()
    run = host.fail(drawn(graph, graph.add("ACTMapStack", map_1=INK, strength_1=float("nan"))))
    assert run.error.startswith(f"Row 1 of ACT Map Stack, {INK}: ")
    assert run.error.count("\n") == 0


def test_stack_notices_a_changed_file(host: Host, saved: dict[str, str]) -> None:
    path = host.base / "models" / "act_maps" / "changing_row.safetensors"
    act_map = load_map(host.base / "models" / "act_maps" / saved["demo"])
    found: list[torch.Tensor] = []
    for strength in (1.0, -1.0):
        save_map(act_map.scaled(strength), path)
        found.append(host.latent(stacked(host, map_1=path.name)))
    assert not torch.equal(*found)


def test_stack_is_applied_without_clip(host: Host, saved: dict[str, str]) -> None:
    graph = Graph()
    parts = Parts(graph, "demo")
    stack = graph.add("ACTMapStack", map_1=saved["demo"], strength_1=0.5, map_2=INK, strength_2=0.5)
    parts.sampled(apply(graph, parts.model, stack)[0])
    expected = chained(host, (saved["demo"], 0.5), (INK, 0.5), strength_clip=0.0)
    assert torch.equal(host.latent(host.run(graph)), expected)


@pytest.mark.parametrize("node", ["InspectACTMap", "EditACTMap"])
def test_other_nodes_refuse_a_stack(host: Host, node: str) -> None:
    graph = Graph()
    graph.add(node, act_map=graph.add("ACTMapStack", map_1=INK))
    if node == "EditACTMap":
        graph.add("InspectACTMap", act_map=Node("2"))
        graph.prompt["2"]["inputs"] |= {"invert": False, "scale": 1.0}
    with pytest.raises(AssertionError, match="type"):
        host.queue(graph)
