"""Text-to-image pipelines that the adapter knows only by their signatures, on tiny random ones."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from helpers import keys, swapped
from other_pipelines import OTHER_PIPELINES
from pipeline_parts import NEGATIVE, diffusers
from pipelines import PIPELINES, SOURCE, TARGET
from pipelines import SIZE as PICTURE
from torch import Tensor, nn

from act_core import ActMap, MapError, fit
from act_core.interception import intercepted, output_tensors
from act_core.models.diffusers import DIFFUSION_MODEL, DiffusersModel

SIZE = (32, 32)
# Padded to the longest prompt of a batch, or read without padding: prompts of different lengths cannot share a batch.
UNPADDED = ("z-image", "qwen-image", "cogview 4", "lumina 2")


@cache
def tiny(kind: str) -> tuple[DiffusersModel, ActMap]:
    """A pipeline and a map of it, which tests share."""
    model = DiffusersModel(OTHER_PIPELINES[kind](), kind, size=SIZE)
    return model, fit(model, SOURCE, TARGET, sites="auto")


def rows_at_last_site(kind: str, prompts: Sequence[str] = SOURCE[:2]) -> list[Tensor]:
    """What the last site of the diffusion model returns in a guided step, for each row of its calls."""
    model, act_map = tiny(kind)
    site = list(act_map.transports)[-1]
    assert site.component == DIFFUSION_MODEL
    rows: list[Tensor] = []

    def note(output: Any) -> Any:
        rows.extend(output_tensors(output)[site.output].clone())
        return output

    with intercepted({model.modules[DIFFUSION_MODEL].get_submodule(site.name): note}):
        model.generate(prompts, steps=1, guidance=3.0, negative=NEGATIVE)
    return rows


def differ(one: list[Tensor], other: list[Tensor]) -> list[bool]:
    return [not torch.equal(a, b) for a, b in zip(one, other, strict=True)]


@pytest.mark.parametrize("kind", OTHER_PIPELINES)
def test_fit_finds_sites_of_every_component_and_restores_model(kind: str) -> None:
    model, act_map = tiny(kind)
    assert set(act_map.components) == set(model.modules)
    assert all(torch.isfinite(transport.omega).all() for transport in act_map.transports.values())
    assert [name for module in model.modules.values() for name in swapped(module)] == []


@pytest.mark.parametrize("kind", OTHER_PIPELINES)
def test_steer_steers_only_rows_of_branch(kind: str) -> None:
    model, act_map = tiny(kind)
    plain = rows_at_last_site(kind)
    # The rows that other prompts change.
    positive = differ(plain, rows_at_last_site(kind, TARGET[:2]))
    assert sum(positive) == len(positive) / 2
    with model.steer(act_map, 0.0):
        assert not any(differ(plain, rows_at_last_site(kind)))
    for component in act_map.components:
        part = act_map.restrict(f"{component}/*")
        with model.steer(part, 1.0):
            assert differ(plain, rows_at_last_site(kind)) == positive
        with model.steer(part, 1.0, "negative"):
            assert differ(plain, rows_at_last_site(kind)) == [not one for one in positive]
    with model.steer(act_map, 1.0, "both"):
        assert all(differ(plain, rows_at_last_site(kind)))
    assert not any(differ(plain, rows_at_last_site(kind)))


@pytest.mark.parametrize("kind", OTHER_PIPELINES)
def test_prompts_share_batch_only_if_they_have_one_length(kind: str) -> None:
    model, _ = tiny(kind)
    short, longer, long = "rain", "sun sun", " ".join(["many red houses by the sea"] * 5)
    sizes = [batch.rows for batch in model.batches([short, long, short], 3)]
    assert sizes == ([2, 1] if kind in UNPADDED else [3])
    assert sum(batch.rows for batch in model.batches([short, longer, long], 2)) == 3


def mask_of(kind: str, prompt: str) -> Tensor:
    model, _ = tiny(kind)
    (batch,) = model.batches([prompt], 1)
    batch.run()
    (mask,) = batch.masks.values()
    return mask


MASKED = ("pixart", "wan", "lumina 2", "z-image", "qwen-image", "hunyuanvideo")
WITHOUT_MASK = ("ltx", "cogview 4")  # padded after the prompt, and before it


@pytest.mark.parametrize("kind", [*MASKED, *WITHOUT_MASK])
def test_only_tokens_of_prompt_count_in_text_encoder(kind: str) -> None:
    # Neither the padding nor the template, which ends with a token for the end of the text.
    assert mask_of(kind, "rain").sum() == 1
    assert mask_of(kind, "rain sun rain").sum() == 3


@pytest.mark.parametrize("kind", ["sd3", "flux"])
def test_padding_of_t5_beside_clip_does_not_count(kind: str) -> None:
    """These pipelines call T5 without a mask. Each byte is a token; the padding of CLIP counts."""
    model = DiffusersModel(PIPELINES[kind](), kind, size=PICTURE)
    (batch,) = model.batches(["rain", "wind and sun"], 2)
    batch.run()
    assert {name: mask.sum(1).tolist() for name, mask in batch.masks.items()} == {"t5xxl": [4, 12]}


def test_text_and_picture_are_apart_if_prompts_differ_in_length() -> None:
    model = DiffusersModel(OTHER_PIPELINES["lumina 2"](), size=SIZE, components="model")
    source, short = ["rain sun", "sun rain"], ["red sea", "the sea"]
    long = ["red houses by the sea", "many trees and houses by the red sea"]
    assert ends(fit(model, source, long, sites="blocks")) == {"context_refiner.0": [], "noise_refiner.0": []} | {
        f"layers.{number}": ["leading", "trailing"] for number in range(2)
    }
    assert not any(ends(fit(model, source, short, sites="blocks")).values())


def ends(act_map: ActMap) -> dict[str, list[str]]:
    """The segments of each site's module."""
    found: dict[str, list[str]] = {site.name: [] for site in act_map.transports}
    for site in act_map.transports:
        if site.segment is not None:
            found[site.name].append(site.segment.end)
    return found


