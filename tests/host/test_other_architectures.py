"""Maps of one architecture on the host's models of others: refused, allowed, or built on the same class."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from in_host import run_inside

VARIANTS = {
    "VACE": "VaceWanModel",
    "Camera": "CameraWanModel",
    "Animate": "AnimateWanModel",
    "S2V": "WanModel_S2V",
}

# Defaults of the host's own nodes, by class of its model configuration. Where a still derives from a video or the other
# way round, both are here.
SIZES = {
    **dict.fromkeys(("SDXL", "Flux", "ZImage", "Chroma", "CosmosT2IPredict2", "Kandinsky5Image", "Lens"), (1024, 1024)),
    **dict.fromkeys(("HunyuanImage21", "HunyuanImage21Refiner"), (2048, 2048)),
    **dict.fromkeys(("Kandinsky5", "LTXV", "LTXAV"), (768, 512)),
    **dict.fromkeys(("HunyuanVideo", "CosmosI2VPredict2"), (848, 480)),
    "WAN21_Vace": (832, 480),
    "MiniMaxH3": (1344, 768),
    "SD15": (512, 512),
    "SV3D_u": (576, 576),
    "Stable_Zero123": (256, 256),
}


@pytest.fixture(scope="module")
def results(host_python: Path) -> dict[str, Any]:
    return json.loads(run_inside(host_python, "architectures.py"))


@pytest.mark.parametrize(("name", "sites"), [("Flux", 5), ("Wan", 3)])
def test_map_on_its_own_model_reports_only_its_sites(results: dict[str, Any], name: str, sites: int) -> None:
    result = results["own"][name]
    assert result["report"] == [f"diffusion_model: {sites} of {sites} sites found, strength 1, positive branch."]
    assert result["outcome"] == f"map: {sites} of {sites} sites fired."


@pytest.mark.parametrize("name", ["Chroma", "HunyuanVideo", "LongCat-Image"])
def test_flux_map_is_refused_by_models_with_the_same_names(results: dict[str, Any], name: str) -> None:
    if name not in results["refused"]:
        pytest.skip(f"this ComfyUI does not have {name}")
    error = results["refused"][name]["error"]
    given = "LongCatImage" if name == "LongCat-Image" else name
    assert f"was fitted on Flux (diffusion_model), but this model is {given}, another architecture" in error
    assert "set allow_other_architecture on Load ACT Map" in error


@pytest.mark.parametrize("name", ["Flux", "Flux schnell"])
def test_map_from_diffusers_is_translated_and_what_is_left_out_is_reported(results: dict[str, Any], name: str) -> None:
    found, note, warning = results["from diffusers"][name]["report"]
    assert found.startswith(
        "diffusion_model: 5 of 6 sites found (first missing: diffusion_model/transformer_blocks.0.norm1#0)"
    )
    assert "translated to the names of ComfyUI (diffusion_model); 1 of its 6 sites do not carry over" in note
    assert "of which 1 are not in this model" in warning
    assert results["from diffusers"][name]["outcome"].startswith("map: 5 of 6 sites fired, 1 not found")


def test_map_from_diffusers_is_refused_by_other_model_of_the_same_class(results: dict[str, Any]) -> None:
    if "LongCat-Image" not in results["from diffusers"]:
        pytest.skip("this ComfyUI does not have LongCat-Image")
    assert "but this model is LongCatImage, another architecture" in results["from diffusers"]["LongCat-Image"]["error"]


@pytest.mark.parametrize("name", ["Chroma", "HunyuanVideo"])
def test_allowed_flux_map_applies_with_a_warning(results: dict[str, Any], name: str) -> None:
    found, warning = results["allowed"][name]["report"]
    assert found.startswith("diffusion_model: 5 of 5 sites found")
    assert f"fitted on Flux (diffusion_model), but this model is {name}; it may have a different effect" in warning
    assert results["allowed"][name]["outcome"] == "map: 5 of 5 sites fired."


def test_allowed_flux_map_applies_to_other_model_of_its_class(results: dict[str, Any]) -> None:
    if "LongCat-Image" not in results["allowed"]:
        pytest.skip("this ComfyUI does not have LongCat-Image")
    result = results["allowed"]["LongCat-Image"]
    assert result["outcome"] == "map: 5 of 5 sites fired."
    assert results["without variants"] == {"LongCat-Image": result}


@pytest.mark.parametrize("name", ["Flux", "Flux schnell"])
def test_flux_dev_and_schnell_share_maps(results: dict[str, Any], name: str) -> None:
    found, weights = results["same family"][name]["report"]
    assert found.startswith("diffusion_model: 5 of 5 sites found")
    assert "other weights of Flux" in weights


def test_models_are_fitted_at_the_sizes_of_their_kind(results: dict[str, Any]) -> None:
    sizes = {kind: tuple(size) for kind, size in results["sizes"].items()}
    assert sizes == {kind: size for kind, size in SIZES.items() if kind in sizes}
    assert "Flux" in sizes


def test_empty_latent_is_adapted_in_newer_and_older_hosts(results: dict[str, Any]) -> None:
    assert results["latents"] == [[1, 16, 8, 8]] * 2


@pytest.mark.parametrize("name", VARIANTS)
def test_wan_map_applies_to_variants_and_says_why(results: dict[str, Any], name: str) -> None:
    result = results["variants"][name]
    found, note, weights = result["report"]
    assert found.startswith("diffusion_model: 3 of 3 sites found")
    assert f"fitted on WanModel (diffusion_model); this model is {VARIANTS[name]}, which is built on it" in note
    assert "other weights of WanModel" in weights
    assert result["outcome"] == "map: 3 of 3 sites fired."
