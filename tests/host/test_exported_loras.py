"""Maps as LoRAs and as weights give what steering at run time gives, in the real host."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from between_hosts import Exchange, model_of
from graphs import Parts, apply, plain, steered
from in_host import ResultsOf, run_inside
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from act_core import ActMap, load_map, save_map
from act_core.components import DIFFUSION_MODEL
from act_core.gates import Gate
from act_core.interop.lora import comfyui_name, for_comfyui, lora_tensors, save_lora, storable
from act_core.steering.weights import fold_map
from tools.comfyui.server import Graph, Host

KINDS = ("SD 1.5", "SDXL", "SD3", "Flux.1 dev", "Qwen-Image")
WITHOUT_NORMS = ("SD3", "Flux.1 dev", "Qwen-Image")
# Of latents that the map moves by 0.7 to 19 standard deviations: rounding in float32, amplified by two steps.
ROUNDING = 2e-4
MEGABYTES = 1e6


@pytest.fixture(scope="module")
def found(results_of: ResultsOf) -> dict[str, Any]:
    return results_of("exported_loras.py")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sites", ["norms", "linear layers"])
def test_lora_equals_steering_of_both_branches(found: dict[str, Any], kind: str, sites: str) -> None:
    result = found["models"][kind][sites]
    if sites == "norms" and kind in WITHOUT_NORMS:
        assert "this LayerNorm has no parameters" in result["error"]
        return
    assert result["folded"] == result["sites"] >= 4
    assert result["moved"] > 0.5
    assert set(result["deviations"]) == {"loader", "bypass", "as_weights"}
    # Linear layers need their whole weights there.
    assert ("Bypass loaders read it wrongly" in result["report"]) == (sites == "linear layers")
    assert max(result["deviations"].values()) < ROUNDING
    assert result["strength 0 is exact"]
    assert result["restored"]


@pytest.mark.parametrize(("name", "left_out"), [("SD 1", 0), ("SDXL", 0), ("Flux", 17)])
def test_lora_equals_steering_of_text_encoders(found: dict[str, Any], name: str, left_out: int) -> None:
    result = found["clips"][name]
    assert result["sites"] - result["folded"] == left_out
    assert result["moved"] > 0.5
    assert max(result["deviations"].values()) < ROUNDING
    assert result["restored"]
    if left_out:  # T5 has neither biases nor norms with a shift
        share = re.search(r"Left out, (.+)% of the map's squared displacement", result["report"])
        assert share
        # The last digit depends on how the processor rounds in the random model: 24.1 or 24.2.
        assert float(share[1]) == pytest.approx(24.15, abs=0.1)
        assert "t5xxl/encoder.block.0.layer.0.SelfAttention.o: it has no bias" in result["report"]


def test_lora_follows_weights_that_another_lora_changed(found: dict[str, Any]) -> None:
    assert found["beside another"]["as_weights"] < ROUNDING
    assert found["beside another"]["loader"] < ROUNDING
    assert found["beside another"]["whole"] < ROUNDING


def test_saved_model_contains_lora(found: dict[str, Any]) -> None:
    assert found["merged"] < 1e-6


def test_loras_of_sdxl_are_small(results_of: ResultsOf) -> None:
    sizes = results_of("lora_sizes.py")
    assert (sizes["norms"]["folded"], sizes["attention"]["folded"]) == (256, 140)
    assert sizes["norms"]["bytes"] < 4 * MEGABYTES
    assert sizes["attention"]["bytes"] < 4 * MEGABYTES


def models_of_diffusers() -> dict[str, nn.Module]:
    """Full-size UNets and small transformers, without weights."""
    diffusers = pytest.importorskip("diffusers")
    unet: dict[str, Any] = {
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
    }
    with torch.device("meta"):
        return {
            "sd15": diffusers.UNet2DConditionModel(cross_attention_dim=768),
            "sdxl": diffusers.UNet2DConditionModel(**unet),
            "sd3": diffusers.SD3Transformer2DModel(num_layers=2, num_attention_heads=2),
            "flux": diffusers.FluxTransformer2DModel(num_layers=2, num_single_layers=2),
        }


def test_names_of_pipelines_are_those_of_the_host(results_of: ResultsOf) -> None:
    tables = results_of("names_of_pipelines.py")
    ends = ("to_out.0", "to_add_out", "net.2", "proj_out")
    for kind, model in models_of_diffusers().items():
        names = [
            name
            for name, module in model.named_modules()
            if name.endswith(ends)
            or (isinstance(module, (nn.LayerNorm, nn.GroupNorm)) and getattr(module, "weight", None) is not None)
        ]
        assert len(names) > 5
        found = {name: comfyui_name(DIFFUSION_MODEL, name, model) for name in names}
        assert found == {name: tables[kind][name] for name in names}


# The others have norms and linear layers without a bias.
@pytest.mark.parametrize("name", ["SD 1.5", "SDXL", "SD3", "Flux", "Qwen-Image", "Wan", "CLIP"])
def test_host_loads_lora_of_pipeline(host_python: Path, exchange: Exchange, tmp_path: Path, name: str) -> None:
    """A LoRA that was exported from the model in diffusers or transformers, in the host's model of these weights."""
    model = model_of(name)
    act_map = exchange.own_map(name)
    modules = {model.part.name: model.part.module}
    folded = storable(for_comfyui(fold_map(act_map, modules), modules))
    kept = {site: t for site, t in act_map.transports.items() if site.key not in folded.left_out}
    assert len(kept) > 3
    save_lora(folded, lora_tensors(folded), lora := tmp_path / "lora.safetensors")
    run_inside(host_python, "lora_of_pipeline.py", exchange.folder, name, lora, tmp_path / "out")
    plain, expected = model.drawn(), model.drawn(replace(act_map, transports=kept))
    drawn = load_file(tmp_path / "out")["drawn"]
    assert (drawn - expected).abs().max() < 1e-4 * (plain - expected).abs().max()


