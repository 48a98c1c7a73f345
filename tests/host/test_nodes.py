"""The nodes in a running ComfyUI, over HTTP: fit, save, load, apply."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from graphs import KINDS, SOURCE, Parts, apply, plain, steered

from act_core import load_map, save_map
from act_core.components import DIFFUSION_MODEL
from act_core.records import Card, Fingerprint
from tools.comfyui.server import PACK, Graph, Host


def test_nodes_and_help_pages_are_complete(host: Host) -> None:
    listed = host.get("/object_info")
    ours = {name: info for name, info in listed.items() if info.get("category") == "ACT steering"}
    assert set(ours) == {
        "ACTPromptSet",
        "FitACTMap",
        "FitACTMapFromImages",
        "SaveACTMap",
        "LoadACTMap",
        "ACTMapLoader",
        "ApplyACTSteering",
        "ApplyACTSteeringCLIP",
        "CreateACTHook",
        "ACTStrengthSweep",
        "CalibrateACTMap",
        "InspectACTMap",
        "EditACTMap",
        "LoadACTDemoModel",
        "LoadACTLanguageModel",
        "FitACTTextMap",
        "ACTSteeredText",
        "ACTMapStack",
        "ProbeACTMap",
        "ACTPictureSet",
        "ListACTMaps",
        "ExportACTMapAsLoRA",
        "CompareACTMaps",
        "BlendACTMaps",
    }
    for name, info in ours.items():
        assert info["description"], name
        assert (PACK / "web" / "docs" / name / "en.md").is_file(), name


def test_inputs_keep_names_and_order(host: Host) -> None:
    def inputs(name: str) -> list[str]:
        info = host.get(f"/object_info/{name}")[name]["input"]
        return [*info.get("required", {}), *info.get("optional", {})]

    assert inputs("ACTPictureSet") == ["name", "captions"]
    fit = "model clip source target sites components estimator order support samples width height seed latent pattern"
    assert inputs("FitACTMap") == fit.split()
    fit_images = "model sites steps width height seed images vae clip captions latents conditioning pattern"
    appended = "estimator source_images source_captions levels samples start components name_pictures"
    assert inputs("FitACTMapFromImages") == [*fit_images.split(), *appended.split()]
    assert inputs("LoadACTMap") == ["name", "allow_other_architecture"]
    assert inputs("ACTMapLoader") == ["model", "name", "strength", "strength_clip", "clip", "calibrated"]
    save = "act_map name title author description license strength_low strength_high thumbnail"
    assert inputs("SaveACTMap") == [*save.split(), "usage_hint", "tags", "keep_prompts", "sidecars"]
    assert inputs("ListACTMaps") == ["contains"]
    assert inputs("InspectACTMap") == ["act_map"]
    assert inputs("EditACTMap") == ["act_map", "invert", "scale", "keep", "keep_by"]
    assert inputs("CompareACTMaps") == ["act_map_a", "act_map_b"]
    assert inputs("BlendACTMaps") == [f"{part}_{number}" for number in range(1, 5) for part in ("act_map", "weight")]
    apply_inputs = "model act_map strength strength_clip start_percent end_percent branch clip"
    appended = "sites blocks schedule curve calibrated as_weights"
    assert inputs("ApplyACTSteering") == [*apply_inputs.split(), *appended.split()]
    assert inputs("ExportACTMapAsLoRA") == ["model", "act_map", "name", "linear_layers", "level", "clip"]
    probe = "model clip act_map prompt strength seed steps width height"
    assert inputs("ProbeACTMap") == probe.split()
    rows = [f"{part}_{number}" for number in range(1, 9) for part in ("map", "strength", "on")]
    assert inputs("ACTMapStack") == ["act_maps", *rows]
    assert inputs("ApplyACTSteeringCLIP") == ["clip", "act_map", "strength_clip", "calibrated"]
    assert inputs("CreateACTHook") == ["act_map", "strength", "prev_hooks", "calibrated"]
    assert inputs("ACTStrengthSweep")[-3:] == ["clip", "prompt", "calibrated"]
    calibrate_inputs = "model clip act_map prompts targets negative steps cfg sampler_name scheduler width height seed"
    assert inputs("CalibrateACTMap") == calibrate_inputs.split()


@pytest.mark.parametrize("kind", KINDS)
def test_map_is_fitted_saved_loaded_and_applied(host: Host, saved: dict[str, str], kind: str) -> None:
    steps: dict[str, Any] = {"steps": 2}
    before = plain(host, kind, **steps)
    moved = steered(host, kind, saved[kind], sampling=steps)
    assert torch.isfinite(moved).all()
    assert (moved - before).abs().mean() > 1e-3 * before.abs().mean()
    assert torch.equal(plain(host, kind, **steps), before)  # the same seed on the same machine, so no tolerance
    assert torch.equal(steered(host, kind, saved[kind], strength=0.0, strength_clip=0.0, sampling=steps), before)


@pytest.mark.parametrize("kind", KINDS)
def test_inspect_lists_all_components(host: Host, saved: dict[str, str], kind: str) -> None:
    graph = Graph()
    graph.add("InspectACTMap", act_map=graph.add("LoadACTMap", name=saved[kind]))
    output = host.shown(graph)
    assert "clip_l/" in output["text"][0]
    assert "diffusion_model/" in output["text"][0]
    assert "5 source, such as 'a cat on a mat'" in output["text"][0]


def test_window_acts_at_its_steps_only(host: Host, saved: dict[str, str]) -> None:
    kind, name = "demo", saved["demo"]
    only_model: dict[str, Any] = {"strength_clip": 0.0}
    whole = steered(host, kind, name, **only_model)
    none = plain(host, kind)
    early = steered(host, kind, name, **only_model, end_percent=0.5)
    late = steered(host, kind, name, **only_model, start_percent=0.5)
    for one, other in ((early, whole), (late, whole), (early, none), (late, none), (early, late)):
        assert not torch.equal(one, other)
    both = steered(host, kind, name, **only_model, start_percent=0.0, end_percent=1.0)
    assert torch.equal(both, whole)


def test_window_follows_schedule_shift_before_or_after(host: Host, saved: dict[str, str]) -> None:
    def drawn(*, first: bool) -> torch.Tensor:
        graph = Graph()
        parts = Parts(graph, "demo")
        loaded = graph.add("LoadACTMap", name=saved["demo"])
        shifted: dict[str, Any] = {"shift": 9.0}
        model = graph.add("ModelSamplingSD3", model=parts.model, **shifted) if first else parts.model
        model = apply(graph, model, loaded, end_percent=0.45)[0]
        parts.sampled(model if first else graph.add("ModelSamplingSD3", model=model, **shifted))
        return host.latent(host.run(graph))

    assert torch.equal(drawn(first=True), drawn(first=False))


def test_branches_without_guidance(host: Host, saved: dict[str, str]) -> None:
    sampling = {"cfg": 1.0}
    before = plain(host, "demo", **sampling)
    only_model: dict[str, Any] = {"strength_clip": 0.0, "sampling": sampling}
    name = saved["demo"]
    assert torch.equal(steered(host, "demo", name, **only_model, branch="negative"), before)
    positive = steered(host, "demo", name, **only_model)
    assert torch.equal(steered(host, "demo", name, **only_model, branch="both"), positive)
    assert not torch.equal(positive, before)


def test_branches_differ_under_guidance(host: Host, saved: dict[str, str]) -> None:
    branches = ("positive", "negative", "both")
    drawn = [steered(host, "demo", saved["demo"], strength_clip=0.0, branch=branch) for branch in branches]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert not torch.equal(drawn[one], drawn[other])


def test_apply_refuses_map_for_another_model(host: Host, saved: dict[str, str]) -> None:
    graph = Graph()
    parts = Parts(graph, "sd15")
    loaded = graph.add("LoadACTMap", name=saved["flux"])
    parts.sampled(apply(graph, parts.model, loaded))
    run = host.fail(graph)
    assert run.node == "ApplyACTSteering"
    assert "'flux' was fitted on" in run.error
    assert "Flux" in run.error
    assert "UNetModel" in run.error
    assert run.error.count("\n") == 0
    assert torch.isfinite(plain(host, "sd15")).all()  # the queue runs on


def test_load_allows_another_architecture(host: Host, saved: dict[str, str]) -> None:
    folder = host.base / "models" / "act_maps"
    act_map = load_map(folder / saved["sd3"])
    base = {**act_map.record.base, DIFFUSION_MODEL: Fingerprint("Chroma", "", "Chroma")}
    save_map(replace(act_map, record=replace(act_map.record, base=base)), folder / "of_chroma.safetensors")

    def graph(**allowed: bool) -> Graph:
        graph = Graph()
        parts = Parts(graph, "sd3")
        loaded = graph.add("LoadACTMap", name="of_chroma.safetensors", **allowed)
        edited = graph.add("EditACTMap", act_map=loaded, invert=True, scale=0.5)
        parts.sampled(apply(graph, parts.model, edited)[0])
        return graph

    for refused in (graph(), graph(allow_other_architecture=False)):
        run = host.fail(refused)
        assert run.node == "ApplyACTSteering"
        assert "fitted on Chroma (diffusion_model), but this model is OpenAISignatureMMDITWrapper" in run.error
    outputs = host.run(graph(allow_other_architecture=True)).outputs.values()
    assert any("fitted on Chroma" in text for output in outputs for text in output.get("text", ()))


def test_apply_refuses_map_for_another_size(host: Host, saved: dict[str, str]) -> None:
    graph = Graph()
    parts = Parts(graph, "sd15_wide")
    parts.sampled(apply(graph, parts.model, graph.add("LoadACTMap", name=saved["sd15"])))
    run = host.fail(graph)
    assert run.node == "ApplyACTSteering"
    assert "'sd15' was fitted on clip_text_model (clip_l) and UNetModel (diffusion_model)" in run.error
    assert "does not fit this model, UNetModel: of its " in run.error
    assert "320 in the map, 640 here) and 0 are missing" in run.error
    assert "fit a map for this one" in run.error


def test_clip_output_without_clip_is_an_error(host: Host, saved: dict[str, str]) -> None:
    graph = Graph()
    parts = Parts(graph, "demo")
    applied = apply(graph, parts.model, graph.add("LoadACTMap", name=saved["demo"]))
    parts.sampled(applied[0], parts.encoded("a cat", applied[1]))
    assert "has no CLIP to pass on" in host.fail(graph).error


@pytest.mark.parametrize("next_node", ["ApplyACTSteering", "ApplyACTSteeringCLIP", "LoraLoader", "FitACTMap"])
def test_missing_clip_is_an_error_in_next_node(host: Host, saved: dict[str, str], next_node: str) -> None:
    graph = Graph()
    parts = Parts(graph, "demo")
    loaded = graph.add("LoadACTMap", name=saved["demo"])
    applied = apply(graph, parts.model, loaded)
    if next_node == "ApplyACTSteering":
        parts.clip = apply(graph, parts.model, loaded, applied[1])[1]
    elif next_node == "ApplyACTSteeringCLIP":
        parts.clip = graph.add(next_node, clip=applied[1], act_map=loaded, strength_clip=1.0)
    elif next_node == "LoraLoader":
        strengths = {"strength_model": 1.0, "strength_clip": 1.0}
        lora = {"lora_name": "tiny.safetensors", **strengths}
        parts.clip = graph.add(next_node, model=parts.model, clip=applied[1], **lora)[1]
    else:
        parts.clip = applied[1]
        graph.add("InspectACTMap", act_map=parts.fit(components="text"))
    parts.sampled()
    run = host.fail(graph)
    assert "has no CLIP to pass on" in run.error
    assert run.error.count("\n") == 0


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


def test_saving_never_overwrites(host: Host, saved: dict[str, str]) -> None:
    folder = host.base / "models" / "act_maps"

    def save(title: str) -> dict[str, bytes]:
        graph = Graph()
        loaded = graph.add("LoadACTMap", name=saved["demo"])
        details = {"title": title, "author": "", "description": "", "license": ""}
        graph.add("SaveACTMap", act_map=loaded, name="twice", strength_low=0.0, strength_high=1.0, **details)
        host.run(graph)
        return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}

    before, after = save("once"), save("again")
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {"twice_002.safetensors"}
    assert after["twice_002.safetensors"] != before["twice.safetensors"]


def test_save_keeps_card_unless_changed(host: Host, saved: dict[str, str]) -> None:
    def saved_as(name: str, act_map: Any, **given: Any) -> str:
        usual = {"title": "", "author": "", "description": "", "license": "", "strength_low": 0.0, "strength_high": 1.0}
        graph = Graph()
        loaded = graph.add("LoadACTMap", name=act_map)
        edited = graph.add("EditACTMap", act_map=loaded, invert=True, scale=1.0)
        graph.add("SaveACTMap", act_map=edited, name=name, **usual | given)
        host.run(graph)
        return f"{name}.safetensors"

    told = {"title": "Ink", "author": "A. Friend", "description": "Like ink.", "license": "CC-BY-4.0"}
    first = saved_as("of_a_friend", saved["demo"], **told, strength_low=-2.0, strength_high=3.0)
    second = saved_as("turned", first)
    third = saved_as("renamed", second, title="Colour", strength_high=0.5)
    folder = host.base / "models" / "act_maps"
    cards = [load_map(folder / name).card for name in (first, second, third)]
    assert cards[0] == cards[1]
    assert cards[1] == Card("Ink", "A. Friend", "Like ink.", "CC-BY-4.0", (-2.0, 3.0))
    assert cards[2] == Card("Colour", "A. Friend", "Like ink.", "CC-BY-4.0", (0.0, 0.5))


@pytest.mark.parametrize("name", ["../outside", "", "/tmp/outside"])
def test_save_stays_in_its_folder(host: Host, saved: dict[str, str], name: str) -> None:
    graph = Graph()
    loaded = graph.add("LoadACTMap", name=saved["demo"])
    details = {"title": "", "author": "", "description": "", "license": ""}
    graph.add("SaveACTMap", act_map=loaded, name=name, strength_low=0.0, strength_high=1.0, **details)
    assert "is not a name for a map" in host.fail(graph).error


def test_load_notices_changed_file(host: Host, saved: dict[str, str]) -> None:
    folder = host.base / "models" / "act_maps"
    changing = folder / "changing.safetensors"

    def sites() -> str:
        graph = Graph()
        graph.add("InspectACTMap", act_map=graph.add("LoadACTMap", name=changing.name))
        output = host.shown(graph)
        return output["text"][0]

    changing.write_bytes((folder / saved["demo"]).read_bytes())
    first = sites()
    changing.write_bytes((folder / saved["sd3"]).read_bytes())
    assert sites() != first
    changing.write_bytes(b"no map")
    graph = Graph()
    graph.add("InspectACTMap", act_map=graph.add("LoadACTMap", name=changing.name))
    run = host.fail(graph)
    assert "changing.safetensors is not a usable map" in run.error


def test_edit_inverts_and_scales(host: Host, saved: dict[str, str]) -> None:
    def drawn(**edit: Any) -> torch.Tensor:
        graph = Graph()
        parts = Parts(graph, "demo")
        edited = graph.add("EditACTMap", act_map=graph.add("LoadACTMap", name=saved["demo"]), **edit)
        parts.sampled(apply(graph, parts.model, edited, strength_clip=0.0))
        return host.latent(host.run(graph))

    half = steered(host, "demo", saved["demo"], strength=0.5, strength_clip=0.0)
    scaled = drawn(invert=False, scale=0.5)
    assert torch.allclose(scaled, half, atol=1e-4)  # the same move, folded in another order of float32 rounding
    assert not torch.allclose(drawn(invert=True, scale=1.0), half, atol=1e-2)


def test_edit_prunes(host: Host, saved: dict[str, str]) -> None:
    def sites(**edit: Any) -> int:
        graph = Graph()
        loaded = graph.add("LoadACTMap", name=saved["demo"])
        graph.add("InspectACTMap", act_map=graph.add("EditACTMap", act_map=loaded, invert=False, scale=1.0, **edit))
        output = host.shown(graph)
        assert len(output["images"]) == 1
        return sum(output["text"][0].count(f"{component}/") for component in ("diffusion_model", "clip_l"))

    assert 0 < sites(keep=0.5) < sites(keep=0.9, keep_by="sites") < sites()


def test_maps_are_compared_and_blended(host: Host, saved: dict[str, str]) -> None:
    graph = Graph()
    loaded = graph.add("LoadACTMap", name=saved["demo"])
    half = graph.add("EditACTMap", act_map=loaded, invert=False, scale=0.5)
    quarter = {"act_map_2": half, "weight_2": 0.5}
    mixed = graph.add("BlendACTMaps", act_map_1=loaded, weight_1=0.5, **quarter, act_map_3=half, weight_3=-0.5)
    graph.add("CompareACTMaps", act_map_a=loaded, act_map_b=mixed)
    output = host.shown(graph)
    assert "cosine 1.00, size of B 0.50 times that of A" in output["text"][0]
    assert len(output["images"]) == 1


def test_blend_refuses_maps_of_different_models(host: Host, saved: dict[str, str]) -> None:
    graph = Graph()
    one, other = (graph.add("LoadACTMap", name=saved[kind]) for kind in ("demo", "flux"))
    mixed = graph.add("BlendACTMaps", act_map_1=one, weight_1=0.5, act_map_2=other, weight_2=0.5)
    graph.add("InspectACTMap", act_map=mixed)
    run = host.fail(graph)
    assert run.node == "BlendACTMaps"
    assert "different models" in run.error
    assert run.error.count("\n") == 0


def applied(host: Host, name: str, **changes: Any) -> Graph:
    graph = Graph()
    parts = Parts(graph, "demo")
    parts.sampled(apply(graph, parts.model, graph.add("LoadACTMap", name=name), **changes)[0])
    return graph


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
