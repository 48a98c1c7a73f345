"""Steering a live model: the effect of a map at different strengths."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers import (
    MIXED_SITES,
    chain,
    mixed,
    tiny_llama,
)
from steering_helpers import (
    SOURCE,
    TARGET,
    chain_map,
    fitted,
    logits,
    output,
    recorded,
    steered,
    two_components,
)
from torch.testing import assert_close

from act_core import ActMap, MapError, steer
from act_core.displacement import displace_at
from act_core.records import Card
from act_core.steering import active_maps


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_strength_zero_is_bit_identical_to_unsteered_model(dtype: torch.dtype) -> None:
    llama = tiny_llama(dtype)
    act_map, before = fitted(llama, "all"), logits(llama)
    with steer(llama.module, act_map, 0):
        assert torch.equal(logits(llama), before)
        with steer(llama.module, act_map, 0.0), steer(llama.module, act_map.inverse(), -0.0):
            assert torch.equal(logits(llama), before)
    with steer(llama.module, act_map) as steering:
        assert not torch.equal(logits(llama), before)
        steering.strength = 0
        assert torch.equal(logits(llama), before)
    assert torch.equal(logits(llama), before)


def test_strength_zero_leaves_feature_maps_and_tuples_unchanged() -> None:
    model = mixed()
    before = output(model)
    with steer(model.module, fitted(model, MIXED_SITES), 0):
        assert torch.equal(output(model), before)


@pytest.mark.parametrize("strength", [-1.0, 0.3, 1.0, 2.0])
@pytest.mark.parametrize("settings", [{}, {"spatial": "pointwise"}, {"support": "observed"}], ids=str)
def test_each_site_returns_its_transported_activation(settings: dict[str, Any], strength: float) -> None:
    for key in ("toy/conv", "toy/norm", "toy/split#1", "toy/head"):
        model = mixed()
        act_map = fitted(model, key, **settings)
        site, t = next(iter(act_map.transports.items()))
        seen: list[Any] = []
        module = model.module.get_submodule(site.name)
        with recorded(module, seen):
            output(model)
            with steer(model.module, act_map, strength):
                output(model)
        plain, steered = (out if site.output is None else out[site.output] for out in seen)
        gain, offset = (t.omega - 1) * strength, t.beta * strength
        expected = displace_at(plain, site.layout, act_map.record.spatial, gain, offset, t.low, t.high)
        # The same operations, on coefficients that were multiplied in float64 and here in float32.
        assert torch.allclose(steered, expected, rtol=1e-5, atol=1e-5)
        assert not torch.equal(steered, plain)


def test_gaussian_map_gives_source_mean_and_deviation_of_target() -> None:
    model = chain()
    act_map = fitted(model, "toy/layers.2", estimator="gaussian")
    module, seen = model.module.get_submodule("layers.2"), []
    with recorded(module, seen), torch.no_grad():
        model.module(model.rows(TARGET))
        with steer(model.module, act_map):
            model.module(model.rows(SOURCE))
    target, moved = seen
    # Float32 coefficients and activations.
    assert torch.allclose(moved.mean(0), target.mean(0), atol=1e-5)
    assert torch.allclose(moved.std(0), target.std(0), rtol=1e-4)


def test_other_outputs_of_tuple_are_unchanged() -> None:
    model, seen = mixed(), []
    act_map = fitted(model, "toy/split#1")
    with recorded(model.module.get_submodule("split"), seen):
        output(model)
        with steer(model.module, act_map):
            output(model)
    plain, steered = seen
    assert type(steered) is tuple
    assert torch.equal(plain[0], steered[0])
    assert not torch.equal(plain[1], steered[1])
    assert steered[2] is None
    assert torch.equal(plain[3], steered[3])


def test_strength_can_be_changed_inside_block() -> None:
    model, act_map = chain(), chain_map()
    with steer(model.module, act_map, 0.4):
        some = output(model)
    with steer(model.module, act_map, 1.0) as steering:
        full = output(model)
        steering.strength = 0.4
        assert steering.strength == 0.4
        assert torch.equal(output(model), some)
        steering.strength = 1
        assert torch.equal(output(model), full)


def test_strength_can_be_set_before_block() -> None:
    model = chain()
    steering = steer(model.module, chain_map(), 0.2)
    steering.strength = 1.0
    with steering:
        assert torch.equal(output(model), steered(model, chain_map(), 1.0))


@pytest.mark.parametrize("strength", [math.nan, math.inf, -math.inf, 1001, 1e300])
def test_strength_out_of_range_is_refused_and_changes_nothing(strength: float) -> None:
    model, act_map = chain(), chain_map()
    with pytest.raises(MapError, match="a number from -1000 to 1000"):
        steer(model.module, act_map, strength)
    with steer(model.module, act_map, 0.5) as steering:
        before = output(model)
        with pytest.raises(MapError, match="a number from -1000 to 1000"):
            steering.strength = strength
        assert steering.strength == 0.5
        assert torch.equal(output(model), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_output_keeps_its_dtype(dtype: torch.dtype) -> None:
    model = mixed(dtype)
    with steer(model.module, fitted(model, MIXED_SITES)):
        assert output(model).dtype == dtype


def test_active_maps_returns_titles() -> None:
    model = chain()
    titled = ActMap(chain_map().transports, card=Card(title="calm"))
    assert active_maps(model.module) == ()
    with steer(model.module, titled), steer(model.module, chain_map()):
        output(model)
        assert active_maps(model.module) == ("The map 'calm'", "The map")
    assert active_maps(model.module) == ()


def test_map_of_several_components_accepts_module_for_each() -> None:
    modules, act_map = two_components()
    x = torch.randn(2, 4)
    before = {name: module(x) for name, module in modules.items()}
    with steer(modules, act_map) as steering:
        for name, module in modules.items():
            assert not torch.equal(module(x), before[name])
    assert steering.coverage.fired == ("text/layers.2", "image/layers.2")


def test_absent_components_are_listed_and_not_an_error() -> None:
    modules, act_map = two_components()
    with steer({"image": modules["image"]}, act_map) as steering:
        modules["image"](torch.randn(2, 4))
    assert (steering.coverage.unconnected, steering.coverage.missing) == (("text",), ())
    assert str(steering.coverage) == "1 of 1 sites fired, text not connected"
    steering.check()


def test_each_component_has_its_own_strength() -> None:
    modules, act_map = two_components()
    x = torch.randn(2, 4)
    before = {name: module(x) for name, module in modules.items()}
    with steer(modules, act_map, {"text": 0.0, "image": 2.0}) as steering:
        assert torch.equal(modules["text"](x), before["text"])
        assert_close(modules["image"](x), (3 * before["image"].atanh() + 2).tanh())
        steering.strength = {"text": 1.0, "image": 0.0}
        assert_close(modules["text"](x), (2 * before["text"].atanh() + 1).tanh())
        assert torch.equal(modules["image"](x), before["image"])


@pytest.mark.parametrize("strength", [{"text": 1.0}, {"text": 1.0, "image": 1.0, "sound": 1.0}, {}])
def test_strengths_for_other_components_are_refused(strength: dict[str, float]) -> None:
    modules, act_map = two_components()
    with pytest.raises(MapError, match=r"steers text, image, but strengths are given for"):
        steer(modules, act_map, strength)


def test_map_of_several_components_refuses_single_module() -> None:
    modules, act_map = two_components()
    with pytest.raises(MapError, match=r"several components \(text, image\)"):
        steer(modules["text"], act_map)


def test_mapping_without_component_of_map_is_refused() -> None:
    modules, act_map = two_components()
    with pytest.raises(MapError, match="none of its 2 sites is in this model, Chain;"):
        steer({"audio": modules["text"]}, act_map)
    with pytest.raises(MapError, match="no component of the map"):
        steer({}, act_map)