@pytest.mark.parametrize("kind", OTHER_PIPELINES)
def test_lengths_are_counted_only_where_pipeline_does_not_pad(kind: str) -> None:
    model, _ = tiny(kind)
    long = " ".join(["many red houses by the sea"] * 5)
    assert (model.batch_key("rain") != model.batch_key(long)) == (kind in UNPADDED)
    assert model.batch_key("rain sun") == model.batch_key("sun rain")


@pytest.mark.parametrize("kind", UNPADDED)
def test_lengths_are_known_before_text_encoder_runs(kind: str) -> None:
    model, _ = tiny(kind)
    calls: list[Any] = []
    encoder = next(iter(model.modules.values()))
    with intercepted({encoder: lambda output: calls.append(output) or output}):
        model.batch_key("sea trees fox")
        assert not calls
        model.batches(["sea trees fox"], 1)[0].run()
    assert len(calls) == 1


def test_rows_are_known_of_models_in_wrapper() -> None:
    """Adapters such as `peft` pass on positional arguments, of which the first is the one with rows."""
    plain, wrapped = (DiffusersModel(OTHER_PIPELINES["pixart"](), size=SIZE, components="text") for _ in range(2))
    wrapped.pipeline.text_encoder = Wrapper(wrapped.pipeline.text_encoder)
    masks: list[Tensor] = []
    for model in (plain, wrapped):
        (batch,) = model.batches(["rain", "sun sun", "red sea"], 3)
        batch.run()
        masks.append(batch.masks["t5xxl"])
    assert torch.equal(*masks)
    maps = [fit(model, SOURCE, TARGET, sites="attention") for model in (plain, wrapped)]
    for one, other in zip(*(act_map.transports.values() for act_map in maps), strict=True):
        assert torch.equal(one.beta, other.beta)


def test_clip_in_wrapper_counts_whole() -> None:
    pipeline = PIPELINES["flux"]()
    pipeline.text_encoder = Wrapper(pipeline.text_encoder)
    (batch,) = DiffusersModel(pipeline, size=PICTURE).batches(["rain"], 1)
    batch.run()
    assert set(batch.masks) == {"t5xxl"}


