"""Every class of model that the host has and that can be built small: fitted, steered and restored with the nodes."""

from __future__ import annotations

from typing import Any

import pytest
from between_hosts import Exchange, carried
from in_host import ResultsOf
from models_page import NOTES, PAGE, SCRIPTS, page

from tools.tiny_models import MODELS

# What cannot be fitted, and why.
REFUSED = {
    # The batch is not the first dimension of its activations.
    "Cosmos 1": "with one row for each prompt, unlike the first prompts; choose other sites",
    # Its activations are flat lists of tokens, and its text is fixed.
    "SeedVR2": "a search for 'auto' found nothing in it: it looks for numbered blocks",
}
# Text and picture share a stream, and the host does not pad prompts to one length.
APART = {
    *("LongCat-Image", "Ovis-Image", "Chroma", "Chroma Radiance", "Lumina 2", "Z-Image", "HiDream-O1", "OmniGen2"),
    *("Boogu", "Ideogram 4", "Krea 2", "ERNIE-Image", "HunyuanVideo", "HunyuanVideo 1.5", "HunyuanImage 2.1"),
}
FITTED = [name for name in MODELS if name not in REFUSED]


@pytest.fixture(scope="module")
def everything(results_of: ResultsOf) -> dict[str, Any]:
    return results_of("every_model.py")


@pytest.mark.parametrize("name", FITTED)
def test_model_is_fitted_steered_and_restored(name: str, everything: dict[str, Any]) -> None:
    found = everything[name]
    assert "error" not in found
    assert found["sites"] >= 4
    assert found["strength 0 is exact"]
    assert found["moved"]
    assert found["positive moved"]
    # Experts multiply the tokens of both branches at once, so rounding depends on both.
    assert found["negative moved by"] <= (1e-5 if name in NOTES else 0)
    assert found["restored"]
    assert found["left behind"] == 0


@pytest.mark.parametrize("name", FITTED)
def test_text_and_picture_that_share_a_stream_are_steered_apart(name: str, everything: dict[str, Any]) -> None:
    assert bool(everything[name]["segments"]) == (name in APART)


@pytest.mark.parametrize("name", REFUSED)
def test_model_that_cannot_be_fitted_is_refused_in_a_sentence(name: str, everything: dict[str, Any]) -> None:
    assert REFUSED[name] in everything[name]["error"]
    assert everything[name]["restored"]


def test_models_page_shows_what_was_found(results_of: ResultsOf, exchange: Exchange) -> None:
    between = {name: carried(exchange, name) for name in exchange.report}
    found = page(*(results_of(script) for script in SCRIPTS), between=between)
    assert PAGE.read_text("utf-8") == found, "run python tests/host/models_page.py"
