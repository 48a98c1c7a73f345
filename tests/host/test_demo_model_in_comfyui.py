"""The demo model in the host's classes equals the demo model in diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from in_host import run_inside
from safetensors.torch import load_file
from torch import Tensor

from act_core.demo.pictures import demo_model
from act_core.models.diffusers import DiffusersModel

PROMPTS = [
    "cat",
    "red heart, black ink icon",
    "",
    "woman: light skin tone and a very long caption that does not fit, glossy cartoon",
]
# Both compute in float32, in another order.
TOLERANCE: dict[str, Any] = {"atol": 1e-4, "rtol": 1e-4}


@pytest.fixture(scope="module")
def in_host(host_python: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    out = tmp_path_factory.mktemp("demo") / "found.safetensors"
    run_inside(host_python, "demo_model.py", out, *PROMPTS)
    return load_file(out)


@pytest.fixture(scope="module")
def model() -> DiffusersModel:
    return demo_model()


def test_same_conditioning_as_diffusers(in_host: dict[str, Tensor], model: DiffusersModel) -> None:
    with torch.inference_mode():
        context, _, pooled, _ = model.pipeline.encode_prompt(PROMPTS, do_classifier_free_guidance=False)
    torch.testing.assert_close(in_host["context"], context, **TOLERANCE)
    torch.testing.assert_close(in_host["pooled"], pooled, **TOLERANCE)


def test_log_reports_truncated_prompt(in_host: dict[str, Tensor]) -> None:
    assert in_host["cut_off"] == 1


def test_same_predictions_and_pictures_as_diffusers(in_host: dict[str, Tensor], model: DiffusersModel) -> None:
    pipeline: Any = model.pipeline
    with torch.inference_mode():
        predicted = pipeline.transformer(
            hidden_states=in_host["latents"],
            timestep=torch.full((len(PROMPTS),), 700.0),
            encoder_hidden_states=in_host["context"],
            pooled_projections=in_host["pooled"],
        ).sample
        pictures = pipeline.vae.decode(in_host["latents"]).sample
    torch.testing.assert_close(in_host["predicted"], predicted, **TOLERANCE)
    shown = (pictures / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    torch.testing.assert_close(in_host["pictures"], shown, **TOLERANCE)


@pytest.mark.parametrize("name", ["context", "pooled", "gradient"])
def test_captions_encoded_together_are_as_alone(in_host: dict[str, Tensor], name: str) -> None:
    """To rounding: a batch is multiplied and summed up in another order."""
    alone = in_host[f"encode, {name}"]
    assert alone.abs().max() > 0.1
    torch.testing.assert_close(in_host[f"encode_together, {name}"], alone, atol=1e-4, rtol=1e-4)
