"""Every class of model that the host has and that can be built small: a map refined on pictures."""

from __future__ import annotations

from typing import Any

import pytest
from in_host import ResultsOf

from tools.tiny_models import MODELS

# What cannot be refined, and why.
_NO_GRADIENT = "This model cannot be differentiated here"
REFUSED = {
    # Fused kernels of the host without gradients.
    **dict.fromkeys(("Cosmos Predict 2", "Anima", "JoyImage", "ERNIE-Image", "HiDream-O1"), _NO_GRADIENT),
    "SVD": "several latents for one picture",
    "SeedVR2": "a search for 'auto' found nothing in it",
}
REFINED = [name for name in MODELS if name not in REFUSED]


@pytest.fixture(scope="module")
def everything(results_of: ResultsOf) -> dict[str, Any]:
    return results_of("refine_models.py")


@pytest.mark.parametrize("name", REFINED)
def test_loss_falls_and_nothing_else_changes(name: str, everything: dict[str, Any]) -> None:
    found = everything[name]
    assert "error" not in found
    assert found["after"] < 0.99 * found["before"]
    assert found["sites"] >= 2
    assert found["same weights"]
    assert found["same loss"]
    assert found["left behind"] == 0


@pytest.mark.parametrize("name", REFINED)
def test_loss_is_the_error_over_the_noise_level(name: str, everything: dict[str, Any]) -> None:
    """At any noise level, and whatever the model predicts: 0 for the clean picture, 1 for an error as large as it.

    To rounding, which grows as the noise level, by which the error is divided, falls to 0.01.
    """
    assert everything[name]["loss if right"] < 1e-6
    assert abs(everything[name]["loss if wrong by the noise"] - 1) < 1e-3


@pytest.mark.parametrize("name", REFINED)
def test_previews_appear_where_the_host_can_make_them(name: str, everything: dict[str, Any]) -> None:
    assert everything[name]["previews"] == (2 if everything[name]["can be previewed"] else 0)


def test_preview_that_fails_does_not_end_the_refinement(everything: dict[str, Any]) -> None:
    found = everything["failing previews"]
    assert found["previews"] == 0
    assert found["after"] < 0.99 * found["before"]


def test_no_previews_if_the_host_is_set_to_none(everything: dict[str, Any]) -> None:
    assert everything["without previews"]["can be previewed"]
    assert everything["without previews"]["previews"] == 0


def test_checkpoints_in_little_memory_give_the_same_map(everything: dict[str, Any]) -> None:
    """To rounding; blocks run again for each gradient, and nothing of that is left."""
    found = everything["in little memory"]
    assert found["difference"] < 1e-4
    assert found["runs"][1] > found["runs"][0] + 1
    assert found["left behind"] == 0


@pytest.mark.parametrize("name", REFUSED)
def test_model_without_gradient_is_refused_in_a_sentence(name: str, everything: dict[str, Any]) -> None:
    found = everything[name]
    assert REFUSED[name] in found["error"]
    assert found["same weights"]
    assert found["left behind"] == 0
