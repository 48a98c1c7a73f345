"""A language model as the text encoder of an image model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from in_host import run_inside


@pytest.fixture(scope="module")
def encoder(host_python: Path) -> dict[str, Any]:
    return json.loads(run_inside(host_python, "llm_encoder.py"))


def test_language_model_as_text_encoder(encoder: dict[str, Any]) -> None:
    # Of three layers, the second becomes the conditioning.
    assert encoder["sites"] == [f"qwen3_4b/model.layers.{layer}.self_attn.o_proj" for layer in range(2)]
    assert encoder["moved"] > 1e-2
    assert encoder["strength 0 is exact"]
    assert encoder["after is exact"]
    assert encoder["again is exact"]


def test_map_of_language_model_in_transformers_steers_text_encoder(encoder: dict[str, Any]) -> None:
    assert encoder["map from transformers is exact"]


def test_fit_on_text_encoder_leaves_out_chat_template(encoder: dict[str, Any]) -> None:
    assert encoder["shift"] > 0.1
    assert encoder["off the shift of the prompts"] < 1e-4  # float32, in batches of another size


def test_text_generate_follows_steered_clip(encoder: dict[str, Any]) -> None:
    if not encoder["texts"]:
        pytest.skip("this ComfyUI has no node that generates text")
    text, steered, more, again, off, after = encoder["texts"]
    assert len({text, steered, more}) == 3
    assert again == steered
    assert off == after == text