@pytest.fixture(scope="module")
def linear_map(host: Host, saved: dict[str, str]) -> str:
    """A map at attention outputs of the demo model and of its text encoder."""
    act_map = load_map(host.base / "models" / "act_maps" / saved["demo"])
    return stored(host, "linear", act_map.restrict("*attn*", "*attention*"))


def stored(host: Host, name: str, act_map: ActMap) -> str:
    path = host.base / "models" / "act_maps" / f"{name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_map(act_map, path, title=name)
    return path.name


def exported(host: Host, act_map: str, **changes: Any) -> tuple[str, str]:
    """Run Export ACT Map As LoRA; name and report."""
    output = host.shown(export(act_map, **changes))
    report: str = output["text"][0]
    return Path(report.removeprefix("Saved ").split(" (")[0]).name, report


def export(act_map: str, **changes: Any) -> Graph:
    graph = Graph()
    parts = Parts(graph, "demo")
    settings = {"name": "demo_style", "linear_layers": "compact", "level": -1.0}
    loaded = graph.add("LoadACTMap", name=act_map)
    graph.add("ExportACTMapAsLoRA", model=parts.model, clip=parts.clip, act_map=loaded, **settings | changes)
    return graph


@pytest.mark.parametrize("version", ["host", "oldest"])
@pytest.mark.parametrize("strength", [-0.5, 0.7])
def test_stock_loader_reads_what_the_node_saves(
    request: pytest.FixtureRequest, host: Host, linear_map: str, strength: float, version: str
) -> None:
    act_map = load_map(host.base / "models" / "act_maps" / linear_map)
    host = request.getfixturevalue(version)
    stored(host, "linear", act_map)
    name, _ = exported(host, linear_map)
    graph = Graph()
    parts = Parts(graph, "demo")
    strengths = {"strength_model": strength, "strength_clip": strength}
    lora = graph.add("LoraLoader", model=parts.model, clip=parts.clip, lora_name=name, **strengths)
    parts.sampled(lora[0], parts.encoded("a cat on a mat", lora[1]))
    by_lora = host.latent(host.run(graph))
    settings: dict[str, Any] = {"strength": strength, "strength_clip": strength, "branch": "both"}
    by_steering = steered(host, "demo", linear_map, **settings)
    by_weights = steered(host, "demo", linear_map, **settings, as_weights=True)
    scale = by_steering.std()
    assert (by_steering - plain(host, "demo")).abs().max() > 0.1 * scale
    assert (by_lora - by_steering).abs().max() < ROUNDING * scale
    assert (by_weights - by_steering).abs().max() < ROUNDING * scale