class Wrapper(nn.Module):
    """What `peft` puts around a model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.base_model = nn.ModuleDict({"model": model})

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.base_model["model"](*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.base_model["model"], name)


def test_generate_without_guidance_has_no_negative_branch() -> None:
    model, act_map = tiny("wan")
    with model.steer(act_map, 1.0, "negative") as steering:
        model.generate(SOURCE[:1], steps=1, guidance=1.0)
        with pytest.raises(MapError, match="is absent without guidance"):
            steering.check()


def test_branch_of_prompt_that_equals_negative_prompt_is_refused() -> None:
    model, act_map = tiny("wan")
    with pytest.raises(MapError, match="branches cannot be told apart"), model.steer(act_map, 1.0):
        model.generate(["rain"], steps=1, negative="rain", guidance=3.0)


def test_rows_that_cannot_be_found_are_refused() -> None:
    class Blurred(diffusers.WanPipeline):
        """Gives the model other embeddings under guidance than without."""

        def encode_prompt(self, *args: Any, **kwargs: Any) -> Any:
            embeddings, negative = super().encode_prompt(*args, **kwargs)
            return (embeddings if negative is None else embeddings * 0.5), negative

    plain, act_map = tiny("wan")
    model = DiffusersModel(Blurred(**plain.pipeline.components), size=SIZE)
    with model.steer(act_map, 1.0), pytest.raises(MapError, match="rows of the positive prompt cannot be found"):
        model.generate(["rain"], steps=1, guidance=3.0)
    assert len(model.generate(["rain"], steps=1, guidance=3.0)) == 1


def test_negative_prompt_that_pipeline_cannot_take_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    model, _ = tiny("flux 2 klein")
    with caplog.at_level(logging.WARNING, "act_core"):
        model.generate(["rain"], steps=1, negative=NEGATIVE)
    assert "A Flux2KleinPipeline takes no negative prompt, so 'dull grey' is ignored." in caplog.text


def test_distilled_model_gets_guidance_as_input() -> None:
    model, act_map = tiny("hunyuanvideo")
    with model.steer(act_map.restrict(f"{DIFFUSION_MODEL}/*"), 1.0) as steering:
        model.generate(["rain"], steps=1, guidance=3.0)
    assert set(steering.coverage.fires.values()) == {1}


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("WanImageToVideoPipeline", "needs more than a prompt: image"),
        ("KandinskyV22Pipeline", "it is not a text-to-image pipeline"),
        ("KandinskyPipeline", "needs more than a prompt: image_embeds"),
        ("StableVideoDiffusionPipeline", "it is not a text-to-image pipeline"),
    ],
)
def test_pipeline_that_needs_more_than_prompt_is_refused(name: str, match: str) -> None:
    kind = getattr(diffusers, name)
    with pytest.raises(MapError, match=match):
        DiffusersModel(kind.__new__(kind))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda pipeline: setattr(pipeline, "transformer", None), "diffusion model .* is missing"),
        (
            lambda pipeline: setattr(pipeline, "inner", pipeline.__class__(**pipeline.components)),
            "runs other pipelines",
        ),
    ],
)
def test_incomplete_or_composed_pipeline_is_refused(change: Callable[[Any], None], match: str) -> None:
    pipeline = OTHER_PIPELINES["wan"]()
    change(pipeline)
    with pytest.raises(MapError, match=match):
        DiffusersModel(pipeline)


def test_pipeline_that_fails_on_prompt_alone_is_refused_in_one_sentence() -> None:
    model, _ = tiny("wan")
    pipeline = diffusers.WanPipeline(**{**model.pipeline.components, "text_encoder": None})
    with pytest.raises(MapError, match="A WanPipeline cannot be run from a prompt alone: ") as caught:
        fit(DiffusersModel(pipeline, size=SIZE), SOURCE, TARGET)
    assert "\n" not in str(caught.value)


def test_second_diffusion_model_is_left_alone_with_note() -> None:
    model, _ = tiny("wan")
    parts = {**model.pipeline.components, "transformer_2": OTHER_PIPELINES["wan"]().transformer}
    two = DiffusersModel(diffusers.WanPipeline(**parts, boundary_ratio=0.5), size=SIZE)
    assert keys(fit(two, SOURCE, TARGET, sites="attention")) == keys(fit(model, SOURCE, TARGET, sites="attention"))
    assert "second diffusion model" in fit(two, SOURCE, TARGET, sites="attention").record.notes[-1]
