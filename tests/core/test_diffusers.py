"""Text-to-image pipelines: sites and fits, on tiny random pipelines of every kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import accelerate
import numpy as np
import pytest
import torch
from helpers import assert_identical, keys
from pipelines import (
    PIPELINES,
    SIZE,
    SOURCE,
    TARGET,
    all_swapped,
    fitted,
    pixels,
    stable_diffusion,
)
from torch import Tensor

from act_core import fit
from act_core.discovery import discover
from act_core.interception import intercepted, output_tensors
from act_core.models.diffusers import DIFFUSION_MODEL, DiffusersModel

# Kind of pipeline -> preset -> how many sites of the diffusion model, as pipelines.py makes it.
COUNTS = {
    # Four transformers (one on the way down, one in the middle, two on the way up) with two attentions each.
    "stable diffusion": {"attention": 8, "mlp": 4},
    "sdxl": {"attention": 8, "mlp": 4},
    # Three blocks of two streams; the text stream of the last one ends with its attention.
    "sd3": {"norms": 11, "attention": 5, "mlp": 5, "blocks": 5},
    "one encoder": {"norms": 11, "attention": 5, "mlp": 5, "blocks": 5},
    "flux": {"norms": 10, "attention": 6, "mlp": 4, "blocks": 8},
}


def sites_of(model: DiffusersModel, sites: str) -> list[str]:
    batch = model.batches(["rain", "sun"], 2)[0]
    with torch.no_grad():
        return [site.key for site in discover(model.components, sites, batch.run, batch.rows)]


@pytest.mark.parametrize(("kind", "preset"), [(kind, preset) for kind, presets in COUNTS.items() for preset in presets])
def test_presets_find_expected_number_of_sites(pipeline: Callable[[str], Any], kind: str, preset: str) -> None:
    model = DiffusersModel(pipeline(kind), size=SIZE, components="model")
    names = sites_of(model, preset)
    assert len(names) == COUNTS[kind][preset]
    assert not [name for name in names if "norm_q" in name or "norm_k" in name]


def test_norms_of_unet_are_found_in_execution_order(unet: DiffusersModel) -> None:
    from diffusers.models.normalization import RMSNorm

    names = [key for key in sites_of(unet, "norms") if key.startswith(DIFFUSION_MODEL)]
    kinds = (torch.nn.LayerNorm, torch.nn.GroupNorm, RMSNorm)
    every = {f"{DIFFUSION_MODEL}/{n}" for n, m in unet.modules[DIFFUSION_MODEL].named_modules() if isinstance(m, kinds)}
    assert set(names) == every
    assert names[0].endswith("down_blocks.0.resnets.0.norm1")
    assert names[-1].endswith("conv_norm_out")
    # In a block the residual part runs before the attention, though the attention is registered first.
    down = [name for name in names if "down_blocks.1." in name]
    assert "resnets" in down[0]


def test_sites_of_text_encoders_come_first(model: DiffusersModel) -> None:
    components = list(dict.fromkeys(key.partition("/")[0] for key in sites_of(model, "attention")))
    assert components == list(model.modules)
    assert components[-1] == DIFFUSION_MODEL


@pytest.mark.parametrize(("components", "expected"), [("model", [DIFFUSION_MODEL]), ("text", ["clip_l", "clip_g"])])
def test_components_select_parts_of_pipeline(
    pipeline: Callable[[str], Any], components: Any, expected: list[str]
) -> None:
    model = DiffusersModel(pipeline("sdxl"), components=components, size=SIZE)
    assert fitted(model).components == tuple(expected)


def test_output_preset_finds_output_of_text_encoder(pipeline: Callable[[str], Any]) -> None:
    model = DiffusersModel(pipeline("one encoder"), size=SIZE)
    assert sites_of(model, "output") == ["clip_l/text_model.final_layer_norm", "clip_l/text_projection"]


def test_fit_restores_pipeline(model: DiffusersModel) -> None:
    before = pixels(model)
    act_map = fitted(model)
    assert keys(act_map) == sites_of(model, "attention")
    assert all_swapped(model) == []
    np.testing.assert_array_equal(pixels(model), before)


@pytest.mark.parametrize("kind", PIPELINES)
def test_fit_is_independent_of_batch_size(kind: str) -> None:
    # A batch of another size sums in another order, which differs by CPU. In float64 that stays far below the last bit
    # of the float32 to which values are pooled, however much the sites amplify it.
    model = DiffusersModel(PIPELINES[kind]().to(torch.float64), kind, size=SIZE)
    transports = zip(fitted(model).transports.values(), fitted(model, batch_size=2).transports.values(), strict=True)
    for one, other in transports:
        torch.testing.assert_close(one.omega, other.omega, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(one.beta, other.beta, rtol=1e-4, atol=1e-5)


def test_fit_runs_each_prompt_once_at_noisiest_step_without_guidance(model: DiffusersModel) -> None:
    rows: list[int] = []
    times: list[Tensor] = []
    denoiser = model.modules[DIFFUSION_MODEL]
    embedding = denoiser.time_embedding if hasattr(denoiser, "time_embedding") else denoiser.time_text_embed
    inner: Any = getattr(embedding, "timestep_embedder", embedding)

    def note_rows(output: Any) -> Any:
        rows.append(next(iter(output_tensors(output).values())).shape[0])
        return output

    def note_time(output: Any) -> Any:
        times.append(output)
        return output

    (batch,) = model.batches(SOURCE, len(SOURCE))
    with torch.no_grad(), intercepted({inner: note_time, denoiser: note_rows}):
        batch.run()
        assert rows == [len(SOURCE)]
        times.clear()
        pipeline = model.pipeline
        pipeline(prompt=["rain"] * 5, num_inference_steps=20, output_type="latent", height=16, width=16)
    noisiest = times[0][-5:]
    times.clear()
    with torch.no_grad(), intercepted({inner: note_time}):
        batch.run()
    torch.testing.assert_close(times[0], noisiest)


def test_batch_runs_again_from_same_noise(model: DiffusersModel) -> None:
    batch: Any = model.batches(SOURCE, 5)[0]
    with torch.no_grad():
        first, second = (batch.run().images for _ in range(2))
    assert torch.equal(first, second)


def test_batches_give_both_sides_same_noise_and_each_prompt_its_own(unet: DiffusersModel) -> None:
    seen: list[Tensor] = []

    def note(output: Tensor) -> Tensor:
        seen.append(output)
        return output

    conv_in = unet.modules[DIFFUSION_MODEL].get_submodule("conv_in")
    with torch.no_grad(), intercepted({conv_in: note}):
        for texts in (SOURCE, TARGET):
            for batch in unet.batches(texts, 2):
                batch.run()
    source, target = torch.cat(seen[:3]), torch.cat(seen[3:])
    torch.testing.assert_close(source, target)
    assert len({tuple(row.flatten()[:8].tolist()) for row in source}) == len(SOURCE)


@pytest.mark.usefixtures("four_at_a_time")
def test_prompts_keep_their_noise_in_groups(unet: DiffusersModel) -> None:
    settings: dict[str, Any] = {"sites": "attention", "order": "simultaneous"}
    whole, grouped = (fit(unet, SOURCE, TARGET, memory_budget=budget, **settings) for budget in (None, 1 << 30))
    assert grouped.record.walk == "exact"
    for key in keys(whole):
        # Other batches, summed in another order. Differences of slopes would not do: some layers do not see the prompt.
        torch.testing.assert_close(whole[key].statistics, grouped[key].statistics, atol=1e-5, rtol=1e-4)


def test_seed_of_fit_determines_noise(unet: DiffusersModel) -> None:
    def latents(seed: int) -> Any:
        batch: Any = DiffusersModel(unet.pipeline, size=SIZE, seed=seed).batches(SOURCE[:2], 2)[0]
        with torch.no_grad():
            return batch.run().images

    assert torch.equal(latents(3), latents(3))
    assert not torch.equal(latents(3), latents(4))


def test_offloaded_pipeline_is_fitted_and_draws_like_others() -> None:
    plain, offloaded = (DiffusersModel(stable_diffusion(), size=SIZE) for _ in range(2))
    for part in offloaded.pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            accelerate.cpu_offload(part, torch.device("cpu"))
    one, other = fitted(plain), fitted(offloaded)
    assert_identical(one, other)
    assert one.record.base == other.record.base
    np.testing.assert_array_equal(pixels(plain), pixels(offloaded))
