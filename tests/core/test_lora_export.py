"""Maps exported as LoRAs: what the files hold, and that diffusers reads them as steering."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import Run, refused
from pipelines import SIZE, SOURCE, TARGET
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from act_core import ActMap, MapError, fit, load_map, save_map, steer
from act_core.errors import MapFileError
from act_core.interop.lora import (
    comfyui_key,
    comfyui_name,
    diffusers_lora_tensors,
    for_comfyui,
    for_diffusers,
    lora_tensors,
    save_lora,
    sha256_of,
    storable,
)
from act_core.models.diffusers import DiffusersModel
from act_core.models.pipelines import places_of
from act_core.records import Card, Fingerprint, FitRecord
from act_core.sites import Site
from act_core.steering.weights import FoldedMap, fold_map
from act_core.transport import Transport

STRENGTHS = (-0.5, 0.7, 1.0, 1.3)
# Rounding in float32, after two steps; the maps move latents by 0.004 to 0.1 standard deviations.
ROUNDING = 1e-4


def folded(channels: int = 6, **card: Any) -> FoldedMap:
    """A map at a norm and at a linear layer of a diffusion model."""
    generator = torch.Generator().manual_seed(0)

    def moves() -> Transport:
        omega, beta = torch.randn(2, channels, generator=generator)
        return Transport(omega, beta, effect=1.0)

    sites = [Site("diffusion_model", name, None, "tokens", channels) for name in ("norm", "proj")]
    record = FitRecord(base={"diffusion_model": Fingerprint("unet", "")})
    act_map = ActMap({site: moves() for site in sites}, record, Card(**card)).for_any_architecture()
    model = nn.ModuleDict({"norm": nn.LayerNorm(channels), "proj": nn.Linear(4, channels)})
    return fold_map(act_map, {"diffusion_model": model})


def test_compact_lora_holds_three_numbers_for_each_channel() -> None:
    tensors = lora_tensors(folded())
    shapes = {name.removeprefix("diffusion_model."): tuple(tensor.shape) for name, tensor in tensors.items()}
    assert shapes == {
        "norm.diff": (6,),
        "norm.diff_b": (6,),
        "proj.oft_blocks": (1, 3, 2, 2),
        "proj.rescale": (6, 1),
        "proj.alpha": (),
        "proj.diff_b": (6,),
    }
    assert not tensors["diffusion_model.proj.oft_blocks"].any()


@pytest.mark.parametrize(("channels", "linear_layers"), [(6, "whole"), (5, "compact")])
def test_lora_holds_whole_weights_where_asked_and_for_odd_channels(channels: int, linear_layers: Any) -> None:
    result = folded(channels)
    tensors = lora_tensors(result, linear_layers=linear_layers)
    fold = result.folds["diffusion_model", "proj"]
    assert torch.equal(tensors["diffusion_model.proj.diff"], fold.weight_change())
    assert not [name for name in tensors if name.endswith("rescale")]


def test_whole_change_has_the_dtype_of_its_weight() -> None:
    model = nn.ModuleDict({"norm": nn.LayerNorm(6), "proj": nn.Linear(4, 6)}).to(torch.bfloat16)
    tensors = lora_tensors(fold_map(folded().act_map, {"diffusion_model": model}), linear_layers="whole")
    assert tensors["diffusion_model.proj.diff"].dtype == torch.bfloat16


def test_shifts_need_no_tensors_for_weights() -> None:
    result = folded()
    act_map = result.act_map
    shifts = {site: replace(t, omega=torch.ones(6)) for site, t in act_map.transports.items()}
    model = nn.ModuleDict({"norm": nn.LayerNorm(6), "proj": nn.Linear(4, 6)})
    tensors = lora_tensors(fold_map(replace(act_map, transports=shifts), {"diffusion_model": model}))
    assert set(tensors) == {"diffusion_model.norm.diff_b", "diffusion_model.proj.diff_b"}


def test_file_describes_its_map(tmp_path: Path) -> None:
    result = folded(title="Ink", author="A", license="CC0-1.0", strength_range=(0.0, 1.5), cover=b"\xff\xd8jpeg")
    path = tmp_path / "ink.safetensors"
    save_lora(result, lora_tensors(result), path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    data = path.read_bytes()
    content = data[8 + int.from_bytes(data[:8], "little") :]
    assert metadata["modelspec.hash_sha256"] == f"0x{hashlib.sha256(content).hexdigest()}"
    assert metadata["modelspec.architecture"] == "unet/lora"
    assert metadata["modelspec.title"] == "Ink"
    assert "0 to 1.5" in metadata["modelspec.usage_hint"]
    assert "ssmd_cover_images" in metadata
    assert metadata["act.map_sha256"] == sha256_of(result.act_map)


def test_same_lora_has_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    path, result, files = tmp_path / "ink.safetensors", folded(title="Ink"), set[bytes]()
    for _ in range(6):
        save_lora(result, lora_tensors(result), path)
        files.add(path.read_bytes())
    assert len(files) == 1
    with safe_open(path, "pt") as file:
        assert file.metadata()["modelspec.date"] == "1970-01-02"


def test_hash_of_a_map_is_that_of_its_file(tmp_path: Path) -> None:
    act_map = folded().act_map
    assert sha256_of(load_map(save_map(act_map, tmp_path / "map.safetensors", title="other"))) == sha256_of(act_map)


def test_hash_of_a_map_covers_slopes_and_shifts() -> None:
    act_map = folded().act_map
    site, transport = next(iter(act_map.transports.items()))
    for changed in (replace(transport, omega=transport.omega + 1), replace(transport, beta=transport.beta + 1)):
        other = replace(act_map, transports={**act_map.transports, site: changed})
        assert sha256_of(other) != sha256_of(act_map)


def test_unwritable_place_is_an_error(tmp_path: Path) -> None:
    result = folded()
    with pytest.raises(MapFileError, match="cannot be written"):
        save_lora(result, lora_tensors(result), tmp_path / "absent" / "ink.safetensors")


def shifted(pipeline: Any, sites: str) -> tuple[DiffusersModel, ActMap]:
    model = DiffusersModel(pipeline, size=SIZE)
    return model, fit(model, SOURCE, TARGET, sites=sites, estimator="mean")


def test_diffusers_format_leaves_out_norms_and_slopes(pipeline: Callable[[str], Any]) -> None:
    model, act_map = shifted(pipeline("stable diffusion"), "norms,attention")
    result = for_diffusers(fold_map(act_map, model.modules))
    assert 0 < len(result.folds) < len(act_map)
    assert set(result.left_out.values()) == {"diffusers reads LoRAs of linear layers only"}
    assert result.lost is not None
    assert 0 < result.lost < 1
    slopes = fit(model, SOURCE, TARGET, sites="attention")
    with pytest.raises(MapError, match="no slopes together with shifts; fit with estimator mean"):
        for_diffusers(fold_map(slopes, model.modules))


@pytest.mark.parametrize("kind", ["stable diffusion", "sdxl", "sd3", "flux"])
def test_diffusers_reads_shifts_as_steering(kind: str, tmp_path: Path) -> None:
    from pipelines import PIPELINES

    model, act_map = shifted(PIPELINES[kind](), "attention,mlp")
    result = for_diffusers(fold_map(act_map, model.modules))
    kept = {site: t for site, t in act_map.transports.items() if site.key not in result.left_out}

    def drawn() -> Tensor:
        size = {"width": SIZE[0], "height": SIZE[1], "generator": torch.Generator().manual_seed(0)}
        return model.pipeline("sea", num_inference_steps=2, output_type="latent", **size).images

    plain, expected = drawn(), {}
    for strength in STRENGTHS:
        with steer(model.modules, replace(act_map, transports=kept), strength):
            expected[strength] = drawn()
    path = tmp_path / "lora.safetensors"
    save_lora(result, diffusers_lora_tensors(result, places_of(model.pipeline)), path)
    model.pipeline.load_lora_weights(str(path), adapter_name="map")
    for strength in STRENGTHS:
        model.pipeline.set_adapters(["map"], [strength])
        moved = (plain - expected[strength]).abs().max()
        assert (drawn() - expected[strength]).abs().max() < min(ROUNDING * expected[strength].std(), moved / 100)


def test_command_exports_for_both(run: Run, tmp_path: Path, tiny_pipeline: Path, pipeline_map: Path) -> None:
    out = tmp_path / "lora.safetensors"
    options = ("--model", tiny_pipeline, "--out", out)
    status, text, err = run("export-lora", pipeline_map, *options)
    assert (status, err) == (0, "")
    assert "sites of the map are in the weights" in text
    assert "Saved" in text
    names = {name.rpartition(".")[2] for name in load_file(out)}
    assert names == {"oft_blocks", "rescale", "alpha", "diff", "diff_b"}
    refused(run("export-lora", pipeline_map, *options), "already exists")
    out.unlink()
    refused(run("export-lora", pipeline_map, *options, "--format", "diffusers"), "fit with estimator mean")
    assert not out.exists()


def test_command_refuses_language_models(run: Run, tmp_path: Path, tiny: Path, tiny_map: Path) -> None:
    refused(run("export-lora", tiny_map, "--model", tiny, "--out", tmp_path / "lora.safetensors"), "pipeline")


def test_keys_of_pipelines_are_those_that_comfyui_reads() -> None:
    # With and without the prefix that depends on the version of transformers.
    for name in ("encoder.layers.0.mlp.fc2", "text_model.encoder.layers.0.mlp.fc2"):
        assert comfyui_name("clip_l", name, nn.Identity()) == "text_model.encoder.layers.0.mlp.fc2"
    assert comfyui_name("t5xxl", "encoder.final_layer_norm", nn.Identity()) == "encoder.final_layer_norm"
    assert comfyui_key("t5xxl", "encoder.final_layer_norm") == (
        "text_encoders.t5xxl.transformer.encoder.final_layer_norm"
    )


def test_layers_without_a_name_in_comfyui_are_left_out() -> None:
    site = Site("diffusion_model", "1", None, "tokens", 2)
    act_map = ActMap({site: Transport(torch.ones(2), torch.ones(2))})
    modules = {"diffusion_model": nn.Sequential(nn.Identity(), nn.Linear(2, 2))}
    with pytest.raises(MapError, match="its name in ComfyUI is not known"):
        for_comfyui(fold_map(act_map, modules), modules)


def test_quantised_layer_is_left_out_where_its_change_is_stored_whole() -> None:
    plain, quantised = (nn.Linear(2, 2) for _ in range(2))
    quantised.weight = nn.Parameter(torch.ones(2, 2, dtype=torch.int8), requires_grad=False)
    sites = [Site("diffusion_model", name, None, "tokens", 2) for name in ("0", "1")]
    act_map = ActMap({site: Transport(torch.full((2,), 2.0), torch.ones(2)) for site in sites})
    folded = fold_map(act_map, {"diffusion_model": nn.Sequential(plain, quantised)})
    assert storable(folded).left_out == {}
    whole = storable(folded, "whole")
    assert whole.left_out == {"diffusion_model/1": "its weight is quantised, so its change cannot be stored whole"}
    assert list(lora_tensors(whole, linear_layers="whole")) == ["diffusion_model.0.diff", "diffusion_model.0.diff_b"]


def test_lora_needs_the_suffix_that_loaders_list(tmp_path: Path) -> None:
    site = Site("diffusion_model", "0", None, "tokens", 2)
    act_map = ActMap({site: Transport(torch.ones(2), torch.ones(2))}, card=Card(strength_range=(0.0, 2.0)))
    for card, hint in (
        (act_map.card, "Strengths from 0 to 2 are recommended."),
        (Card(), "An Activation Transport map."),
    ):
        folded = fold_map(replace(act_map, card=card), {"diffusion_model": nn.Sequential(nn.Linear(2, 2))})
        with pytest.raises(MapFileError, match=r"ink is not a name for a LoRA; it must end in \.safetensors"):
            save_lora(folded, lora_tensors(folded), tmp_path / "ink")
        assert list(tmp_path.iterdir()) == []
        save_lora(folded, lora_tensors(folded), path := tmp_path / "ink.safetensors")
        with safe_open(path, "pt") as file:
            assert file.metadata()["modelspec.usage_hint"].endswith(hint)
        path.unlink()
