"""Transports folded into weight and bias: equal to steering the output, and a reason where that cannot be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from act_core import ActMap, MapError, steer
from act_core.errors import MapMismatchError
from act_core.folding import NotFoldableError, fold, returned_layer
from act_core.gates import Gate
from act_core.projections import Projection
from act_core.records import FitRecord
from act_core.sites import Layout, Segment, Site
from act_core.steering.weights import fold_map
from act_core.transport import Transport, fit_transport, stacked

CHANNELS = 6
STRENGTHS = (-0.5, 0.7, 1.0, 1.3)
# Two roundings of float32 at values of order 1.
ROUNDING = 1e-5


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def transport(*, shift: bool = True, slope: bool = True) -> Transport:
    omega = 1 + 0.3 * random(CHANNELS, seed=1) * slope
    return Transport(omega, random(CHANNELS, seed=2) * shift, effect=1.0)


def site(layout: Layout = "tokens", **changes: Any) -> Site:
    return replace(Site("model", "layer", None, layout, CHANNELS), **changes)


def filled(layer: nn.Module) -> nn.Module:
    for number, parameter in enumerate(layer.parameters()):
        parameter.data = random(*parameter.shape, seed=number + 10)
    return layer


LAYERS: dict[str, tuple[nn.Module, Layout, Transport, Tensor]] = {
    "linear": (nn.Linear(4, CHANNELS), "tokens", transport(), random(2, 3, 4)),
    "linear without bias": (nn.Linear(4, CHANNELS, bias=False), "tokens", transport(shift=False), random(2, 3, 4)),
    "layer norm": (nn.LayerNorm(CHANNELS), "tokens", transport(), random(2, 3, CHANNELS)),
    "RMS norm": (nn.RMSNorm(CHANNELS), "tokens", transport(shift=False), random(2, 3, CHANNELS)),
    "group norm": (nn.GroupNorm(2, CHANNELS), "spatial", transport(), random(2, CHANNELS, 4, 4)),
    "convolution": (nn.Conv2d(4, CHANNELS, 3), "spatial", transport(), random(2, 4, 5, 5)),
}


@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_folded_layer_equals_steered_layer(name: str) -> None:
    layer, layout, moves, x = LAYERS[name]
    model = nn.ModuleDict({"layer": filled(layer)})
    act_map = ActMap({site(layout): moves}, FitRecord(spatial="pointwise"))
    folded = fold(site(layout), moves, "pointwise", layer)
    before = {key: tensor.clone() for key, tensor in layer.state_dict().items()}
    for strength in STRENGTHS:
        with steer(model, act_map, strength):
            expected = layer(x)
        changed = {"weight": before["weight"] + strength * folded.weight_change()}
        if folded.bias is not None:
            changed["bias"] = before["bias"] + strength * folded.bias
        found = torch.func.functional_call(layer, changed, x)
        assert (expected - layer(x)).abs().max() > 0.1
        assert (found - expected).abs().max() < ROUNDING * expected.abs().max()


@torch.no_grad()
def test_shift_of_feature_maps_folds_only_without_slopes() -> None:
    layer = filled(nn.GroupNorm(2, CHANNELS))
    constant = fold(site("spatial"), transport(slope=False), "shift", layer)
    assert not constant.changes_weight
    assert constant.bias is not None
    with pytest.raises(NotFoldableError, match="the spatial rule 'shift'"):
        fold(site("spatial"), transport(), "shift", layer)


def observed(moves: Transport) -> Transport:
    return replace(moves, low=-torch.ones(CHANNELS), high=torch.ones(CHANNELS))


def gated(moves: Transport) -> Transport:
    return replace(moves, gate=Gate(torch.ones(CHANNELS), 0.0))


def projected(moves: Transport) -> Transport:
    return replace(moves, projection=Projection(torch.ones(CHANNELS), 0.0))


def binned(moves: Transport) -> Transport:
    return stacked([moves, moves])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (observed, "observed support"),
        (gated, "gated support"),
        (projected, "a projection"),
        (binned, "noise level"),
    ],
)
def test_conditional_transport_is_not_folded(change: Callable[[Transport], Transport], reason: str) -> None:
    with pytest.raises(NotFoldableError, match=reason):
        fold(site(), change(transport()), "shift", nn.Linear(2, CHANNELS))


@pytest.mark.parametrize(
    ("place", "layer", "reason"),
    [
        (site(segment=Segment("leading", "text_in", None, "leading")), nn.Linear(2, CHANNELS), "some of the tokens"),
        (site(output=1), nn.Linear(2, CHANNELS), "returns several tensors"),
        (site(), nn.Linear(2, CHANNELS, bias=False), "no bias"),
        (site(), nn.LayerNorm(CHANNELS, elementwise_affine=False), "has no parameters"),
        (site(), nn.LayerNorm(CHANNELS, bias=False), "no bias"),
        (site(), nn.GELU(), "a GELU has no weight and bias"),
        (site("spatial"), nn.Linear(2, CHANNELS), "a Linear has no weight and bias"),
        (site(), nn.GroupNorm(2, CHANNELS), "a GroupNorm has no weight and bias"),
        (site(), nn.LayerNorm([2, CHANNELS]), "not one number for each channel"),
    ],
)
def test_layer_that_cannot_be_folded_has_a_reason(place: Site, layer: nn.Module, reason: str) -> None:
    with pytest.raises(NotFoldableError, match=reason):
        fold(place, transport(), "pointwise", layer)


def test_quantised_weight_folds_by_its_slopes_alone() -> None:
    layer = filled(nn.Linear(4, CHANNELS))
    packed = torch.zeros(CHANNELS, 2, dtype=torch.uint8)
    folded = fold(site(), transport(), "shift", layer, weight=packed)
    assert folded.changes_weight
    with pytest.raises(NotFoldableError, match="its weight is quantised"):
        folded.weight_change()


class FeedForward(nn.Module):
    """As in diffusers."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.net = nn.ModuleList(layers)


