"""What a calibration asks of a pipeline: latents from fixed noise, and activations of the model that looks at them."""

from __future__ import annotations

import pytest
import torch
from other_pipelines import OTHER_PIPELINES
from pipelines import SIZE

from act_core import MapError, fit
from act_core.models.calibration import PipelineCalibration
from act_core.models.diffusers import DiffusersModel

PROMPTS = ["rain", "sun", "fog and wind"]


def test_activations_belong_to_the_latents(model: DiffusersModel) -> None:
    drawer = PipelineCalibration(model, steps=2)
    latents = drawer.draw(PROMPTS)
    assert len(latents) == len(PROMPTS)
    assert torch.equal(drawer.draw(PROMPTS), latents)
    seen = drawer.activations(latents, PROMPTS)
    assert seen.shape[0] == len(PROMPTS)
    assert bool(seen.isfinite().all())
    other = latents.clone()
    other[0] += 1
    changed = (drawer.activations(other, PROMPTS) - seen).abs().amax(1)
    assert changed[0] > 0
    # Rows of a batch differ by rounding only.
    assert changed[1:].max() < 1e-3 * changed[0] + 1e-6


def test_map_changes_latents_but_not_the_model_that_looks_at_them(model: DiffusersModel) -> None:
    drawer = PipelineCalibration(model, steps=2)
    act_map = fit(model, PROMPTS, ["night", "moon", "stars and frost"])
    before = drawer.draw(PROMPTS)
    seen = drawer.activations(before, PROMPTS)
    assert not torch.equal(drawer.draw(PROMPTS, act_map, 1.0), before)
    assert torch.equal(drawer.draw(PROMPTS, act_map, 0.0), before)
    assert torch.equal(drawer.activations(before, PROMPTS), seen)


def test_pipeline_that_keeps_its_latents_otherwise_is_refused() -> None:
    drawer = PipelineCalibration(DiffusersModel(OTHER_PIPELINES["z-image"](), size=SIZE), steps=2)
    with pytest.raises(MapError, match="cannot be calibrated; use ComfyUI"):
        drawer.activations(drawer.draw(PROMPTS), PROMPTS)
