"""The sites and calls that a map reaches in the host, and the reports on the console."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from graphs import Parts, apply, plain, steered
from safetensors.torch import load_file, save_file

from act_core import ActMap, save_map
from act_core.sites import Site
from act_core.transport import Transport
from tools.comfyui.server import Graph, Host, Node

ONLY_MODEL: dict[str, Any] = {"strength_clip": 0.0}
# The host uses parts of this module but never calls it.
SILENT = "diffusion_model/joint_blocks.0.x_block.attn"
FIRING = "diffusion_model/joint_blocks.0.x_block.attn.proj"
TEXT = "clip_l/text_model.encoder.layers.0.mlp.fc2"


def hand_made(host: Host, name: str, *keys: str, channels: int = 256) -> str:
    """A map file with these sites of the demo model."""
    sites = [Site(*key.split("/", 1), output=None, layout="tokens", channels=channels) for key in keys]
    transports = {site: Transport(torch.full((channels,), 1.1), torch.full((channels,), 0.1)) for site in sites}
    path = host.base / "models" / "act_maps" / f"{name}.safetensors"
    path.parent.mkdir(exist_ok=True)
    return save_map(ActMap(transports), path, title=name).name


def applied(host: Host, name: str, **changes: Any) -> Graph:
    graph = Graph()
    parts = Parts(graph, "demo")
    parts.sampled(apply(graph, parts.model, graph.add("LoadACTMap", name=name), **changes)[0])
    return graph


# --- coverage


def test_map_that_never_fires_is_an_error(host: Host) -> None:
    run = host.fail(applied(host, hand_made(host, "silent", SILENT)))
    assert run.node == "KSampler"
    assert f"'silent' had no effect: 0 of 1 sites fired, 1 never ran (first: {SILENT})" in run.error
    assert "fit a map with other sites" in run.error
    assert run.error.count("\n") == 0


def test_hook_that_never_fires_is_an_error(host: Host) -> None:
    graph = Graph()
    parts = Parts(graph, "demo")
    loaded = graph.add("LoadACTMap", name=hand_made(host, "silent_hook", SILENT))
    hooks = graph.add("CreateACTHook", act_map=loaded, strength=1.0)
    own = {"strength": 1.0, "set_cond_area": "default"}
    parts.sampled(positive=graph.add("ConditioningSetProperties", cond_NEW=parts.encoded("a cat"), hooks=hooks, **own))
    run = host.fail(graph)
    assert run.node == "KSampler"
    assert "'silent_hook' had no effect: 0 of 1 sites fired" in run.error


def test_clip_map_that_never_fires_is_an_error(host: Host) -> None:
    graph = Graph()
    parts = Parts(graph, "demo")
    loaded = graph.add("LoadACTMap", name=hand_made(host, "silent_text", "clip_l/text_model.encoder.layers"))
    clip = graph.add("ApplyACTSteeringCLIP", clip=parts.clip, act_map=loaded, strength_clip=1.0)
    parts.sampled(positive=parts.encoded("a cat", clip))
    run = host.fail(graph)
    assert run.node == "CLIPTextEncode"
    assert "'silent_text' had no effect: 0 of 1 sites fired, 1 never ran (first: clip_l/" in run.error
    assert torch.isfinite(plain(host, "demo")).all()


def test_steered_clip_reports_what_was_found_and_at_which_strength(host: Host) -> None:
    graph = Graph()
    parts = Parts(graph, "demo")
    name = hand_made(host, "partly_text", TEXT, "clip_l/text_model.gone", channels=192)
    loaded = graph.add("LoadACTMap", name=name)
    clip = graph.add("ApplyACTSteeringCLIP", clip=parts.clip, act_map=loaded, strength_clip=0.5)
    shown = graph.add("PreviewAny", source=clip[1])
    parts.sampled(positive=parts.encoded("a cat", clip))
    outputs = host.run(graph).outputs
    (report,) = outputs[clip.number]["text"]
    assert report.startswith("clip_l: 1 of 2 sites found (first missing: clip_l/text_model.gone), strength 0.5.")
    assert outputs[shown.number]["text"] == [report]


def test_console_counts_fired_silent_and_missing_sites(host: Host) -> None:
    name = hand_made(host, "partly", FIRING, SILENT, "diffusion_model/joint_blocks.99.x_block.attn.proj")
    text = host.console(applied(host, name))
    assert "partly: 1 of 3 sites fired, 1 not found (first: diffusion_model/joint_blocks.99" in text
    assert f"1 never ran (first: {SILENT})" in text


def test_console_lists_unconnected_components(host: Host, saved: dict[str, str]) -> None:
    text = host.console(applied(host, saved["demo"], strength=0.31))
    assert "sites fired, clip_l not connected." in text
    assert "not found" not in text

    graph = Graph()
    parts = Parts(graph, "demo")
    both = apply(graph, parts.model, graph.add("LoadACTMap", name=saved["demo"]), parts.clip, strength=0.32)
    parts.sampled(both[0], parts.encoded("a cat", both[1]))
    counted = [line for line in host.console(graph).splitlines() if "sites fired" in line]
    assert len(counted) == 2  # of the text encoder and of the diffusion model
    assert not any("not connected" in line for line in counted)


def test_a_finetune_is_steered_with_a_warning(host: Host, saved: dict[str, str]) -> None:
    folder = host.base / "models" / "diffusion_models"
    weights = load_file(folder / "tiny_flux.safetensors")
    name = next(name for name, weight in weights.items() if weight.ndim == 1)
    save_file({**weights, name: weights[name] + 0.5}, folder / "finetune.safetensors")

    def drawn(strength: float) -> tuple[str, torch.Tensor]:
        graph = Graph()
        parts = Parts(graph, "flux")
        parts.model = graph.add("UNETLoader", unet_name="finetune.safetensors", weight_dtype="default")
        parts.sampled(apply(graph, parts.model, graph.add("LoadACTMap", name=saved["flux"]), strength=strength)[0])
        before = len(host.log.read_text())
        run = host.run(graph)
        return host.log.read_text()[before:], host.latent(run)

    text, moved = drawn(1.0)
    assert "'flux' was fitted on other weights of Flux (diffusion_model)" in text
    assert not torch.equal(moved, drawn(0.0)[1])
    assert "other weights" not in host.console(_flux(saved["flux"]))


def _flux(name: str) -> Graph:
    graph = Graph()
    parts = Parts(graph, "flux")
    parts.sampled(apply(graph, parts.model, graph.add("LoadACTMap", name=name), strength=0.9)[0])
    return graph


# --- which calls are steered


def test_prompt_with_area_keeps_its_branch(host: Host, saved: dict[str, str]) -> None:
    """The host adds a copy of it to the other branch."""

    def drawn(branch: str | None, *, area: bool) -> torch.Tensor:
        graph = Graph()
        parts = Parts(graph, "demo")
        model = parts.model
        if branch is not None:
            model = apply(graph, model, graph.add("LoadACTMap", name=saved["demo"]), branch=branch)[0]
        positive = parts.encoded("a cat on a mat")
        if area:
            whole = {"width": 1.0, "height": 1.0, "x": 0.0, "y": 0.0, "strength": 1.0}
            positive = graph.add("ConditioningSetAreaPercentage", conditioning=positive, **whole)
        parts.sampled(model, positive, steps=1)
        return host.latent(host.run(graph))

    # An area is weighted and divided again, which rounds otherwise.
    close: dict[str, Any] = {"atol": 1e-3, "rtol": 1e-3}
    torch.testing.assert_close(drawn(None, area=True), drawn(None, area=False), **close)
    for branch in ("positive", "negative", "both"):
        torch.testing.assert_close(drawn(branch, area=True), drawn(branch, area=False), **close)
        assert not torch.allclose(drawn(branch, area=False), drawn(None, area=False), **close)


def test_two_windows_side_by_side_act_as_one(host: Host, saved: dict[str, str]) -> None:
    """The fourth of six steps starts exactly at half of the schedule."""
    graph = Graph()
    parts = Parts(graph, "demo")
    loaded = graph.add("LoadACTMap", name=saved["demo"])
    first = apply(graph, parts.model, loaded, end_percent=0.5)[0]
    parts.sampled(apply(graph, first, loaded, start_percent=0.5)[0])
    whole = steered(host, "demo", saved["demo"], **ONLY_MODEL)
    assert torch.equal(host.latent(host.run(graph)), whole)


def broken(graph: Graph, parts: Parts, model: Node) -> None:
    """A node of the host that fails: the decoder of the demo model takes 16 channels."""
    empty = graph.add("EmptyLatentImage", width=64, height=64, batch_size=1)
    vae = graph.add("LoadACTDemoModel")[2]
    image = graph.add(
        "VAEDecode", samples=graph.add("LatentUpscaleBy", samples=empty, upscale_method="area", scale_by=2.0), vae=vae
    )
    graph.add("PreviewImage", images=image)


def broken_in_mid_sampling(graph: Graph, parts: Parts, model: Node) -> None:
    """This guidance looks for the attention of a UNet after the first call of the model, and fails."""
    parts.sampled(graph.add("SelfAttentionGuidance", model=model, scale=0.5, blur_sigma=2.0))


@pytest.mark.parametrize("fails", [broken, broken_in_mid_sampling])
def test_exception_in_another_node_leaves_model_unchanged(host: Host, saved: dict[str, str], fails: Any) -> None:
    before = plain(host, "demo")
    graph = Graph()
    parts = Parts(graph, "demo")
    model = apply(graph, parts.model, graph.add("LoadACTMap", name=saved["demo"]), parts.clip, strength=1.25)
    parts.sampled(model[0], parts.encoded("a cat", model[1]))
    fails(graph, parts, model[0])
    assert not host.fail(graph).node.startswith(("ApplyACT", "LoadACT"))
    assert torch.equal(plain(host, "demo"), before)
