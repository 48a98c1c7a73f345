"""Fit ACT Map in the host: models, sizes, memory, and refused inputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from graphs import SOURCE, TARGET, Parts, apply, plain
from in_host import ResultsOf, run_inside

from act_core import load_map
from tools.comfyui.server import Graph, Host, Run

STYLES_OF_DEMO = ("flat sticker", "glossy cartoon", "3d render", "black ink icon")


def texts(run: Run) -> list[str]:
    """All texts that the nodes of a run show."""
    return [text for output in run.outputs.values() for text in output.get("text", ())]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"source": "one prompt only"}, "needs at least two source prompts, one per line, but got 1"),
        ({"target": SOURCE}, "The source prompts and the target prompts are the same"),
        ({"width": 4096, "height": 4096}, "Pictures of 4096 x 4096 are too large for this model; it goes up to 128."),
    ],
)
def test_refused_fit_leaves_model_unchanged(host: Host, change: dict[str, Any], sentence: str) -> None:
    before = plain(host, "demo")
    graph = Graph()
    parts = Parts(graph, "demo")
    parts.sampled(apply(graph, parts.model, parts.fit(**change)))
    run = host.fail(graph)
    assert run.node == "FitACTMap"
    assert sentence in run.error
    assert torch.equal(plain(host, "demo"), before)


@pytest.mark.parametrize("components", ["model", "text", "both"])
def test_record_names_each_prompt_once(host: Host, components: str) -> None:
    graph = Graph()
    fitted = Parts(graph, "demo").fit(components=components, samples=12)
    card = {"title": "", "author": "", "description": "", "license": "", "strength_low": 0.0, "strength_high": 1.0}
    graph.add("SaveACTMap", act_map=fitted, name=f"named_once_{components}", **card)
    report = host.run(graph).outputs[fitted.number]["text"][0]
    assert "prompts         5 source, such as 'a cat on a mat'; 5 target" in report
    assert "Used only" not in report
    record = load_map(host.base / "models" / "act_maps" / f"named_once_{components}.safetensors").record
    assert record.source_prompts == tuple(SOURCE.splitlines())
    assert record.target_prompts == tuple(TARGET.splitlines())
    assert (record.source_count, record.target_count) == (5, 5)


def test_report_counts_unused_prompts(host: Host) -> None:
    graph = Graph()
    fitted = Parts(graph, "demo").fit(source=f"{SOURCE}\na fish", samples=5)
    graph.add("PreviewAny", source=fitted)
    report = host.run(graph).outputs[fitted.number]["text"][0]
    assert "Used only the first 5 of 6 source prompts; raise samples to use more." in report
    assert "prompts         5 source" in report


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


@pytest.mark.parametrize("estimator", ["linear", "project"])
def test_gated_fit_removes_only_what_the_source_names(host: Host, estimator: str) -> None:
    def drawn(subject: str, strength: float) -> torch.Tensor:
        graph = Graph()
        parts = Parts(graph, "demo")
        things = ("cat", "house", "boat", "tree", "dog", "car", "cup", "star")
        source = "\n".join(f"red heart, {style}" for style in STYLES_OF_DEMO for _ in range(2))
        target = "\n".join(f"{thing}, {style}" for style in STYLES_OF_DEMO[:2] for thing in things[:4])
        act_map = parts.fit(source=source, target=target, estimator=estimator, support="gated", samples=8)
        applied = apply(graph, parts.model, act_map, parts.clip, strength=strength, strength_clip=strength)
        parts.sampled(applied[0], parts.encoded(subject, applied[1]))
        return host.latent(host.run(graph))

    def moved(subject: str) -> float:
        before = drawn(subject, 0.0)
        return float((drawn(subject, 1.5) - before).norm() / before.norm())

    asked, other = moved("red heart, flat sticker"), moved("tree, flat sticker")
    assert asked > 0.1
    assert other < asked / 4


def test_gated_fit_needs_more_prompts(host: Host) -> None:
    graph = Graph()
    act_map = Parts(graph, "demo").fit(source="a heart\na face", target="a cat\na car", support="gated", samples=2)
    graph.add("InspectACTMap", act_map=act_map)
    run = host.fail(graph)
    assert run.node == "FitACTMap"
    assert "needs at least 4 source and 4 target prompts" in run.error


def test_seed_chooses_the_noise_of_a_fit(host: Host) -> None:
    graph = Graph()
    card = {"title": "", "author": "", "description": "", "license": "", "strength_low": 0.0, "strength_high": 1.0}
    for seed in (1, 2):
        fitted = Parts(graph, "demo").fit(components="model", sites="mlp", samples=2, seed=seed)
        graph.add("SaveACTMap", act_map=fitted, name=f"seed_{seed}", **card)
    host.run(graph)
    one, other = (load_map(host.base / "models" / "act_maps" / f"seed_{seed}.safetensors") for seed in (1, 2))
    assert (one.record.seed, other.record.seed) == (1, 2)
    assert all(one.difference(other).values())


def test_fit_takes_size_from_latent(host: Host) -> None:
    def report(**changes: Any) -> str:
        graph = Graph()
        parts = Parts(graph, "flux")
        if changes.pop("latent"):
            changes["latent"] = graph.add("EmptyLatentImage", width=64, height=96, batch_size=3)  # 4 channels, not 16
        graph.add("InspectACTMap", act_map=parts.fit(components="model", sites="mlp", samples=2, **changes))
        output = host.shown(graph)
        return output["text"][0]

    fitted = report(latent=False, width=64, height=96)
    assert report(latent=True, width=128, height=128) == fitted
    # Rounded down to whole tokens of 2 x 2 latents.
    assert report(latent=False, width=72, height=104) == fitted


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


def test_fit_on_video_model_takes_a_single_frame(host: Host) -> None:
    def summary(frames: int, **changes: Any) -> str:
        graph = Graph()
        size = {"width": 64, "height": 48}
        if frames:
            changes["latent"] = graph.add("EmptyHunyuanLatentVideo", **size, length=frames, batch_size=1)
        graph.add("InspectACTMap", act_map=Parts(graph, "wan").fit(components="model", samples=2, **size, **changes))
        return host.shown(graph)["text"][0]

    assert summary(0) == summary(1) != summary(9)


def test_fit_takes_a_pattern_in_place_of_sites(host: Host) -> None:
    graph = Graph()
    act_map = Parts(graph, "sd3").fit(components="model", samples=2, sites="norms", pattern=" *.x_block.mlp.fc2 ")
    graph.add("InspectACTMap", act_map=act_map)
    (text,) = host.shown(graph)["text"]
    assert "x_block.mlp.fc2" in text
    assert "norm" not in text.split("diffusion_model/", 1)[1]


def test_fit_names_layers_close_to_a_wrong_pattern(host: Host) -> None:
    graph = Graph()
    graph.add("InspectACTMap", act_map=Parts(graph, "sd3").fit(components="model", pattern="*.x_blok.mlp"))
    run = host.fail(graph)
    assert run.node == "FitACTMap"
    assert "x_block.mlp" in run.error


def test_fit_of_text_encoders_ignores_model(host: Host) -> None:
    graph = Graph()
    graph.add("InspectACTMap", act_map=Parts(graph, "wan").fit(components="text", width=0, height=0))
    output = host.shown(graph)
    assert "clip_l/" in output["text"][0]


def test_text_encoder_map_needs_clip(host: Host) -> None:
    graph = Graph()
    fitted = Parts(graph, "demo").fit(components="text")
    graph.add("InspectACTMap", act_map=fitted)
    output = host.shown(graph)
    assert "clip_l/" in output["text"][0]
    assert "diffusion_model/" not in output["text"][0]
    assert len(output["images"]) == 1

    graph = Graph()
    parts = Parts(graph, "demo")
    parts.sampled(apply(graph, parts.model, parts.fit(components="text"))[0])
    assert "connect the CLIP" in host.fail(graph).error


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
    assert "out of memory: restarted with 16 prompts at a time, others parked" in " ".join(found["report"].split())
    assert "exact walk" in found["report"]


def test_fit_shares_its_work_with_a_copy_on_another_device(results_of: ResultsOf) -> None:
    # Two kinds of model; each of the four micro-batches of three prompts, and the search for the sites on the model.
    found = results_of("replicas.py")
    assert found["calls"] == {"model": 6, "copy": 4}
    assert found["differences"] == [0, 0]
    assert found["patched"] == []


def test_parked_fit_equals_one_without_a_budget(inside: dict[str, Any]) -> None:
    found = inside["parked"]
    assert set(found["walks"]) == {"exact"}
    assert min(found["sites"]) > 5
    assert found["differences"] == [0, 0, 0]


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


def test_fit_on_audio_model_needs_latent(inside: dict[str, Any]) -> None:
    without, fitted = inside["audio model"]
    assert "connect an empty latent of the kind that it samples" in without
    assert "sites of the diffusion model found by rule" in fitted


def test_fit_takes_a_text_encoder_without_presets(inside: dict[str, Any]) -> None:
    assert inside["text encoder by rule"] == {"components": ["clip_l"], "notes": ["sites of the clip l found by rule"]}


def test_fit_without_text_encoder(inside: dict[str, Any]) -> None:
    assert inside["no text encoder"] == (
        "This CLIP has no text encoder that Fit ACT Map can steer; set components to model."
    )