def test_export_never_overwrites_and_records_the_map(host: Host, linear_map: str) -> None:
    first, report = exported(host, linear_map, name="twice")
    second, _ = exported(host, linear_map, name="twice", level=0.5)  # which the map does not have, but runs it again
    assert (first, second) == ("twice.safetensors", "twice_002.safetensors")
    assert "sites of the map are in the weights" in report
    with safe_open(host.base / "models" / "loras" / first, "pt") as file:
        metadata = file.metadata()
    assert metadata["modelspec.title"] == "linear"
    assert metadata["modelspec.sai_model_spec"] == "1.0.1"
    assert len(metadata["act.map_sha256"]) == 64


def gated(act_map: ActMap) -> ActMap:
    first = next(iter(act_map.transports))
    gate = Gate(torch.ones(first.channels), 0.0)
    return replace(act_map, transports={**act_map.transports, first: replace(act_map[first.key], gate=gate)})


def bounded(act_map: ActMap) -> ActMap:
    def within(transport: Any) -> Any:
        return replace(transport, low=transport.omega - 9, high=transport.omega + 9)

    return replace(act_map, transports={site: within(t) for site, t in act_map.transports.items()})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [(gated, "has gated support"), (bounded, "has observed support")],
)
def test_export_refuses_what_weights_cannot_do(
    host: Host, linear_map: str, change: Callable[[ActMap], ActMap], sentence: str
) -> None:
    act_map = load_map(host.base / "models" / "act_maps" / linear_map)
    name = stored(host, change.__name__, change(act_map))
    run = host.fail(export(name, name="refused"))
    assert run.node == "ExportACTMapAsLoRA"
    assert sentence in run.error
    assert run.error.count("\n") == 0
    assert not list((host.base / "models" / "loras").glob("refused*"))


@pytest.mark.parametrize("name", ["../outside", ""])
def test_export_stays_in_its_folder(host: Host, linear_map: str, name: str) -> None:
    assert "is not a name for a LoRA" in host.fail(export(linear_map, name=name)).error


@pytest.mark.parametrize(
    "setting",
    [{"branch": "positive"}, {"end_percent": 0.5}, {"schedule": "fade in"}],
    ids=lambda setting: next(iter(setting)),
)
def test_as_weights_refuses_settings_that_weights_cannot_follow(
    host: Host, linear_map: str, setting: dict[str, Any]
) -> None:
    graph = Graph()
    parts = Parts(graph, "demo")
    loaded = graph.add("LoadACTMap", name=linear_map)
    settings: dict[str, Any] = {"branch": "both", "as_weights": True, **setting}
    parts.sampled(apply(graph, parts.model, loaded, **settings)[0])
    run = host.fail(graph)
    assert run.node == "ApplyACTSteering"
    assert "as_weights acts on both branches at every step" in run.error


def test_as_weights_at_strength_0_changes_nothing(host: Host, linear_map: str) -> None:
    off = steered(host, "demo", linear_map, strength=0.0, strength_clip=0.0, branch="both", as_weights=True)
    assert torch.equal(off, plain(host, "demo"))


def test_as_weights_reports_what_is_left_out(host: Host, saved: dict[str, str]) -> None:
    graph = Graph()
    parts = Parts(graph, "demo")
    loaded = graph.add("LoadACTMap", name=saved["demo"])
    applied = apply(graph, parts.model, loaded, branch="both", as_weights=True)
    parts.sampled(applied[0])
    texts = [text for output in host.run(graph).outputs.values() for text in output.get("text", ())]
    assert any("clip_l is not connected" in text for text in texts)
