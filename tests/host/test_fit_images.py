"""Fit ACT Map From Images in the host: a style from pictures, on the demo model and on tiny models of other kinds."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from graphs import Parts, apply, free, plain
from PIL import Image

from act_core import load_map, save_map
from tools.comfyui.server import Graph, Host, Node

# Naming takes longer than all else, and has tests of its own.
_SETTINGS = {"sites": "attention", "steps": 3, "width": 64, "height": 64, "seed": 0, "name_pictures": False}
SUBJECTS = ("cat", "house", "boat", "tree")


def drawn(graph: Graph, parts: Parts, text: str, *, batch: int = 4, seed: int = 0) -> Node:
    """Pictures that the demo model draws of a prompt."""
    empty = graph.add("EmptySD3LatentImage", width=64, height=64, batch_size=batch)
    settings = {"seed": seed, "steps": 8, "cfg": 3.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    samples = graph.add(
        "KSampler",
        model=parts.model,
        positive=parts.encoded(text),
        negative=parts.encoded(""),
        latent_image=empty,
        **settings,
    )
    return graph.add("VAEDecode", samples=samples, vae=parts.vae)


def colours(graph: Graph, *values: int) -> Node:
    """A batch of plain pictures."""
    images = [graph.add("EmptyImage", width=64, height=48, batch_size=1, color=value) for value in values]
    batch = images[0]
    for image in images[1:]:
        batch = graph.add("ImageBatch", image1=batch, image2=image)
    return batch


def fit(graph: Graph, parts: Parts, images: Node, **changes: Any) -> Node:
    settings = {**_SETTINGS, "width": parts.size, "height": parts.size, **changes}
    vae = settings.pop("vae", parts.vae)
    return graph.add("FitACTMapFromImages", model=parts.model, clip=parts.clip, vae=vae, images=images, **settings)


def saturation(path: Path) -> float:
    """Mean difference between the largest and the smallest colour of a pixel; ink has none."""
    values = np.asarray(Image.open(path).convert("RGB"), dtype=float)
    return float((values.max(-1) - values.min(-1)).mean())


def test_demo_model_learns_ink_from_pictures(host: Host) -> None:
    """Pictures in colour, from which another map is refined, are the control.

    Twenty steps left 0.02 of the unsteered saturation, and the control 0.98 of it.
    """
    graph = Graph()
    parts = Parts(graph, "demo")
    models = {"plain": (parts.model, parts.clip)}
    for name, style in (("ink", "black ink icon"), ("control", "flat sticker")):
        images = drawn(graph, parts, f"{SUBJECTS[0]}, {style}")
        for seed, subject in enumerate(SUBJECTS[1:]):
            more = drawn(graph, parts, f"{subject}, {style}", seed=seed)
            images = graph.add("ImageBatch", image1=images, image2=more)
        captions = "\n".join(subject for subject in SUBJECTS for _ in range(4))
        fitted = fit(graph, parts, images, captions=captions, steps=15)
        graph.add("InspectACTMap", act_map=fitted)
        applied = apply(graph, parts.model, fitted, parts.clip)
        models[name] = applied[0], applied[1]
    for name, (model, clip) in models.items():
        own = Parts(graph, "demo")
        own.model, own.clip = model, clip
        graph.add("SaveImage", images=drawn(graph, own, "flower", seed=7), filename_prefix=name)
    run = host.run(graph)
    texts = [text for output in run.outputs.values() for text in output.get("text", ())]
    # Of both maps, on the node that fits it and on the one that shows it.
    assert sum("by refinement" in text for text in texts) == 4
    means: dict[str, list[float]] = {}
    for path in host.images(run):
        means.setdefault(path.name.split("_")[0], []).append(saturation(path))
    found = {name: sum(values) / len(values) for name, values in means.items()}
    assert found["ink"] < 0.6 * found["plain"]
    assert found["ink"] < 0.8 * found["control"]


@pytest.mark.parametrize("kind", ["sd3", "flux"])
def test_other_models_learn_and_are_left_alone(host: Host, kind: str) -> None:
    before = plain(host, kind)
    graph = Graph()
    parts = Parts(graph, kind)
    images = colours(graph, 0xFF0000, 0x00FF00, 0x0000FF)
    graph.add("InspectACTMap", act_map=fit(graph, parts, images, steps=1))
    host.run(graph)
    free(host)  # or the host would answer from its cache
    assert torch.equal(plain(host, kind), before)


@pytest.mark.parametrize(
    ("values", "changes", "reason"),
    [
        ((0xFF0000,), {}, "There is 1 picture"),
        ((0xFF0000, 0xFF0000), {}, "All pictures are the same"),
        ((0xFF0000, 0x0000FF), {"captions": "a cat"}, "2 pictures, but 1 captions"),
        ((0xFF0000, 0x0000FF), {"levels": "0.9, 1.5"}, "The noise level is 1.5; it must be a number from 0 to 1"),
        ((0xFF0000, 0x0000FF), {"levels": "high"}, "give numbers from 0 to 1"),
        ((0xFF0000, 0x0000FF), {"samples": 1}, "There is 1 picture"),
    ],
)
def test_bad_pictures_are_refused(host: Host, values: tuple[int, ...], changes: dict[str, Any], reason: str) -> None:
    graph = Graph()
    parts = Parts(graph, "demo")
    graph.add("InspectACTMap", act_map=fit(graph, parts, colours(graph, *values), **changes))
    run = host.fail(graph)
    assert run.node == "FitACTMapFromImages"
    assert reason in run.error


def test_latents_and_conditioning_in_place_of_pictures(host: Host) -> None:
    def report(**changes: Any) -> str:
        graph = Graph()
        parts = Parts(graph, "demo")
        images = colours(graph, 0xFF0000, 0x00FF00, 0x0000FF)
        own = {"images": images, "vae": parts.vae, "clip": parts.clip}
        if changes.pop("encoded"):
            scaled = graph.add("ImageScale", image=images, upscale_method="lanczos", width=64, height=64, crop="center")
            own = {"latents": graph.add("VAEEncode", pixels=scaled, vae=parts.vae), "conditioning": parts.encoded("")}
        settings = _SETTINGS | {"pattern": "diffusion_model/*attn.proj"}
        graph.add("InspectACTMap", act_map=graph.add("FitACTMapFromImages", model=parts.model, **own, **settings))
        output = host.shown(graph)
        return output["text"][0]

    assert report(encoded=True) == report(encoded=False)


def test_interrupt_keeps_the_map_so_far(host: Host) -> None:
    before = plain(host, "demo")
    graph = Graph()
    parts = Parts(graph, "demo")
    images = colours(graph, 0xFF0000, 0x00FF00, 0x0000FF)  # too few to hold some back and end early
    graph.add("InspectACTMap", act_map=fit(graph, parts, images, steps=10000))
    prompt_id = host.queue(graph)
    time.sleep(6)
    host.post("/interrupt", {})
    run = host.wait(prompt_id)
    assert run.error == ""
    (text,) = run.outputs[next(reversed(graph.prompt))]["text"]
    assert "interrupted before step" in text
    free(host)  # or the host would answer from its cache
    assert torch.equal(plain(host, "demo"), before)


def test_combined_conditioning_is_refused(host: Host) -> None:
    graph = Graph()
    parts = Parts(graph, "demo")
    both = graph.add("ConditioningCombine", conditioning_1=parts.encoded("a cat"), conditioning_2=parts.encoded("rain"))
    images = colours(graph, 0xFF0000, 0x0000FF)
    fitted = graph.add(
        "FitACTMapFromImages", model=parts.model, images=images, vae=parts.vae, conditioning=both, **_SETTINGS
    )
    graph.add("InspectACTMap", act_map=fitted)
    run = host.fail(graph)
    assert run.node == "FitACTMapFromImages"
    assert "combines 2 prompts" in run.error


@pytest.mark.parametrize(
    ("left_out", "reason"),
    [("images", "either images and their VAE, or latents"), ("vae", "needs the model's VAE"), ("clip", "the CLIP")],
)
def test_missing_connection_is_named(host: Host, left_out: str, reason: str) -> None:
    graph = Graph()
    parts = Parts(graph, "demo")
    own = {"images": colours(graph, 0xFF0000, 0x0000FF), "vae": parts.vae, "clip": parts.clip}
    del own[left_out]
    graph.add("InspectACTMap", act_map=graph.add("FitACTMapFromImages", model=parts.model, **own, **_SETTINGS))
    run = host.fail(graph)
    assert run.node == "FitACTMapFromImages"
    assert reason in run.error


def test_vae_of_another_model_is_refused(host: Host) -> None:
    graph = Graph()
    demo, parts = Parts(graph, "demo"), Parts(graph, "sd15")
    images = colours(graph, 0xFF0000, 0x0000FF)
    graph.add("InspectACTMap", act_map=fit(graph, parts, images, vae=demo.vae))
    run = host.fail(graph)
    assert run.node == "FitACTMapFromImages"
    assert "connect the VAE that belongs to the model" in run.error


def applied(host: Host, kind: str, name: str, **changes: Any) -> torch.Tensor:
    graph = Graph()
    parts = Parts(graph, kind)
    parts.sampled(apply(graph, parts.model, graph.add("LoadACTMap", name=name), **changes)[0])
    return host.latent(host.run(graph))


@pytest.mark.parametrize("kind", ["demo", "sd15"])
def test_transport_acts_by_noise_level(host: Host, kind: str) -> None:
    """On a flow and on a model with discrete timesteps: in a part of the schedule, the nearest bin acts."""
    before = plain(host, kind)
    graph = Graph()
    parts = Parts(graph, kind)
    empty = graph.add("EmptySD3LatentImage", width=parts.size, height=parts.size, batch_size=4)
    sampling = {"seed": 3, "steps": 2, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    encoded = {"positive": parts.encoded("ink"), "negative": parts.encoded("")}
    pictures = graph.add("KSampler", model=parts.model, latent_image=empty, **encoded, **sampling)
    settings = {"sites": "attention", "steps": 3, "width": 64, "height": 64, "seed": 0, "estimator": "transport"}
    fitted = graph.add(
        "FitACTMapFromImages",
        model=parts.model,
        latents=pictures,
        conditioning=parts.encoded(""),
        levels="0.4, 0.95",
        samples=3,
        **settings,
    )
    details = {"author": "", "description": "", "license": "", "strength_low": 0.0, "strength_high": 1.0}
    graph.add("SaveACTMap", act_map=fitted, name=f"style_{kind}", title="style", **details)
    host.run(graph)
    folder = host.base / "models" / "act_maps"
    act_map = load_map(folder / f"style_{kind}.safetensors")
    assert act_map.levels == (0.95, 0.4)
    assert act_map.record.target_count == act_map.record.source_count == 3
    assert "source pictures drawn by the model without captions" in act_map.record.notes
    windows = {0.95: {"end_percent": 0.2}, 0.4: {"start_percent": 0.8}}
    for level, window in windows.items():
        name = f"style_{kind}_{level}.safetensors"
        save_map(act_map.at(level), folder / name)
        found = applied(host, kind, f"style_{kind}.safetensors", **window)
        assert torch.equal(found, applied(host, kind, name, **window))
        assert not torch.equal(found, before)
    assert torch.equal(applied(host, kind, f"style_{kind}.safetensors", strength=0.0), before)
    free(host)  # or the host would answer from its cache
    assert torch.equal(plain(host, kind), before)


def test_transport_from_source_images_with_captions(host: Host) -> None:
    graph = Graph()
    parts = Parts(graph, "demo")
    own: dict[str, Any] = {"estimator": "transport", "levels": "0.9, 0.5", "captions": "cat\ndog"}
    own |= {"source_images": colours(graph, 0x00FF00, 0x303030, 0x00FFFF), "source_captions": "fish\nboat\ntree"}
    graph.add("InspectACTMap", act_map=fit(graph, parts, colours(graph, 0xFF0000, 0x0000FF), **own))
    output = host.shown(graph)
    assert "3 source, such as 'fish'; 2 target, such as 'cat'" in output["text"][0]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"captions": "cat\ndog"}, "Only some pictures have captions"),
        ({"same": True}, "source pictures and the target pictures are the same"),
    ],
)
def test_bad_source_images_are_refused(host: Host, changes: dict[str, Any], reason: str) -> None:
    graph = Graph()
    parts = Parts(graph, "demo")
    targets = colours(graph, 0xFF0000, 0x0000FF)
    sources = targets if "same" in changes else colours(graph, 0x00FF00, 0x303030)
    own = {name: value for name, value in changes.items() if name != "same"}
    fitted = fit(graph, parts, targets, source_images=sources, estimator="transport", **own)
    graph.add("InspectACTMap", act_map=fitted)
    run = host.fail(graph)
    assert run.node == "FitACTMapFromImages"
    assert reason in run.error


@pytest.mark.parametrize(("components", "steers_text"), [("both", True), ("model", False)])
def test_components_choose_whether_text_encoders_are_steered(host: Host, components: str, steers_text: bool) -> None:
    graph = Graph()
    parts = Parts(graph, "demo")
    images = colours(graph, 0xFF0000, 0x00FF00, 0x0000FF)
    graph.add("InspectACTMap", act_map=fit(graph, parts, images, components=components))
    output = host.shown(graph)
    assert ("clip_l" in output["text"][0]) == steers_text


def test_refines_a_map_from_prompts(host: Host) -> None:
    graph = Graph()
    parts = Parts(graph, "demo")
    start = parts.fit(sites="attention")
    images = colours(graph, 0xFF0000, 0x00FF00, 0x0000FF)
    graph.add("InspectACTMap", act_map=fit(graph, parts, images, start=start))
    output = host.shown(graph)
    assert "started from the map" in output["text"][0].lower()
