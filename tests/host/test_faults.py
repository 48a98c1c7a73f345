"""Faults at every stage in the real host: each is reported, and the next pictures are bit for bit the first ones."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from controls import PROMPT, Control
from graphs import Parts, apply, sweep

from tools.comfyui.server import Graph, Host, Node, started

LAYER = "joint_blocks.1.x_block.mlp.fc2"  # that the map steers
TEXT_LAYER = "text_model.encoder.layers.1.mlp.fc2"
DETAILS = {"title": "", "author": "", "description": "", "license": "", "strength_low": 0.0, "strength_high": 1.0}


def faulty_model(parts: Parts, model: Node, fault: str, call: int = 1) -> Node:
    return parts.graph.add("FaultyLayer", model=model, layer=f"diffusion_model.{LAYER}", fault=fault, call=call)


def faulty_clip(parts: Parts, clip: Node, fault: str, call: int = 1) -> Node:
    layer = f"clip_l.transformer.{TEXT_LAYER}"
    return parts.graph.add("FaultyLayer", clip=clip, layer=layer, fault=fault, call=call)[1]


def is_one_sentence(text: str) -> bool:
    return text.endswith(".") and "\n" not in text and "Traceback" not in text and len(text) < 300


# --- nodes and layers that fail


@pytest.mark.parametrize("after", ["fit", "apply", "sampling"])
def test_node_after_ours_fails(host: Host, saved: dict[str, str], control: Control, after: str) -> None:
    graph = Graph()
    parts = Parts(graph, "demo")
    if after == "fit":
        given = parts.fit()
    else:
        given = apply(graph, parts.model, graph.add("LoadACTMap", name=saved["demo"]), parts.clip)[0]
        if after == "sampling":
            parts.sampled(given, steps=2)
            saving = graph.prompt.pop(str(len(graph.prompt)))
            given = Node(saving["inputs"]["samples"][0])
    graph.add("FaultyNode", given=given)
    run = host.fail(graph)
    assert (run.node, run.error) == ("FaultyNode", "the node failed")
    control.check()


@pytest.mark.parametrize(
    ("fault", "place", "call"),
    [("error", "before", 3), ("error", "after", 1), ("out of memory", "before", 1), ("out of memory", "after", 3)],
)
def test_layer_fails_while_sampling(
    host: Host, saved: dict[str, str], control: Control, fault: str, place: str, call: int
) -> None:
    """The layer is made to fail before or after the map is applied, at the first step or a later one."""
    graph = Graph()
    parts = Parts(graph, "demo")
    model = faulty_model(parts, parts.model, fault, call) if place == "before" else parts.model
    model = apply(graph, model, graph.add("LoadACTMap", name=saved["demo"]))[0]
    parts.sampled(model if place == "before" else faulty_model(parts, model, fault, call))
    run = host.fail(graph)
    assert run.node == "KSampler"
    assert "the layer failed" in run.error or "out of memory" in run.error
    control.check()


@pytest.mark.parametrize(("fault", "place"), [("error", "before"), ("out of memory", "after")])
def test_text_encoder_fails_while_encoding(
    host: Host, saved: dict[str, str], control: Control, fault: str, place: str
) -> None:
    graph = Graph()
    parts = Parts(graph, "demo")
    clip = faulty_clip(parts, parts.clip, fault) if place == "before" else parts.clip
    clip = apply(graph, parts.model, graph.add("LoadACTMap", name=saved["demo"]), clip)[1]
    clip = clip if place == "before" else faulty_clip(parts, clip, fault)
    parts.sampled(parts.model, parts.encoded(PROMPT, clip), steps=2)
    assert host.fail(graph).node == "CLIPTextEncode"
    control.check()


def test_nan_while_sampling_stays_in_its_picture(host: Host, saved: dict[str, str], control: Control) -> None:
    graph = Graph()
    parts = Parts(graph, "demo")
    model = faulty_model(parts, parts.model, "nan", call=2)
    parts.sampled(apply(graph, model, graph.add("LoadACTMap", name=saved["demo"]))[0], steps=2)
    assert host.latent(host.run(graph)).isnan().any()
    control.check()


# Runs that look for the text encoders and the sites, then the source and the target prompts.
@pytest.mark.parametrize(("where", "call"), [("model", n) for n in (1, 2, 3)] + [("clip", n) for n in (1, 2, 3, 4)])
@pytest.mark.parametrize("fault", ["error", "nan"])
def test_layer_fails_in_a_fit(host: Host, control: Control, fault: str, where: str, call: int) -> None:
    graph = Graph()
    parts = Parts(graph, "demo")
    if where == "model":
        parts.model = faulty_model(parts, parts.model, fault, call)
    else:
        parts.clip = faulty_clip(parts, parts.clip, fault, call)
    graph.add("InspectACTMap", act_map=parts.fit(components="model" if where == "model" else "text"))
    looks = call <= {"model": 1, "clip": 2}[where]
    if fault == "nan" and looks:
        host.run(graph)  # values do not matter yet
    else:
        run = host.fail(graph)
        layer = LAYER if where == "model" else TEXT_LAYER
        nan = f"{layer}: Some activations are NaN or infinite"
        assert run.node == "FitACTMap"
        assert run.error == "the layer failed" if fault == "error" else nan in run.error
        assert fault == "error" or is_one_sentence(run.error)
    control.check()


@pytest.mark.parametrize("where", ["model", "clip"])
def test_out_of_memory_once_in_a_fit(host: Host, control: Control, where: str) -> None:
    graph = Graph()
    parts = Parts(graph, "demo")
    if where == "model":
        parts.model = faulty_model(parts, parts.model, "out of memory", call=3)
    else:
        parts.clip = faulty_clip(parts, parts.clip, "out of memory", call=3)
    fitted = parts.fit(components="model" if where == "model" else "text")
    graph.add("PreviewAny", source=fitted[1])
    output = host.shown(graph)
    assert "out of memory: restarted with 5 prompts at a time" in " ".join(output["text"][0].split())
    control.check()


def test_out_of_memory_always_in_a_fit(host: Host, control: Control) -> None:
    graph = Graph()
    parts = Parts(graph, "demo")
    parts.model = faulty_model(parts, parts.model, "out of memory", call=0)
    graph.add("InspectACTMap", act_map=parts.fit(components="model"))
    run = host.fail(graph)
    assert run.error.startswith("The model runs out of memory with few prompts at a time; ")
    assert is_one_sentence(run.error)
    control.check()


def calibration(graph: Graph, parts: Parts, act_map: Node) -> None:
    prompts = {"prompts": "a cat\na house\na boat", "targets": "", "negative": ""}
    sampling = {"seed": 0, "steps": 2, "cfg": 3.0, "sampler_name": "euler", "scheduler": "simple"}
    graph.add(
        "CalibrateACTMap",
        model=parts.model,
        clip=parts.clip,
        act_map=act_map,
        width=64,
        height=64,
        **prompts,
        **sampling,
    )


@pytest.mark.parametrize("node", [sweep, calibration])
def test_layer_fails_in_a_node_that_samples(
    host: Host, saved: dict[str, str], control: Control, node: Callable[[Graph, Parts, Node], None]
) -> None:
    graph = Graph()
    parts = Parts(graph, "demo")
    parts.model = faulty_model(parts, parts.model, "error", call=4)
    node(graph, parts, graph.add("LoadACTMap", name=saved["demo"]))
    assert host.fail(graph).error == "the layer failed"
    control.check()


# --- saving


def saving(parts: Parts, name: str, **changes: Any) -> None:
    act_map = parts.graph.add("LoadACTMap", name="plain_to_ink.safetensors")
    parts.graph.add("SaveACTMap", act_map=act_map, name=name, **DETAILS, **changes)


def exporting(parts: Parts, name: str) -> None:
    act_map = parts.graph.add("LoadACTMap", name="plain_to_ink.safetensors")
    given = {"model": parts.model, "clip": parts.clip, "act_map": act_map, "linear_layers": "compact", "level": -1.0}
    parts.graph.add("ExportACTMapAsLoRA", name=name, **given)


@pytest.mark.parametrize("write", [saving, exporting])
def test_disk_is_full_while_saving(host: Host, control: Control, write: Callable[[Parts, str], None]) -> None:
    folder = host.base / "models" / ("act_maps" if write is saving else "loras")
    before = set(folder.iterdir())
    graph = Graph()
    write(Parts(graph, "demo"), "full")
    host.post("/test/disk", {"state": "full"})
    run = host.fail(graph)
    host.post("/test/disk", {"state": "well"})
    assert is_one_sentence(run.error)
    assert "No space left on device" in run.error
    assert str(folder / "full.safetensors") in run.error
    assert set(folder.iterdir()) == before
    control.check()
    host.run(graph)
    assert set(folder.iterdir()) == before | {folder / "full.safetensors"}


def test_host_is_killed_while_saving(host: Host, host_python: Any, control: Control) -> None:
    """A second host on the same folders is killed; the first one finds no trace of its file."""
    folder = host.base / "models" / "act_maps"
    before = set(folder.iterdir())
    graph = Graph()
    saving(Parts(graph, "demo"), "killed")
    with started(host_python, host.base) as other:
        other.post("/test/disk", {"state": "hung"})
        other.queue(graph)
        end = time.monotonic() + 60
        while not other.get("/test/disk"):
            assert time.monotonic() < end, "the host has not begun to save"
            time.sleep(0.05)
        other.process.kill()
        other.process.wait()
    assert set(folder.iterdir()) == before
    listed = host.get("/object_info/LoadACTMap")["LoadACTMap"]["input"]["required"]["name"]
    assert "killed" not in str(listed)
    host.run(graph)
    assert set(folder.iterdir()) == before | {folder / "killed.safetensors"}
    control.check()
