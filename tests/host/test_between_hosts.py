"""One model in diffusers or transformers and in ComfyUI: the same weights, the same inputs, and each other's maps."""

from __future__ import annotations

import pytest
import torch
from between_hosts import Exchange, carried, model_of
from library_models import FAMILIES
from torch import Tensor

from act_core import ActMap, steer

PICTURES = [name for name, family in FAMILIES.items() if family.component == "diffusion_model"]
# Both libraries compute in float32, but fuse and order the operations of a layer differently.
ROUNDING = 1e-5
# What diffusers returns with modulation, or of a joined stream in two parts.
NOT_IN_COMFYUI = {
    "SD3": "`transformer_blocks.*.norm1#0`, `transformer_blocks.*.norm1_context#0`, "
    "`transformer_blocks.*.norm1_context`",
    "Flux": "`transformer_blocks.*.norm1#0`, `transformer_blocks.*.norm1_context#0`, "
    "`single_transformer_blocks.*.norm#0`, `single_transformer_blocks.*#0`, `single_transformer_blocks.*#1`",
}
# The small CLIP has no projection in transformers.
NOT_IN_DIFFUSERS = {"Flux": "`single_blocks.*`", "CLIP": "`text_projection`"}


def difference(one: Tensor, other: Tensor) -> float:
    """The largest difference, in units of the largest value."""
    return float((one - other).abs().max() / other.abs().max())


def without(act_map: ActMap, keys: list[str]) -> ActMap:
    return act_map.restrict(*(site.key for site in act_map.transports if site.key not in keys))


@pytest.mark.parametrize("name", FAMILIES)
def test_unsteered_models_agree(name: str, exchange: Exchange) -> None:
    assert difference(exchange.tensors(name)["plain"], model_of(name).drawn()) < ROUNDING


@pytest.mark.parametrize("name", [name for name in PICTURES if name != "Qwen-Image"])
def test_parts_of_one_name_return_same_tensor(name: str, exchange: Exchange) -> None:
    parts = exchange.report[name]["parts"]
    assert len(parts) > 20
    assert {part: off for part, off in parts.items() if off is None or off > 3 * ROUNDING} == {}


@pytest.mark.parametrize("name", FAMILIES)
def test_map_from_here_steers_host_alike(name: str, exchange: Exchange) -> None:
    steered = exchange.tensors(name)["steered"]
    model = model_of(name)
    carried_over = without(exchange.own_map(name), exchange.report[name]["missing"])
    assert difference(steered, model.drawn(carried_over)) < ROUNDING
    assert difference(steered, model.drawn()) > 0.1


@pytest.mark.parametrize("name", FAMILIES)
def test_map_from_host_steers_here_alike(name: str, exchange: Exchange) -> None:
    steered = exchange.tensors(name)["with own map"]
    model = model_of(name)
    assert difference(steered, model.drawn(exchange.host_map(name))) < ROUNDING
    assert difference(steered, model.drawn()) > 0.1


@pytest.mark.parametrize("name", FAMILIES)
def test_sites_that_do_not_carry_over_are_known(name: str, exchange: Exchange) -> None:
    _, to_host, _, from_host = carried(exchange, name)
    assert (to_host, from_host) == (NOT_IN_COMFYUI.get(name, ""), NOT_IN_DIFFUSERS.get(name, ""))


@pytest.mark.parametrize("name", FAMILIES)
def test_report_shows_translation_and_does_not_doubt_weights(name: str, exchange: Exchange) -> None:
    report = exchange.report[name]
    assert not any("weights" in warning for warning in report["warnings"])
    if name in NOT_IN_COMFYUI:
        assert "sites do not carry over, because ComfyUI does not compute the same tensors" in report["notes"][0]
    if name in PICTURES and name != "Qwen-Image":  # which has the same names
        assert "was fitted in diffusers and is translated to the names of ComfyUI" in report["notes"][0]
    elif FAMILIES[name].component in ("qwen3", "language_model"):
        assert "which is qwen3_4b here" in report["notes"][0]
    else:
        assert report["notes"] == []


def test_text_and_picture_that_share_a_stream_change_places(exchange: Exchange) -> None:
    """The host puts the tokens of the text first, diffusers those of the picture."""
    host_map = exchange.host_map("Z-Image")
    model = model_of("Z-Image")
    there = [site for site in host_map.transports if site.segment]
    translated = steer(model.part.module, host_map).act_map
    here = [site for site in translated.transports if site.segment]
    assert len(here) == len(there) > 0
    for one, other in zip(here, there, strict=True):
        assert one.segment is not None
        assert other.segment is not None
        assert {one.segment.end, other.segment.end} == {"leading", "trailing"}
        assert torch.equal(translated.transports[one].beta, host_map.transports[other].beta)
