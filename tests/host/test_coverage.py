"""What a map reaches in the host, what is told of it, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from graphs import Parts, apply, plain, steered
from in_host import run_inside
from safetensors.torch import load_file, save_file

from act_core import ActMap, save_map
from act_core.sites import Site
from act_core.transport import Transport
from tools.comfyui.server import Graph, Host, Node, Run

CARD: dict[str, Any] = {"title": "", "author": "", "description": "", "license": ""}
STRENGTHS: dict[str, Any] = {"strength_low": 0.0, "strength_high": 1.0}
ONLY_MODEL: dict[str, Any] = {"strength_clip": 0.0}
# The host asks this module for its parts and never calls it.
SILENT = "diffusion_model/joint_blocks.0.x_block.attn"
FIRING = "diffusion_model/joint_blocks.0.x_block.attn.proj"


def texts(run: Run) -> list[str]:
    """All texts that the nodes of a run show."""
    return [text for output in run.outputs.values() for text in output.get("text", ())]


def hand_made(host: Host, name: str, *keys: str) -> str:
    """A map file with these sites of the demo model."""
    sites = [Site(*key.split("/", 1), output=None, layout="tokens", channels=256) for key in keys]
    transports = {site: Transport(torch.full((256,), 1.1), torch.full((256,), 0.1)) for site in sites}
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
    """Beside it the host puts a copy into the other branch."""

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
    """Of six steps the fourth starts at exactly half of the schedule."""
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
    """This guidance looks for the attention of a UNet, after the first call of the model."""
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


# --- fits


@pytest.mark.parametrize("components", ["model", "both"])
def test_fit_refuses_steered_clip(host: Host, saved: dict[str, str], components: str) -> None:
    graph = Graph()
    parts = Parts(graph, "demo")
    loaded = graph.add("LoadACTMap", name=saved["demo"])
    parts.clip = graph.add("ApplyACTSteeringCLIP", clip=parts.clip, act_map=loaded, strength_clip=1.0)
    graph.add("InspectACTMap", act_map=parts.fit(components=components))
    run = host.fail(graph)
    assert run.node == "FitACTMap"
    assert "This CLIP is already steered by a map" in run.error


def test_fit_takes_size_from_latent(host: Host) -> None:
    def report(**changes: Any) -> str:
        graph = Graph()
        parts = Parts(graph, "flux")
        if changes.pop("latent"):
            changes["latent"] = graph.add("EmptyLatentImage", width=64, height=96, batch_size=3)  # 4 channels, not 16
        graph.add("InspectACTMap", act_map=parts.fit(components="model", sites="mlp", samples=2, **changes))
        (output,) = host.run(graph).outputs.values()
        return output["text"][0]

    assert report(latent=True, width=128, height=128) == report(latent=False, width=64, height=96)


def test_fit_on_video_model(host: Host) -> None:
    def drawn(strength: float) -> torch.Tensor:
        graph = Graph()
        parts = Parts(graph, "wan")
        video = graph.add("EmptyHunyuanLatentVideo", width=64, height=48, length=9, batch_size=1)
        act_map = parts.fit(components="model", samples=3, latent=video)
        graph.add("InspectACTMap", act_map=act_map)
        samples = graph.add(
            "KSampler",
            model=apply(graph, parts.model, act_map, strength=strength)[0],
            positive=parts.encoded("a cat on a mat"),
            negative=parts.encoded(""),
            latent_image=video,
            denoise=1.0,
            **{"seed": 1, "steps": 2, "cfg": 3.0, "sampler_name": "euler", "scheduler": "simple"},
        )
        graph.add("SaveLatent", samples=samples, filename_prefix="video")
        run = host.run(graph)
        if strength:
            report = next(text for text in texts(run) if "WanModel" in text)
            assert report.count("diffusion_model/blocks.") == 2 * 3  # blocks with two attentions and an MLP each
        return host.latent(run)

    moved, before = drawn(1.0), drawn(0.0)
    assert moved.shape == (1, 16, 3, 6, 8)
    assert torch.isfinite(moved).all()
    assert not torch.equal(moved, before)


def test_fit_on_video_model_needs_latent(host: Host) -> None:
    graph = Graph()
    graph.add("InspectACTMap", act_map=Parts(graph, "wan").fit())
    assert "connect an empty latent" in host.fail(graph).error


def test_fit_of_text_encoders_ignores_model(host: Host) -> None:
    graph = Graph()
    graph.add("InspectACTMap", act_map=Parts(graph, "wan").fit(components="text", width=0, height=0))
    (output,) = host.run(graph).outputs.values()
    assert "clip_l/" in output["text"][0]


def test_text_encoder_map_needs_clip(host: Host) -> None:
    graph = Graph()
    fitted = Parts(graph, "demo").fit(components="text")
    graph.add("InspectACTMap", act_map=fitted)
    run = host.run(graph)
    (output,) = run.outputs.values()
    assert "clip_l/" in output["text"][0]
    assert "diffusion_model/" not in output["text"][0]
    assert len(host.images(run)) == 1

    graph = Graph()
    parts = Parts(graph, "demo")
    parts.sampled(apply(graph, parts.model, parts.fit(components="text"))[0])
    assert "connect the CLIP" in host.fail(graph).error


# --- what is refused


@pytest.mark.parametrize("setting", ["strength", "strength_clip", "start_percent", "end_percent"])
def test_apply_refuses_nan(host: Host, saved: dict[str, str], setting: str) -> None:
    run = host.fail(applied(host, saved["demo"], **{setting: float("nan")}))
    assert run.node == "ApplyACTSteering"
    assert "nan" in run.error
    assert run.error.count("\n") == 0


def test_edit_refuses_nan(host: Host, saved: dict[str, str]) -> None:
    graph = Graph()
    loaded = graph.add("LoadACTMap", name=saved["demo"])
    graph.add("InspectACTMap", act_map=graph.add("EditACTMap", act_map=loaded, invert=False, scale=float("nan")))
    run = host.fail(graph)
    assert run.node == "EditACTMap"
    assert "the strength is nan" in run.error.lower()


def saving(host: Host, loaded: str, name: str) -> tuple[Graph, Node]:
    graph = Graph()
    node = graph.add("SaveACTMap", act_map=graph.add("LoadACTMap", name=loaded), name=name, **CARD, **STRENGTHS)
    return graph, node


def test_saved_name_is_listed_name(host: Host, saved: dict[str, str]) -> None:
    graph, node = saving(host, saved["demo"], "styles/ink")
    graph.add("PreviewAny", source=node)
    texts = [output["text"][0] for output in host.run(graph).outputs.values()]
    listed = host.get("/object_info/LoadACTMap")["LoadACTMap"]["input"]["required"]["name"]
    name = str(Path("styles") / "ink.safetensors")
    assert name in texts
    assert name in str(listed)
    assert torch.equal(steered(host, "demo", name), steered(host, "demo", saved["demo"]))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("{saved}/inside", "Choose another name"),  # a file is no folder
        ("long" * 100, "Choose another"),
        ("nul\0byte", "is not a name for a map"),
    ],
)
def test_save_refuses_unwritable_name(host: Host, saved: dict[str, str], name: str, sentence: str) -> None:
    folder = host.base / "models" / "act_maps"
    before = sorted(folder.rglob("*"))
    run: Run = host.fail(saving(host, saved["demo"], name.format(saved=saved["demo"]))[0])
    assert run.node == "SaveACTMap"
    assert sentence in run.error
    assert run.error.count("\n") == 0
    assert sorted(folder.rglob("*")) == before


# --- seen from inside the process


@pytest.fixture(scope="module")
def inside(host_python: Path) -> dict[str, Any]:
    return json.loads(run_inside(host_python, "fits.py"))


def test_repeated_prompts_get_new_noise(inside: dict[str, Any]) -> None:
    samples = 4  # of two prompts
    assert inside["noises"] == 2 * samples
    for one, row in enumerate(inside["alike"]):
        assert [other for other, same in enumerate(row) if same] == sorted({one % samples, one % samples + samples})


@pytest.mark.parametrize("error", [0, 1])  # of the two kinds that the host takes for out of memory
def test_fit_out_of_memory_restarts(inside: dict[str, Any], error: int) -> None:
    found = inside["out of memory"][error]
    assert found["sites"] > 0
    assert "out of memory: started again with 20 prompts at a time" in " ".join(found["report"].split())
    assert "streamed walk" in found["report"]


def test_fit_progress_rises_to_its_end(inside: dict[str, Any]) -> None:
    values, totals = zip(*inside["progress"], strict=True)  # some: the host leaves out what comes too fast
    assert values[0] < values[-1]
    assert list(values) == sorted(values)
    assert set(totals) == {values[-1]}


def test_fit_uses_layer_of_conditioning_when_layers_are_skipped(inside: dict[str, Any]) -> None:
    found = inside["skipped layers"]
    assert found["calls"] == 2 * 4  # four prompts
    assert found["of the used layer"] < 1e-4  # float32, one prompt a batch against two
    assert found["of the last layer"] > 1e-2


def test_text_fit_is_independent_of_batching(inside: dict[str, Any]) -> None:
    assert inside["text one at a time"] < 1e-3  # batches round otherwise, and slopes of few prompts amplify it


def test_fit_names_unknown_model(inside: dict[str, Any]) -> None:
    assert "does not know this kind of model yet (Linear)" in inside["unknown model"]
    assert "set components to text" in inside["unknown model"]


def test_fit_without_known_text_encoder(inside: dict[str, Any]) -> None:
    said, *components = inside["unknown text encoder"]
    assert "does not know the text encoders of this CLIP yet (clip_text_model)" in said
    assert components == ["diffusion_model"]


def test_sweep_of_video(inside: dict[str, Any]) -> None:
    grid, images = inside["video sweep"]
    assert images == [2 * 3, 64, 64, 3]  # two strengths, three frames
    assert len(grid) == 4
    assert grid[0] == 1


@pytest.mark.parametrize("branch", ["positive", "negative"])
def test_rows_appended_by_another_pack_are_left_alone(inside: dict[str, Any], branch: str) -> None:
    found = inside["appended rows"]
    assert found[f"{branch} moved"] > 1e-2
    assert found[f"{branch} changed"] < 1e-3 * found[f"{branch} moved"]  # float32, in a batch of another size


def test_host_does_not_warn_when_a_steered_clip_is_freed(inside: dict[str, Any]) -> None:
    assert set(inside["leak warnings"].values()) == {0}


def test_hook_does_not_keep_model_alive(inside: dict[str, Any]) -> None:
    assert not inside["kept alive by a hook"]


def test_nodes_have_search_aliases(host: Host) -> None:
    for name in ("FitACTMap", "ApplyACTSteering"):
        info = host.get(f"/object_info/{name}")[name]
        # Older hosts have no such list.
        assert "search_aliases" not in info or "activation transport" in info["search_aliases"]
