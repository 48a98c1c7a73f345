"""Several maps on one model, and forwards that a host installs itself."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from helpers import (
    MIXED_SITES,
    TensorModel,
    chain,
    mixed,
    swapped,
)
from steering_helpers import (
    LAYERS,
    SOURCE,
    chain_map,
    fitted,
    identity,
    one_site,
    output,
    recorded,
)
from torch import Tensor
from torch.testing import assert_close

from act_core import steer
from act_core.displacement import displace_at
from act_core.interception import submodules


@pytest.mark.parametrize("make", [chain, mixed])
def test_nested_unbounded_maps_equal_their_composition(make: Callable[[], TensorModel]) -> None:
    model, sites = make(), LAYERS if make is chain else MIXED_SITES
    first, second = fitted(model, sites), fitted(model, sites, estimator="mean").inverse()
    with steer(model.module, first.then(second)):
        composed = output(model)
    with steer(model.module, first), steer(model.module, second):
        # Composed in float64 and rounded once more to float32; the activations are of size 10.
        assert torch.allclose(output(model), composed, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(composed, output(model), atol=1e-2)


def test_inner_map_acts_on_output_of_outer_map() -> None:
    model = identity()
    x = model.rows(SOURCE)
    double, shift = one_site("0", 2, 0), one_site("0", 1, 5)
    with steer(model.module, double), steer(model.module, shift):
        assert torch.allclose(output(model), 2 * x + 5, atol=1e-5)  # float32 values of size 10
    with steer(model.module, shift), steer(model.module, double):
        assert torch.allclose(output(model), 2 * (x + 5), atol=1e-5)


def test_nested_maps_keep_their_own_strengths() -> None:
    model = identity()
    x = model.rows(SOURCE)
    with steer(model.module, one_site("0", 2, 0), 0.5) as outer, steer(model.module, one_site("0", 1, 5), 2) as inner:
        assert torch.allclose(output(model), 1.5 * x + 10, atol=1e-5)  # float32 values of size 15
        outer.strength = 0
        assert torch.allclose(output(model), x + 10, atol=1e-5)
        inner.strength = -1
        assert torch.allclose(output(model), x - 5, atol=1e-5)


def test_observed_maps_act_in_order_of_stacking() -> None:
    model = identity()
    x = model.rows(SOURCE)
    bounds: dict[str, Any] = {"low": torch.full((4,), -0.5), "high": torch.full((4,), 0.5)}
    gated, shift, other = one_site("0", 1, 1, **bounds), one_site("0", 1, 0.25), one_site("0", 3, 0)
    stack = [gated, shift, other, gated]
    expected = x
    for act_map in stack:
        transport = next(iter(act_map.transports.values()))
        expected = transport.apply(expected)
    with contextlib.ExitStack() as active:
        for act_map in stack:
            active.enter_context(steer(model.module, act_map))
        assert torch.allclose(output(model), expected, atol=1e-5)  # two of the maps are composed before they act
    with contextlib.ExitStack() as active:
        for act_map in reversed(stack):
            active.enter_context(steer(model.module, act_map))
        assert not torch.allclose(output(model), expected, atol=1e-2)


def test_maps_of_both_spatial_rules_nest() -> None:
    model, seen = mixed(), []
    shift, pointwise = (fitted(model, "toy/conv", spatial=rule) for rule in ("shift", "pointwise"))
    with recorded(model.module.get_submodule("conv"), seen):
        output(model)
        with steer(model.module, shift), steer(model.module, pointwise):
            output(model)
    plain, both = seen
    expected = plain
    for act_map in (shift, pointwise):
        t = act_map["toy/conv"]
        expected = displace_at(expected, "spatial", act_map.record.spatial, t.omega - 1, t.beta)
    assert torch.allclose(both, expected, atol=1e-5)  # float32 values of size 10


@pytest.mark.parametrize("closing_order", [(0, 1, 2), (1, 0, 2), (2, 1, 0), (1, 2, 0)])
def test_maps_can_be_removed_in_any_order(closing_order: Sequence[int]) -> None:
    model, plain = chain(), output(chain())
    maps = [one_site(f"layers.{i % 2}", 1 + i, i - 0.5) for i in range(3)]
    active = [steer(model.module, m).__enter__() for m in maps]
    output(model)
    left = [0, 1, 2]
    for index in closing_order:
        active[index].__exit__()
        left.remove(index)
        with contextlib.ExitStack() as stack:
            fresh = chain()
            for i in left:
                stack.enter_context(steer(fresh.module, maps[i]))
            assert torch.equal(output(model), output(fresh))
    assert swapped(model.module) == []
    assert torch.equal(output(model), plain)


def test_map_applied_again_acts_as_before() -> None:
    model, act_map = chain(), chain_map()
    one, other = (steer(model.module, act_map, strength) for strength in (0.3, 1.0))
    outputs: list[Tensor] = []
    for steering in (one, other, one, other):
        with steering:
            outputs.append(output(model))
    assert torch.equal(outputs[0], outputs[2])
    assert torch.equal(outputs[1], outputs[3])
    assert not torch.equal(outputs[0], outputs[1])


def test_two_models_are_steered_independently() -> None:
    one, other, plain = chain(), chain(), output(chain())
    with steer(one.module, chain_map()):
        assert torch.equal(output(other), plain)
        with steer(other.module, chain_map(), -1.0):
            assert not torch.equal(output(other), output(one))


def test_forwards_steer_without_changing_model() -> None:
    model, act_map = chain(), chain_map()
    before = output(model)
    with steer(model.module, act_map, 0.7):
        expected = output(model)
    modules = submodules(model.module)
    forwards = steer(model.module, act_map, 0.7).forwards(lambda _, name: modules[name].forward)
    assert torch.equal(output(model), before)
    try:
        for (_, name), forward in forwards.items():
            modules[name].forward = forward
        assert torch.equal(output(model), expected)
    finally:
        for _, name in forwards:
            del modules[name].forward
    assert torch.equal(output(model), before)


def test_forwards_stack_on_previous_forwards() -> None:
    model, act_map = chain(), chain_map()
    with steer(model.module, act_map), steer(model.module, act_map):
        expected = output(model)
    modules = submodules(model.module)
    names = {name for site in act_map.transports for name in [site.name]}
    try:
        for _ in range(2):
            for (_, name), forward in (
                steer(model.module, act_map).forwards(lambda _, name: modules[name].forward).items()
            ):
                modules[name].forward = forward
        assert_close(output(model), expected)
    finally:
        for name in names:
            del modules[name].forward
