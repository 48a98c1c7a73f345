"""Our nodes together with ComfyUI's own: branches, chains, hooks, interrupts, several at once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from graphs import Parts, apply, free, plain, steered

from act_core import ActMap, load_map
from tools.comfyui.server import Graph, Host, Node

# One step, so that what a guider makes of its branches is a sum that can be checked; float32 in another order.
ONE_STEP: dict[str, Any] = {"atol": 2e-3, "rtol": 1e-3}
PROMPT = "a cat on a mat"


def one_step(
    host: Host,
    kind: str,
    *,
    guider: Callable[[Parts, Node], Node],
    name: str = "",
    change: Callable[[Graph, Node], Node] = lambda graph, model: model,
    **changes: Any,
) -> torch.Tensor:
    """The latent after one step of a guider; steered if a map is given."""
    graph = Graph()
    parts = Parts(graph, kind)
    model = parts.model
    if name:
        model = apply(graph, model, graph.add("LoadACTMap", name=name), **changes)[0]
    model = change(graph, model)
    empty = graph.add("EmptySD3LatentImage", width=parts.size, height=parts.size, batch_size=1)
    samples = graph.add(
        "SamplerCustomAdvanced",
        noise=graph.add("RandomNoise", noise_seed=1),
        guider=guider(parts, model),
        sampler=graph.add("KSamplerSelect", sampler_name="euler"),
        sigmas=graph.add("BasicScheduler", model=model, scheduler="simple", steps=1, denoise=1.0),
        latent_image=empty,
    )
    graph.add("SaveLatent", samples=samples, filename_prefix="one")
    return host.latent(host.run(graph))


def alone(text: str) -> Callable[[Parts, Node], Node]:
    return lambda parts, model: parts.graph.add("BasicGuider", model=model, conditioning=parts.encoded(text))


def cfg(scale: float) -> Callable[[Parts, Node], Node]:
    def guider(parts: Parts, model: Node) -> Node:
        positive, negative = parts.encoded(PROMPT), parts.encoded("blurry")
        return parts.graph.add("CFGGuider", model=model, positive=positive, negative=negative, cfg=scale)

    return guider


@pytest.mark.parametrize("kind", ["demo", "sd15"])
def test_cfg_steers_only_its_branch(host: Host, saved: dict[str, str], kind: str) -> None:
    name = saved[kind]
    c, u = (one_step(host, kind, guider=alone(text)) for text in (PROMPT, "blurry"))
    moved_c, moved_u = (one_step(host, kind, guider=alone(text), name=name) for text in (PROMPT, "blurry"))
    for branch, positive, negative in (("positive", moved_c, u), ("negative", c, moved_u), ("both", moved_c, moved_u)):
        found = one_step(host, kind, guider=cfg(3.0), name=name, branch=branch)
        torch.testing.assert_close(found, negative + 3 * (positive - negative), **ONE_STEP)


def test_dual_cfg_steers_both_positive_prompts(host: Host, saved: dict[str, str]) -> None:
    def dual(parts: Parts, model: Node) -> Node:
        texts = {"cond1": PROMPT, "cond2": "a house", "negative": "blurry"}
        conds = {name: parts.encoded(text) for name, text in texts.items()}
        scales = {"cfg_conds": 2.0, "cfg_cond2_negative": 3.0, "style": "regular"}
        return parts.graph.add("DualCFGGuider", model=model, **conds, **scales)

    p, m = (one_step(host, "demo", guider=alone(text), name=saved["demo"]) for text in (PROMPT, "a house"))
    u = one_step(host, "demo", guider=alone("blurry"))
    found = one_step(host, "demo", guider=dual, name=saved["demo"])
    torch.testing.assert_close(found, u + 3 * (m - u) + 2 * (p - m), **ONE_STEP)


def test_perp_neg_leaves_empty_prompt_alone(host: Host, saved: dict[str, str]) -> None:
    def perp(parts: Parts, model: Node) -> Node:
        conds = {"positive": PROMPT, "negative": "blurry", "empty_conditioning": ""}
        encoded = {name: parts.encoded(text) for name, text in conds.items()}
        return parts.graph.add("PerpNegGuider", model=model, **encoded, cfg=3.0, neg_scale=0.0)

    p = one_step(host, "demo", guider=alone(PROMPT), name=saved["demo"])
    e = one_step(host, "demo", guider=alone(""))
    found = one_step(host, "demo", guider=perp, name=saved["demo"])
    torch.testing.assert_close(found, e + 3 * (p - e), **ONE_STEP)


def test_self_attention_guidance_is_left_alone(host: Host, saved: dict[str, str]) -> None:
    def guided(graph: Graph, model: Node) -> Node:
        return graph.add("SelfAttentionGuidance", model=model, scale=0.5, blur_sigma=2.0)

    sag = one_step(host, "sd15", guider=cfg(3.0), change=guided) - one_step(host, "sd15", guider=cfg(3.0))
    steering: dict[str, Any] = {"guider": cfg(3.0), "name": saved["sd15"], "branch": "positive"}
    moved = one_step(host, "sd15", change=guided, **steering) - one_step(host, "sd15", **steering)
    assert sag.abs().max() > 1e-3
    torch.testing.assert_close(moved, sag, atol=5e-2 * float(sag.abs().max()), rtol=0)


def test_perturbed_attention_is_positive_branch(host: Host, saved: dict[str, str]) -> None:
    def perturbed(graph: Graph, model: Node) -> Node:
        return graph.add("PerturbedAttentionGuidance", model=model, scale=3.0)

    before = one_step(host, "sd15", guider=cfg(1.0), change=perturbed)
    steering: dict[str, Any] = {"guider": cfg(1.0), "name": saved["sd15"], "change": perturbed}
    assert torch.equal(one_step(host, "sd15", branch="negative", **steering), before)
    assert not torch.equal(one_step(host, "sd15", branch="positive", **steering), before)


@pytest.mark.parametrize(
    ("kind", "node", "settings"),
    [
        ("sd15", "LoraLoaderModelOnly", {"lora_name": "tiny.safetensors", "strength_model": 1.0}),
        ("sd15_wide", "FreeU_V2", {"b1": 1.3, "b2": 1.4, "s1": 0.9, "s2": 0.2}),
        ("sd15", "PerturbedAttentionGuidance", {"scale": 3.0}),
        ("sd15", "HyperTile", {"tile_size": 64, "swap_size": 2, "max_depth": 0, "scale_depth": False}),
    ],
)
def test_order_of_other_patches_does_not_matter(
    host: Host, saved: dict[str, str], kind: str, node: str, settings: dict[str, Any]
) -> None:
    def drawn(*order: str, strength: float = 1.0) -> torch.Tensor:
        graph = Graph()
        parts = Parts(graph, kind)
        if node == "HyperTile":
            parts.size = 128  # of two tiles
        model = parts.model
        act_map = graph.add("LoadACTMap", name=saved[kind]) if kind in saved else parts.fit(components="model")
        for which in order:
            if which == "ours":
                model = apply(graph, model, act_map, strength=strength)[0]
            else:
                model = graph.add(node, model=model, **settings)
        parts.sampled(model, steps=2)
        return host.latent(host.run(graph))

    before, after = drawn("theirs", "ours"), drawn("ours", "theirs")
    assert torch.isfinite(before).all()
    assert torch.equal(before, after)
    assert not torch.equal(before, drawn("theirs", "ours", strength=0.0))
    assert not torch.equal(before, drawn("ours"))


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler, so torch.compile is not tested")
@pytest.mark.parametrize("first", [True, False])
def test_compiled_model_is_steered_and_restored(host: Host, saved: dict[str, str], first: bool) -> None:
    def drawn(strength: float) -> torch.Tensor:
        graph = Graph()
        parts = Parts(graph, "sd3")
        loaded = graph.add("LoadACTMap", name=saved["sd3"])
        compiling = {"backend": "inductor"}
        model = graph.add("TorchCompileModel", model=parts.model, **compiling) if first else parts.model
        model = apply(graph, model, loaded, strength=strength)[0]
        model = model if first else graph.add("TorchCompileModel", model=model, **compiling)
        parts.sampled(model, steps=2)
        return host.latent(host.run(graph))

    # Compiled arithmetic is ordered otherwise.
    close: dict[str, Any] = {"atol": 1e-2, "rtol": 1e-2}
    for strength in (1.0, 0.5, 0.0):
        expected = steered(host, "sd3", saved["sd3"], strength=strength, strength_clip=0.0, sampling={"steps": 2})
        torch.testing.assert_close(drawn(strength), expected, **close)


def test_maps_stack_in_a_chain(host: Host, saved: dict[str, str]) -> None:
    def drawn(*strengths: float) -> torch.Tensor:
        graph = Graph()
        parts = Parts(graph, "demo")
        model, loaded = parts.model, graph.add("LoadACTMap", name=saved["demo"])
        for strength in strengths:
            model = apply(graph, model, loaded, strength=strength)[0]
        parts.sampled(model)
        return host.latent(host.run(graph))

    once, twice = drawn(0.5), drawn(0.5, 0.5)
    assert not torch.equal(once, twice)
    assert torch.equal(drawn(0.5, 0.0), once)


def test_one_model_with_several_strengths_in_one_graph(host: Host, saved: dict[str, str]) -> None:
    strengths = (0.5, 1.0, 0.0)
    graph = Graph()
    parts = Parts(graph, "demo")
    loaded = graph.add("LoadACTMap", name=saved["demo"])
    for strength in strengths:
        parts.sampled(apply(graph, parts.model, loaded, strength=strength)[0])
    together = host.latents(host.run(graph))
    for strength, latent in zip(strengths, together, strict=True):
        assert torch.equal(latent, steered(host, "demo", saved["demo"], strength=strength, strength_clip=0.0))


def test_two_models_are_steered_in_one_graph(host: Host, saved: dict[str, str]) -> None:
    kinds = ("demo", "sd3")
    graph = Graph()
    for kind in kinds:
        parts = Parts(graph, kind)
        parts.sampled(apply(graph, parts.model, graph.add("LoadACTMap", name=saved[kind]))[0])
    for kind, latent in zip(kinds, host.latents(host.run(graph)), strict=True):
        assert torch.equal(latent, steered(host, kind, saved[kind], strength_clip=0.0))


def test_queued_workflows_are_independent(host: Host, saved: dict[str, str]) -> None:
    strengths = (1.0, 0.0, 0.5)
    waiting: list[str] = []
    for strength in strengths:
        graph = Graph()
        parts = Parts(graph, "demo")
        parts.sampled(apply(graph, parts.model, graph.add("LoadACTMap", name=saved["demo"]), strength=strength)[0])
        waiting.append(host.queue(graph))
    for strength, prompt_id in zip(strengths, waiting, strict=True):
        run = host.wait(prompt_id)
        assert not run.error
        # A node whose inputs have not changed is not run again, and says nothing of its output.
        for latent in host.latents(run):
            assert torch.equal(latent, steered(host, "demo", saved["demo"], strength=strength, strength_clip=0.0))


def test_map_survives_unloading(host: Host, saved: dict[str, str]) -> None:
    before, moved = plain(host, "demo"), steered(host, "demo", saved["demo"])
    free(host)
    assert torch.equal(steered(host, "demo", saved["demo"]), moved)
    assert torch.equal(plain(host, "demo"), before)


def test_interrupted_sampling_leaves_model_unchanged(host: Host, saved: dict[str, str]) -> None:
    before = plain(host, "sd15")
    graph = Graph()
    parts = Parts(graph, "sd15")
    parts.sampled(apply(graph, parts.model, graph.add("LoadACTMap", name=saved["sd15"]))[0], steps=500)
    assert host.interrupted(graph, 3.0) == "interrupted"
    assert torch.equal(plain(host, "sd15"), before)


def test_interrupted_fit_leaves_model_unchanged(host: Host, saved: dict[str, str]) -> None:
    before = plain(host, "sd15")
    graph = Graph()
    parts = Parts(graph, "sd15")
    graph.add("InspectACTMap", act_map=parts.fit(components="model", samples=300))
    assert host.interrupted(graph, 3.0) == "interrupted"
    assert torch.equal(plain(host, "sd15"), before)


def test_fit_is_independent_of_earlier_steering(host: Host, saved: dict[str, str]) -> None:
    def fitted() -> ActMap:
        graph = Graph()
        details = {"title": "", "author": "", "description": "", "license": ""}
        act_map = Parts(graph, "demo").fit(seed=7)
        graph.add("SaveACTMap", act_map=act_map, name="again", strength_low=0.0, strength_high=1.0, **details)
        output = host.shown(graph)
        name = output["text"][0].split(" (")[0].removeprefix("Saved ")
        return load_map(name)

    first = fitted()
    strong = steered(host, "demo", saved["demo"], strength=1.5, strength_clip=1.5)
    steered(host, "demo", saved["demo"], strength_clip=0.5)
    assert torch.equal(steered(host, "demo", saved["demo"], strength=1.5, strength_clip=1.5), strong)
    free(host, unload_models=False)  # forget the outputs, keep the patched models
    assert set(first.difference(fitted()).values()) == {0.0}


def test_fit_refuses_steered_model(host: Host, saved: dict[str, str]) -> None:
    graph = Graph()
    parts = Parts(graph, "demo")
    parts.model = apply(graph, parts.model, graph.add("LoadACTMap", name=saved["demo"]))[0]
    graph.add("InspectACTMap", act_map=parts.fit())
    assert "already steered by a map" in host.fail(graph).error