def test_feed_forward_returns_its_last_layer() -> None:
    last = nn.Linear(8, CHANNELS)
    layers = nn.Linear(4, 8), nn.GELU(), last, nn.Dropout()
    assert returned_layer(FeedForward(*layers)) is last
    assert returned_layer(nn.Sequential(*layers)) is last
    assert returned_layer(last) is last
    assert returned_layer(plain := nn.LayerNorm(2)) is plain


def two_sites(estimated: Callable[[Tensor, Tensor], Transport]) -> tuple[ActMap, nn.ModuleDict, Tensor, Tensor]:
    """A map at a layer that folds and at one that does not, with what it was fitted on."""
    source, target = random(50, CHANNELS, seed=3), 2 * random(50, CHANNELS, seed=4) + 1
    places = [replace(site(), name=name) for name in ("folds", "stays")]
    moves = [estimated(source, target), estimated(source, target * 0.5)]
    model = nn.ModuleDict({"folds": nn.Linear(2, CHANNELS), "stays": nn.Linear(2, CHANNELS, bias=False)})
    return ActMap(dict(zip(places, moves, strict=True))), model, source, target


def test_lost_share_is_that_of_the_squared_displacement() -> None:
    act_map, model, source, _ = two_sites(fit_transport)
    folded = fold_map(act_map, model)
    squares = [
        ((moves.apply(source) - source) / source.std(0, unbiased=False)).square().mean(0).sum()
        for moves in act_map.transports.values()
    ]
    assert folded.left_out == {"model/stays": "it has no bias that could take the shift"}
    assert folded.lost == pytest.approx(float(squares[1] / sum(squares)), rel=1e-4)
    assert f"Left out, {folded.lost:.1%} of the map's squared displacement" in folded.report


def test_lost_share_without_statistics_counts_the_median_shift() -> None:
    act_map, model, *_ = two_sites(lambda a, b: replace(fit_transport(a, b), statistics=None))
    effects = [cast("float", moves.effect) for moves in act_map.transports.values()]
    assert fold_map(act_map, model).lost == pytest.approx(effects[1] ** 2 / sum(effect**2 for effect in effects))


