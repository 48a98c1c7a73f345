"""Maps of a model that another library built, whose parts and components have other names."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import randomise
from language_models import tiny
from steering_helpers import fitted
from torch import Tensor, nn

from act_core import ActMap, steer
from act_core.architectures import architecture_of
from act_core.architectures.shared_names import Translator
from act_core.architectures.unet import COMFYUI_UNET, DIFFUSERS_UNET
from act_core.components import Component
from act_core.errors import MapMismatchError
from act_core.probe import probe
from act_core.records import Fingerprint, FitRecord
from act_core.sites import Segment, Site
from act_core.steering import check_variant
from act_core.transport import Transport

PART = "diffusion_model"


class Block(nn.Module):
    """Returns two streams, in the order in which the library has them."""

    def __init__(self, projection: str, *, picture_first: bool) -> None:
        super().__init__()
        self.picture_first = picture_first
        # Of a name with dots, a module for each.
        *around, last = projection.split(".")
        inside: nn.Module = nn.Linear(4, 4)
        for name in reversed([*around[1:], last] if around else []):
            holder = nn.Module()
            holder.add_module(name, inside)
            inside = holder
        self.add_module(around[0] if around else last, inside)
        self.projection = projection

    def forward(self, picture: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        picture = picture + self.get_submodule(self.projection)(picture)
        return (picture, text * 2) if self.picture_first else (text * 2, picture)


class FluxTransformer2DModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.transformer_blocks = nn.ModuleList([Block("attn.to_out.0", picture_first=False)])

    def forward(self, picture: Tensor, text: Tensor) -> Tensor:
        for block in self.transformer_blocks:
            text, picture = block(picture, text)
        return torch.cat([text, picture], 1)


class Flux(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.double_blocks = nn.ModuleList([Block("img_attn.proj", picture_first=True)])

    def forward(self, picture: Tensor, text: Tensor) -> Tensor:
        for block in self.double_blocks:
            picture, text = block(picture, text)
        return torch.cat([text, picture], 1)


PICTURE, WORDS = torch.ones(1, 3, 4), torch.ones(1, 2, 4)
IN_DIFFUSERS = ("transformer_blocks.0.attn.to_out.0", None), ("transformer_blocks.0", 0)
IN_COMFYUI = ("double_blocks.0.img_attn.proj", None), ("double_blocks.0", 1)


def map_of(architecture: str, *places: tuple[str, int | None], variants: tuple[str, ...] = ()) -> ActMap:
    """A map that shifts each place by another amount."""
    sites = [Site(PART, name, output, "tokens", 4) for name, output in places]
    transports = {site: Transport(torch.ones(4), torch.full((4,), 1.0 + at)) for at, site in enumerate(sites)}
    return ActMap(transports, FitRecord(base={PART: Fingerprint(architecture, "0" * 64, variants=variants)}))


def drawn(model: nn.Module, act_map: ActMap) -> Tensor:
    with torch.no_grad(), steer(model, act_map):
        return model(PICTURE, WORDS)


@pytest.fixture
def models() -> tuple[nn.Module, nn.Module]:
    """The same weights in both libraries."""
    one, other = randomise(FluxTransformer2DModel(), 0), Flux()
    other.load_state_dict(dict(zip(other.state_dict(), one.state_dict().values(), strict=True)))
    return one, other


@pytest.mark.parametrize("places", [IN_DIFFUSERS[:1], IN_DIFFUSERS[1:], IN_DIFFUSERS])
def test_map_steers_model_of_other_library_alike(
    places: tuple[tuple[str, int | None], ...], models: tuple[nn.Module, nn.Module]
) -> None:
    theirs, ours = models
    back = [there for here, there in zip(IN_DIFFUSERS, IN_COMFYUI, strict=True) if here in places]
    act_map = map_of("FluxTransformer2DModel", *places)
    steered = drawn(theirs, act_map)
    assert not torch.equal(steered, theirs(PICTURE, WORDS))
    assert torch.equal(drawn(ours, act_map), steered)
    assert torch.equal(drawn(theirs, map_of("Flux", *back)), steered)
    assert [site.name for site in act_map.transports] == [name for name, _ in places]  # as it was


def test_steering_has_names_of_model_and_lists_what_does_not_carry_over(models: tuple[nn.Module, nn.Module]) -> None:
    steering = steer(models[1], map_of("FluxTransformer2DModel", *IN_DIFFUSERS, ("transformer_blocks.0.norm1", 0)))
    assert list(steering.coverage.expected) == [
        f"{PART}/double_blocks.0.img_attn.proj",
        f"{PART}/double_blocks.0#1",
        f"{PART}/transformer_blocks.0.norm1#0",
    ]
    assert steering.coverage.missing == (f"{PART}/transformer_blocks.0.norm1#0",)
    assert steering.notes == (
        "The map was fitted in diffusers and is translated to the names of ComfyUI (diffusion_model); 1 of its 3 sites "
        "do not carry over, because ComfyUI does not compute the same tensors: transformer_blocks.*.norm1#0 (1). "
        "Whether the weights are those of the fit is not compared.",
    )
    (warning,) = steering.warnings  # and none about other weights
    assert "of which 1 are not in this model" in warning


def test_name_that_other_library_uses_for_another_part_is_not_found(models: tuple[nn.Module, nn.Module]) -> None:
    models[1].add_module("pos_embed", nn.Linear(4, 4))
    steering = steer(models[1], map_of("FluxTransformer2DModel", IN_DIFFUSERS[0], ("pos_embed", None)))
    assert steering.coverage.missing == (f"{PART}/pos_embed",)


def test_probe_has_names_of_model(models: tuple[nn.Module, nn.Module]) -> None:
    act_map = map_of("FluxTransformer2DModel", IN_DIFFUSERS[0])
    (site,) = probe(models[1], act_map, lambda: models[1](PICTURE, WORDS))
    assert site.key == f"{PART}/double_blocks.0.img_attn.proj"


def test_other_model_that_comfyui_builds_from_same_class_is_refused(models: tuple[nn.Module, nn.Module]) -> None:
    theirs, ours = models
    act_map = map_of("FluxTransformer2DModel", *IN_DIFFUSERS)
    for variants in ((), ("Flux",), ("FluxSchnell", "Flux")):
        check_variant(act_map, Component(PART, ours, architecture_of(ours), variants=variants))
    with pytest.raises(MapMismatchError, match="but this model is LongCatImage"):
        check_variant(act_map, Component(PART, ours, architecture_of(ours), variants=("LongCatImage",)))
    assert steer(theirs, map_of("Flux", *IN_COMFYUI, variants=("FluxSchnell", "Flux"))).coverage.missing == ()
    with pytest.raises(MapMismatchError, match="none of its 2 sites is in this model"):
        steer(theirs, map_of("Flux", *IN_COMFYUI, variants=("LongCatImage",)))


# --- UNets, whose blocks have other numbers


def names_of(parts: list[str]) -> set[str]:
    """Names of all modules around and at the given ones."""
    return {".".join(part.split(".")[: depth + 1]) for part in parts for depth in range(len(part.split(".")))}


# Two levels of one residual block; the second one attends.
DIFFUSERS_PARTS = [
    *("conv_in", "down_blocks.0.resnets.0.norm1", "down_blocks.0.downsamplers.0.conv", "down_blocks.1.resnets.0.norm1"),
    *("down_blocks.1.attentions.0.norm", "up_blocks.0.resnets.0.norm1", "up_blocks.0.resnets.1.norm1"),
    *("up_blocks.0.attentions.1.transformer_blocks.0.attn1.to_out.0", "up_blocks.0.attentions.0.norm"),
    *("up_blocks.0.upsamplers.0.conv", "up_blocks.1.resnets.0.conv2", "up_blocks.1.resnets.1.conv_shortcut"),
]
COMFYUI_PARTS = [
    *("input_blocks.0.0", "input_blocks.1.0.in_layers.0", "input_blocks.2.0.op", "input_blocks.3.0.in_layers.0"),
    *("input_blocks.3.1.norm", "output_blocks.0.0.in_layers.0", "output_blocks.1.0.in_layers.0"),
    *("output_blocks.1.1.transformer_blocks.0.attn1.to_out.0", "output_blocks.0.1.norm"),
    *("output_blocks.1.2.conv", "output_blocks.2.0.out_layers.3", "output_blocks.3.0.skip_connection"),
]


@pytest.mark.parametrize("names", [DIFFUSERS_PARTS, COMFYUI_PARTS])
def test_numbers_of_blocks_follow_from_names_of_either_library(names: list[str]) -> None:
    (shared,) = DIFFUSERS_UNET.shared
    assert COMFYUI_UNET.shared == (shared,)
    known = names_of([*names, "output_blocks.1.1.norm"] if names is COMFYUI_PARTS else names)
    there, back = (Translator(shared, library, known) for library in ("ComfyUI", "diffusers"))
    for theirs, ours in zip(DIFFUSERS_PARTS, COMFYUI_PARTS, strict=True):
        found, returned = (
            translator.site(Site(PART, name, None, "tokens", 4)) for translator, name in ((there, theirs), (back, ours))
        )
        assert found is not None
        assert returned is not None
        assert (found.name, returned.name) == (ours, theirs)


def test_segment_without_gauge_in_other_library_does_not_carry_over() -> None:
    (shared,) = architecture_of(Flux()).shared
    translator = Translator(shared, "diffusers", [])
    site = Site(PART, "single_blocks.0.linear2", None, "tokens", 4, Segment("leading", "txt_in", None, "leading"))
    found = translator.site(site)
    assert found is not None
    assert found.segment is not None
    assert (found.segment.gauge, found.segment.end) == ("context_embedder", "leading")
    assert translator.site(replace(site, segment=Segment("leading", "vector_in", None, "leading"))) is None


# --- text encoders, which the libraries call otherwise


@pytest.fixture(scope="module")
def map_of_language_model() -> ActMap:
    return fitted(tiny("qwen3"), "attention,blocks")


def test_language_model_is_found_by_family_and_sites(map_of_language_model: ActMap) -> None:
    module: Any = tiny("qwen3").module
    clip = randomise(nn.ModuleDict({"layers": nn.Linear(4, 4)}), 0)
    for encoder in (module, module.model):
        steering = steer({"clip_l": clip, "qwen3_4b": encoder}, map_of_language_model, {"language_model": 0.5})
        assert steering.act_map.components == ("qwen3_4b",)
        assert steering.coverage.missing == ()
        assert steering.warnings == ()
        assert "fitted on a text encoder called language_model, which is qwen3_4b here" in steering.notes[0]
        assert steering.strength == {"qwen3_4b": 0.5}


def test_component_is_not_guessed_if_two_are_alike(map_of_language_model: ActMap) -> None:
    module = tiny("qwen3").module
    with pytest.raises(MapMismatchError, match="none of its"):
        steer({"first": module, "second": module}, map_of_language_model)


def test_two_components_are_not_found_in_one_encoder(map_of_language_model: ActMap) -> None:
    one, base = map_of_language_model, map_of_language_model.record.base
    others = {replace(site, component="other"): transport for site, transport in one.transports.items()}
    record = replace(one.record, base={**base, "other": base["language_model"]})
    both = replace(one, transports={**one.transports, **others}, record=record)
    steering = steer({"qwen3_4b": tiny("qwen3").module}, both)
    assert steering.act_map.components == ("qwen3_4b", "other")
    assert steering.coverage.unconnected == ("other",)


def test_block_that_also_returns_its_cache_is_steered_at_first_output() -> None:
    class Cached(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x * 0

    model = nn.Sequential(Cached())
    maps = [
        ActMap({Site("model", "0", output, "vector", 2): Transport(torch.full((2,), omega), torch.full((2,), beta))})
        for output, omega, beta in ((None, 2.0, 0.0), (0, 1.0, 1.0))
    ]
    with steer(model, maps[0]), steer(model, maps[1]):  # double, then shift
        moved, cache = model(torch.ones(1, 2))
    assert moved.tolist() == [[3, 3]]
    assert cache.tolist() == [[0, 0]]
