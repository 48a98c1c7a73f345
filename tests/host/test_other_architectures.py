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


@pytest.fixture(scope="module")
def results(host_python: Path) -> dict[str, Any]:
    return json.loads(run_inside(host_python, "architectures.py"))


@pytest.mark.parametrize(("name", "sites"), [("Flux", 5), ("Wan", 3)])
def test_map_on_its_own_model_reports_only_its_sites(results: dict[str, Any], name: str, sites: int) -> None:
    result = results["own"][name]
    assert result["report"] == [f"diffusion_model: {sites} of {sites} sites found, strength 1, positive branch."]
    assert result["outcome"] == f"map: {sites} of {sites} sites fired."


@pytest.mark.parametrize("name", ["Chroma", "HunyuanVideo"])
def test_flux_map_is_refused_by_models_with_the_same_names(results: dict[str, Any], name: str) -> None:
    error = results["refused"][name]["error"]
    assert f"was fitted on Flux (diffusion_model), but this model is {name}, another architecture" in error
    assert "set allow_other_architecture on Load ACT Map" in error


@pytest.mark.parametrize("name", ["Chroma", "HunyuanVideo"])
def test_allowed_flux_map_applies_with_a_warning(results: dict[str, Any], name: str) -> None:
    found, warning = results["allowed"][name]["report"]
    assert found.startswith("diffusion_model: 5 of 5 sites found")
    assert f"fitted on Flux (diffusion_model), but this model is {name}; it may have a different effect" in warning
    assert results["allowed"][name]["outcome"] == "map: 5 of 5 sites fired."


@pytest.mark.parametrize("name", VARIANTS)
def test_wan_map_applies_to_variants_and_says_why(results: dict[str, Any], name: str) -> None:
    result = results["variants"][name]
    found, note, weights = result["report"]
    assert found.startswith("diffusion_model: 3 of 3 sites found")
    assert f"fitted on WanModel (diffusion_model); this model is {VARIANTS[name]}, which is built on it" in note
    assert "other weights of WanModel" in weights
    assert result["outcome"] == "map: 3 of 3 sites fired."