def test_lost_share_is_unknown_without_effects() -> None:
    act_map, model, *_ = two_sites(lambda a, b: replace(fit_transport(a, b), statistics=None, effect=None))
    folded = fold_map(act_map, model)
    assert folded.lost is None
    assert "Left out, an unknown share" in folded.report


def test_weight_that_two_layers_share_is_left_out() -> None:
    model = nn.ModuleDict({"layer": nn.Linear(4, CHANNELS), "other": nn.Linear(4, CHANNELS), "norm": nn.LayerNorm(6)})
    cast("nn.Linear", model["other"]).weight = cast("nn.Linear", model["layer"]).weight
    act_map = ActMap({site(): transport(), replace(site(), name="norm"): transport()})
    assert list(fold_map(act_map, model).left_out) == ["model/layer"]


def test_second_site_of_a_layer_is_left_out() -> None:
    """A feed-forward and its last layer, as a pattern like ``*ff*`` selects them; the fold of one holds one map."""
    model = nn.ModuleDict({"layer": nn.Sequential(nn.Linear(4, CHANNELS))})
    folded = fold_map(ActMap({replace(site(), name="layer.0"): transport(), site(): transport()}), model)
    assert folded.left_out == {"model/layer": "its weight is that of another layer or site, too"}
    assert folded.report.startswith("1 of 2 sites of the map are in the weights.")


def test_sites_that_the_model_lacks_are_left_out() -> None:
    act_map = ActMap({site(): transport(), replace(site(), name="absent"): transport()})
    folded = fold_map(act_map, nn.ModuleDict({"layer": nn.Linear(4, CHANNELS)}))
    assert folded.left_out == {"model/absent": "not in this model"}
    assert "1 are not in this model" in folded.report
    elsewhere = ActMap({site(): transport(), replace(site(), component="clip_l"): transport()})
    left_out = fold_map(elsewhere, {"model": nn.ModuleDict({"layer": nn.Linear(4, CHANNELS)})}).left_out
    assert left_out == {"clip_l/layer": "clip_l is not connected"}


def test_map_of_which_nothing_folds_is_refused() -> None:
    model = nn.ModuleDict({"layer": nn.LayerNorm(CHANNELS, elementwise_affine=False)})
    with pytest.raises(
        MapMismatchError, match=r"1 of 1: this LayerNorm has no parameters\); steer with the map itself"
    ):
        fold_map(ActMap({site(): transport()}), model)


@pytest.mark.parametrize("change", [observed, gated, projected])
def test_conditional_map_is_refused(change: Callable[[Transport], Transport]) -> None:
    model = nn.ModuleDict({"layer": nn.Linear(4, CHANNELS)})
    with pytest.raises(MapError, match="which weights cannot do"):
        fold_map(ActMap({site(): change(transport())}), model)


def test_map_with_noise_levels_needs_one_and_says_what_is_lost() -> None:
    source = random(50, CHANNELS, seed=3)
    bins = [fit_transport(source, source * factor + shift) for factor, shift in ((1.0, 1.0), (1.0, 3.0))]
    act_map = ActMap({site(): stacked(bins)}, levels=(0.9, 0.4))
    model = nn.ModuleDict({"layer": nn.Linear(4, CHANNELS)})
    with pytest.raises(MapError, match=r"its noise levels \(0.9, 0.4\), which weights cannot do; steer with"):
        fold_map(act_map, model)
    folded = fold_map(act_map, model, level=0.8)
    assert folded.act_map.levels == ()
    change = folded.folds["model", "layer"].bias
    assert change is not None
    assert torch.allclose(change, torch.ones(CHANNELS), atol=1e-4)
    # Shifts of 1 and 3 deviate by 0 and 2: of 1 + 9, 4 are missed.
    (remark,) = folded.remarks
    assert "at noise level 0.9 act at all levels (0.9, 0.4), which misses 40.0%" in remark
    with pytest.raises(MapError):
        fold_map(act_map, model, level=2.0)
