"""Putting maps onto a live model and taking them off again."""

from __future__ import annotations

import contextlib
import gc
import math
import weakref
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import (
    MIXED_SITES,
    Chain,
    TensorModel,
    chain,
    keys,
    mixed,
    prompts,
    randomise,
    swapped,
    tiny_llama,
)
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.testing import assert_close

from act_core import ActMap, MapError, fit, steer
from act_core.displacement import displace_at
from act_core.interception import submodules
from act_core.maps import Card, Fingerprint, FitRecord
from act_core.models.transformers import TransformersModel
from act_core.sites import Site
from act_core.steering import BatchRows, active_maps
from act_core.transport import Transport

SOURCE, TARGET = prompts("source", 6), prompts("target", 6)
LAYERS = "toy/layers.*"


def fitted(model: Any, sites: str, **settings: Any) -> ActMap:
    return fit(model, SOURCE, TARGET, sites=sites, **settings)


def chain_map(**settings: Any) -> ActMap:
    return fitted(chain(), LAYERS, **settings)


@torch.no_grad()
def output(model: TensorModel) -> Tensor:
    return model.module(model.rows(SOURCE))


@torch.no_grad()
def logits(llama: TransformersModel) -> Tensor:
    ids, mask = llama._padded([llama._tokens(prompt) for prompt in SOURCE])
    return llama.module(input_ids=ids, attention_mask=mask.long()).logits[mask]


def one_site(name: str, omega: float, beta: float, channels: int = 4, **more: Any) -> ActMap:
    transport = Transport(torch.full((channels,), omega), torch.full((channels,), beta), **more)
    return ActMap({Site("toy", name, None, "vector", channels): transport})


# --- strength zero


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_strength_zero_is_the_unsteered_model_bit_for_bit(dtype: torch.dtype) -> None:
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


def test_feature_maps_and_tuples_at_strength_zero() -> None:
    model = mixed()
    before = output(model)
    with steer(model.module, fitted(model, MIXED_SITES), 0):
        assert torch.equal(output(model), before)


# --- what steering does


@pytest.mark.parametrize("strength", [-1.0, 0.3, 1.0, 2.0])
@pytest.mark.parametrize("settings", [{}, {"spatial": "pointwise"}, {"support": "observed"}], ids=str)
def test_every_site_is_moved_as_its_transport_says(settings: dict[str, Any], strength: float) -> None:
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


@contextlib.contextmanager
def recorded(module: nn.Module, seen: list[Any]) -> Generator[None]:
    handle = module.register_forward_hook(lambda *call: seen.append(call[2]))
    try:
        yield
    finally:
        handle.remove()


def test_the_source_takes_the_means_and_deviations_of_the_target() -> None:
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


def test_other_outputs_of_a_tuple_stay_as_they_are() -> None:
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


def test_strength_can_be_changed_inside_the_block() -> None:
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


def test_strength_may_be_set_before_the_block() -> None:
    model = chain()
    steering = steer(model.module, chain_map(), 0.2)
    steering.strength = 1.0
    with steering:
        assert torch.equal(output(model), steered(model, chain_map(), 1.0))


def steered(model: TensorModel, act_map: ActMap, strength: float = 1.0) -> Tensor:
    fresh = TensorModel(type(model.module)(), model.shape, model.dtype)
    fresh.module.load_state_dict(model.module.state_dict())
    with steer(fresh.module, act_map, strength):
        return output(fresh)


@pytest.mark.parametrize("strength", [math.nan, math.inf, -math.inf, 1001, 1e300])
def test_a_strength_that_is_no_usable_number_is_refused_and_changes_nothing(strength: float) -> None:
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
def test_half_precision_models_are_steered_in_their_own_dtype(dtype: torch.dtype) -> None:
    model = mixed(dtype)
    with steer(model.module, fitted(model, MIXED_SITES)):
        assert output(model).dtype == dtype


# --- leaving nothing behind


@pytest.mark.parametrize("make", [chain, mixed])
def test_after_the_block_every_forward_is_that_of_its_class(make: Callable[[], TensorModel]) -> None:
    model = make()
    act_map = fitted(model, LAYERS if make is chain else MIXED_SITES)
    with steer(model.module, act_map):
        assert len(swapped(model.module)) == len({site.name for site in act_map.transports})
    assert swapped(model.module) == []


@pytest.mark.parametrize("error", [ZeroDivisionError(), KeyboardInterrupt()])
def test_after_an_error_every_forward_is_that_of_its_class(error: BaseException) -> None:
    model, before = chain(), output(chain())
    with pytest.raises(type(error)), steer(model.module, chain_map()), steer(model.module, chain_map(), -1):
        raise error
    assert swapped(model.module) == []
    assert torch.equal(output(model), before)


def test_a_forward_that_somebody_else_had_put_there_acts_and_comes_back() -> None:
    model = chain()
    layer = model.module.get_submodule("layers.1")
    original = layer.forward

    def theirs(x: Tensor) -> Tensor:
        return original(x) + 100

    layer.__dict__["forward"] = theirs
    with steer(model.module, one_site("layers.1", 1, -100)):
        # Adding 100 to float32 values near 1 and taking it away again rounds them to 1e-5.
        assert torch.allclose(output(model), output(chain()), atol=1e-4)
        with steer(model.module, chain_map()):
            assert layer.__dict__["forward"] is not theirs
    assert layer.__dict__["forward"] is theirs
    assert swapped(model.module) == ["layers.1"]


@pytest.mark.parametrize("closing_order", [(0, 1, 2), (1, 0, 2), (2, 1, 0), (1, 2, 0)])
def test_maps_may_be_taken_off_in_any_order(closing_order: Sequence[int]) -> None:
    model, plain = chain(), output(chain())
    maps = [one_site(f"layers.{i % 2}", 1 + i, i - 0.5) for i in range(3)]
    active = [steer(model.module, m).__enter__() for m in maps]
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


def test_entering_twice_leaves_nothing_behind() -> None:
    model = chain()
    steering = steer(model.module, chain_map())
    with contextlib.suppress(MapError), steering, steering:
        output(model)
    assert swapped(model.module) == []
    assert torch.equal(output(model), output(chain()))


def test_a_steering_can_be_used_again_and_goes_on_counting() -> None:
    model = chain()
    steering = steer(model.module, chain_map())
    for times in (1, 2):
        with steering:
            output(model)
        output(model)
        assert set(steering.coverage.fires.values()) == {times}
    assert swapped(model.module) == []


@pytest.mark.parametrize("runs", [False, True])
def test_a_steered_module_is_free_to_be_collected_afterwards(runs: bool) -> None:
    model, act_map = mixed(), fitted(mixed(), MIXED_SITES)
    with steer(model.module, act_map) as steering:
        if runs:
            output(model)
    watched = [weakref.ref(module) for module in model.module.modules()]
    del model
    gc.collect()
    assert [ref() for ref in watched if ref() is not None] == []  # though the steering is still there
    assert len(steering.coverage.fired) == (len(act_map) if runs else 0)


def test_two_models_do_not_share_what_steers_them() -> None:
    one, other, plain = chain(), chain(), output(chain())
    with steer(one.module, chain_map()):
        assert torch.equal(output(other), plain)
        with steer(other.module, chain_map(), -1.0):
            assert not torch.equal(output(other), output(one))


# --- several maps


@pytest.mark.parametrize("make", [chain, mixed])
def test_nested_unbounded_maps_are_their_composition(make: Callable[[], TensorModel]) -> None:
    model, sites = make(), LAYERS if make is chain else MIXED_SITES
    first, second = fitted(model, sites), fitted(model, sites, estimator="mean").inverse()
    with steer(model.module, first.then(second)):
        composed = output(model)
    with steer(model.module, first), steer(model.module, second):
        # Composed in float64 and rounded once more to float32; the activations are of size 10.
        assert torch.allclose(output(model), composed, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(composed, output(model), atol=1e-2)


def test_the_inner_map_acts_on_what_the_outer_one_has_moved() -> None:
    model = TensorModel(nn.Sequential(nn.Identity()), (4,))
    x = model.rows(SOURCE)
    double, shift = one_site("0", 2, 0), one_site("0", 1, 5)
    with steer(model.module, double), steer(model.module, shift):
        assert torch.allclose(output(model), 2 * x + 5, atol=1e-5)  # float32 values of size 10
    with steer(model.module, shift), steer(model.module, double):
        assert torch.allclose(output(model), 2 * (x + 5), atol=1e-5)


def test_each_nested_map_keeps_its_own_strength() -> None:
    model = TensorModel(nn.Sequential(nn.Identity()), (4,))
    x = model.rows(SOURCE)
    with steer(model.module, one_site("0", 2, 0), 0.5) as outer, steer(model.module, one_site("0", 1, 5), 2) as inner:
        assert torch.allclose(output(model), 1.5 * x + 10, atol=1e-5)  # float32 values of size 15
        outer.strength = 0
        assert torch.allclose(output(model), x + 10, atol=1e-5)
        inner.strength = -1
        assert torch.allclose(output(model), x - 5, atol=1e-5)


def test_observed_maps_are_stacked_in_order() -> None:
    model = TensorModel(nn.Sequential(nn.Identity()), (4,))
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


def test_maps_of_both_rules_for_feature_maps_nest() -> None:
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


def test_active_maps_are_named() -> None:
    model = chain()
    titled = ActMap(chain_map().transports, card=Card(title="calm"))
    assert active_maps(model.module) == ()
    with steer(model.module, titled), steer(model.module, chain_map()):
        assert active_maps(model.module) == ("The map 'calm'", "The map")
    assert active_maps(model.module) == ()


# --- several components


def two_components() -> tuple[dict[str, nn.Module], ActMap]:
    modules: dict[str, nn.Module] = {"text": randomise(Chain(), 1), "image": randomise(Chain(), 2)}
    transport = Transport(torch.full((4,), 2.0), torch.ones(4))
    return modules, ActMap({Site(name, "layers.2", None, "vector", 4): transport for name in modules})


def test_a_map_of_several_components_takes_a_module_for_each() -> None:
    modules, act_map = two_components()
    x = torch.randn(2, 4)
    before = {name: module(x) for name, module in modules.items()}
    with steer(modules, act_map) as steering:
        for name, module in modules.items():
            assert not torch.equal(module(x), before[name])
    assert steering.coverage.fired == ("text/layers.2", "image/layers.2")


def test_components_that_are_not_there_are_listed_and_no_error() -> None:
    modules, act_map = two_components()
    with steer({"image": modules["image"]}, act_map) as steering:
        modules["image"](torch.randn(2, 4))
    assert (steering.coverage.unconnected, steering.coverage.missing) == (("text",), ())
    assert str(steering.coverage) == "1 of 1 sites fired, text not connected"
    steering.check()


def test_each_component_takes_a_strength_of_its_own() -> None:
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
def test_strengths_of_other_components_than_the_maps_are_refused(strength: dict[str, float]) -> None:
    modules, act_map = two_components()
    with pytest.raises(MapError, match=r"moves text, image, but strengths are given for"):
        steer(modules, act_map, strength)


# --- rows


def test_only_the_chosen_rows_are_moved_and_they_may_change_from_call_to_call() -> None:
    model, act_map, rows = chain(), chain_map(), BatchRows()
    (component,) = act_map.components
    x = torch.randn(4, 4)
    before = model.module(x)
    with steer(model.module, act_map):
        moved = model.module(x)
    with steer(model.module, act_map, rows={component: rows}) as steering:
        assert torch.equal(model.module(x), moved)
        rows.choose((1,), of=2)
        half = model.module(x)
        assert torch.equal(half[:2], before[:2])
        assert_close(half[2:], moved[2:])
        rows.choose(())
        fires = dict(steering.coverage.fires)
        assert torch.equal(model.module(x), before)
        assert steering.coverage.fires == fires


def test_maps_that_share_rows_compose_and_others_act_one_after_the_other() -> None:
    model, act_map = chain(), chain_map()
    (component,) = act_map.components
    x = torch.randn(4, 4)
    with steer(model.module, act_map), steer(model.module, act_map):
        twice = model.module(x)
    with steer(model.module, act_map):
        once = model.module(x)
    shared, own = BatchRows((0,), of=2), BatchRows((0,), of=2)
    for first, second in ((shared, shared), (shared, own)):
        with (
            steer(model.module, act_map, rows={component: first}),
            steer(model.module, act_map, rows={component: second}),
        ):
            assert_close(model.module(x)[:2], twice[:2])
    with steer(model.module, act_map, rows={component: shared}), steer(model.module, act_map):
        both = model.module(x)
    assert_close(both[:2], twice[:2])
    assert_close(both[2:], once[2:])


def test_a_map_of_several_components_refuses_a_lone_module() -> None:
    modules, act_map = two_components()
    with pytest.raises(MapError, match=r"several components \(text, image\)"):
        steer(modules["text"], act_map)


def test_a_mapping_without_any_component_of_the_map_is_refused() -> None:
    modules, act_map = two_components()
    with pytest.raises(MapError, match="none of its 2 sites is in this model, Chain;"):
        steer({"audio": modules["text"]}, act_map)
    with pytest.raises(MapError, match="no component of the map"):
        steer({}, act_map)


# --- coverage


def test_coverage_counts_each_run_of_each_site() -> None:
    model, act_map = chain(), chain_map()
    output(model)
    with steer(model.module, act_map) as steering:
        assert steering.coverage.fired == ()
        output(model)
        output(model)
        assert dict(steering.coverage.fires) == dict.fromkeys(keys(act_map), 2)
    output(model)
    assert steering.coverage.expected == tuple(keys(act_map))
    assert set(steering.coverage.fires.values()) == {2}


def test_nested_maps_count_only_what_they_have_seen() -> None:
    model, act_map = chain(), chain_map()
    with steer(model.module, act_map) as outer:
        output(model)
        with steer(model.module, act_map) as inner:
            output(model)
        output(model)
    assert set(outer.coverage.fires.values()) == {3}
    assert set(inner.coverage.fires.values()) == {1}


def test_sites_that_are_missing_or_silent_are_told() -> None:
    model = chain()
    model.module.add_module("spare", nn.Linear(4, 4))
    t = Transport(torch.ones(4), torch.ones(4))
    act_map = ActMap({Site("toy", name, None, "vector", 4): t for name in ("layers.0", "spare", "gone")})
    with steer(model.module, act_map) as steering:
        output(model)
    coverage = steering.coverage
    assert (coverage.fired, coverage.silent, coverage.missing) == (("toy/layers.0",), ("toy/spare",), ("toy/gone",))
    assert str(coverage) == "1 of 3 sites fired, 1 not found (first: toy/gone), 1 never ran (first: toy/spare)"
    steering.check()


def test_check_is_an_error_only_when_a_map_was_due_and_nothing_fired() -> None:
    model, act_map = chain(), chain_map()
    with steer(model.module, act_map) as steering, pytest.raises(MapError, match="had no effect: 0 of 3 sites fired"):
        steering.check()
    with steer(model.module, act_map, 0) as steering:
        steering.check()
    with steer(model.module, act_map) as steering:
        output(model)
        steering.check()


# --- maps that do not fit


def test_a_model_without_any_site_is_refused_naming_both(llama: TransformersModel) -> None:
    act_map = fitted(llama, "norms")
    with pytest.raises(MapError, match=r"llama \(language_model\).*none of its 6 sites.*Chain"):
        steer(chain().module, act_map)


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("linear", nn.Linear(3, 7)),
        ("conv", nn.Conv2d(3, 7, 1)),
        ("group norm", nn.GroupNorm(1, 7)),
        ("layer norm", nn.LayerNorm(7)),
    ],
)
def test_other_channels_are_refused_naming_both(name: str, module: nn.Module) -> None:
    root = nn.ModuleDict({"layers": module})
    with pytest.raises(
        MapError, match=r"of its 1 sites 1 have other channels \(toy/layers: 4 in the map, 7 here\) and 0 are missing"
    ) as caught:
        steer(root, one_site("layers", 1, 1))
    assert name
    assert swapped(root) == []
    assert "fitted on" in str(caught.value)


def test_other_channels_that_show_only_when_the_model_runs_are_refused() -> None:
    model = TensorModel(nn.Sequential(nn.Identity()), (7,))
    with steer(model.module, one_site("0", 1, 1)), pytest.raises(MapError, match=r"toy/0 .*\[6, 7\].*4 channels"):
        output(model)
    assert swapped(model.module) == []


def test_an_output_that_is_not_there_is_refused() -> None:
    transport = Transport(torch.ones(4), torch.ones(4))
    act_map = ActMap({Site("toy", "layers.0", 1, "vector", 4): transport})
    model = chain()
    with steer(model.module, act_map), pytest.raises(MapError, match=r"toy/layers\.0#1 returns no such activation"):
        output(model)
    assert swapped(model.module) == []


def test_the_title_of_a_map_is_named() -> None:
    act_map = ActMap(chain_map().transports, FitRecord(), Card(title="calm"))
    with pytest.raises(MapError, match="The map 'calm' was fitted on another model"):
        steer(nn.Linear(1, 1), act_map)


def test_other_weights_of_the_same_structure_are_a_warning(llama: TransformersModel) -> None:
    act_map = fitted(llama, "norms")
    assert steer(llama.module, act_map).warnings == ()
    assert steer(llama.module.bfloat16(), act_map).warnings == ()
    llama.module.model.norm.weight.data += 0.5
    (warning,) = steer(llama.module, act_map).warnings
    assert "other weights of llama (language_model)" in warning
    (warning,) = steer(llama.module.half(), act_map).warnings
    assert "or on these in another precision" in warning


def test_sites_that_are_not_in_the_model_are_a_warning() -> None:
    (warning,) = steer(chain(layers=2).module, chain_map()).warnings
    assert "has 3 sites, of which 1 are not in this model (first: toy/layers.2)" in warning


def test_of_a_component_without_a_site_in_the_model_the_weights_do_not_matter() -> None:
    first, second = chain(), chain()
    both = chain_map().joined(
        ActMap({Site("other", "gone", None, "vector", 4): Transport(torch.ones(4), torch.zeros(4))}, FitRecord())
    )
    other = replace(both, record=replace(both.record, base={"other": Fingerprint("toy", "", "another")}))
    warnings = steer({"toy": first.module, "other": second.module}, other).warnings
    assert not any("other weights" in warning for warning in warnings)


def test_a_compiled_model_is_the_same_model(llama: TransformersModel) -> None:
    act_map = fitted(llama, "norms")
    compiled: Any = torch.compile(llama.module, backend="eager")
    steering = steer(compiled, act_map)
    assert steering.warnings == ()
    assert steering.coverage.missing == ()


# --- compiled models


@pytest.fixture
def counter() -> Generator[CompileCounter]:
    torch._dynamo.reset()
    yield CompileCounter()
    torch._dynamo.reset()


@pytest.mark.parametrize("support", ["unbounded", "observed"])
@pytest.mark.parametrize("make", [chain, mixed])
def test_changing_the_strength_makes_no_second_graph(
    make: Callable[[], TensorModel], support: Any, counter: CompileCounter
) -> None:
    model = make()
    act_map = fitted(model, LAYERS if make is chain else MIXED_SITES, support=support)
    compiled: Any = torch.compile(model.module, backend=counter)
    rows, plain = model.rows(SOURCE), output(model)
    with torch.no_grad(), steer(model.module, act_map, 1.0) as steering:
        compiled(rows)
        first = counter.frame_count
        for strength in (0.3, -1.0, 2, 1.0):
            steering.strength = strength
            # The graph is run by the same eager kernels.
            assert torch.equal(compiled(rows), steered(model, act_map, strength))
        assert counter.frame_count == first
        steering.strength = 0
        assert torch.equal(compiled(rows), plain)
        off = counter.frame_count
        assert off <= first + 1
        for strength in (1.0, 0, 0.5, 0):
            steering.strength = strength
            compiled(rows)
        assert counter.frame_count <= off + 1
    assert torch.equal(compiled(rows), plain)


def test_steering_a_model_that_was_compiled_before_takes_effect(counter: CompileCounter) -> None:
    model, act_map = chain(), chain_map()
    compiled: Any = torch.compile(model.module, backend=counter)
    rows = model.rows(SOURCE)
    with torch.no_grad():
        plain = compiled(rows)
        with steer(model.module, act_map) as steering:
            assert torch.equal(compiled(rows), steered(model, act_map))
        steering.check()
        assert torch.equal(compiled(rows), plain)


def test_maps_that_come_back_make_no_new_graph(counter: CompileCounter) -> None:
    model, act_map = chain(), chain_map()
    compiled: Any = torch.compile(model.module, backend=counter)
    rows = model.rows(SOURCE)
    with torch.no_grad():
        compiled(rows)
        for strength in (1.0, 0.4):
            with steer(model.module, act_map, strength):
                assert torch.equal(compiled(rows), steered(model, act_map, strength))
            compiled(rows)
        assert counter.frame_count <= 2  # with and without
        with steer(model.module, act_map.scaled(0.5)):
            assert torch.equal(compiled(rows), steered(model, act_map.scaled(0.5)))
        assert counter.frame_count <= 2


def test_compiled_parts_are_steered_and_counted(counter: CompileCounter) -> None:
    model, act_map = chain(), chain_map()
    expected = steered(model, act_map)
    layers: Any = model.module.get_submodule("layers")
    for index in range(len(layers)):
        layers[index] = torch.compile(layers[index], backend=counter)
    with steer(model.module, act_map) as steering:
        assert torch.equal(output(model), expected)
    assert len(steering.coverage.fired) == 3
    assert not any("forward" in part.__dict__ for part in submodules(model.module).values())


def test_llama_steered_under_compilation_equals_eager(llama: TransformersModel, counter: CompileCounter) -> None:
    act_map = fitted(llama, "norms")
    ids, mask = llama._padded([llama._tokens(prompt) for prompt in SOURCE])
    compiled: Any = torch.compile(llama.module, backend=counter)
    with torch.no_grad(), steer(llama.module, act_map, 0.7) as steering:
        eager = llama.module(input_ids=ids, attention_mask=mask.long()).logits
        first = compiled(input_ids=ids, attention_mask=mask.long()).logits
        count = counter.frame_count
        assert torch.equal(first, eager)
        steering.strength = 0.2
        second = compiled(input_ids=ids, attention_mask=mask.long()).logits
        assert counter.frame_count == count
        assert not torch.equal(second, first)


# --- inference mode and gradients


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("enter_inside", [False, True], ids=["entered outside", "entered inside"])
def test_steering_in_inference_mode_and_then_outside(enter_inside: bool, dtype: torch.dtype) -> None:
    model, act_map = mixed(dtype), fitted(mixed(), MIXED_SITES)
    rows = model.rows(SOURCE)

    def train() -> Tensor:
        result = model.module(rows)
        result.float().sum().backward()
        return result

    inside = torch.inference_mode() if enter_inside else contextlib.nullcontext()
    steering = steer(model.module, act_map, 0.5)
    with inside:
        steering.__enter__()
    with torch.inference_mode():
        first = model.module(rows)
    assert torch.equal(train(), first)
    steering.strength = 0.8
    train()
    steering.__exit__()
    with steer(model.module, act_map, 0.5):
        assert torch.equal(train(), first)


def test_gradients_flow_through_a_steered_model() -> None:
    model, act_map = chain(), one_site("layers.2", 2, 1)
    rows = model.rows(SOURCE).requires_grad_()
    with steer(model.module, act_map):
        model.module(rows).sum().backward()
    assert rows.grad is not None
    assert bool(rows.grad.abs().sum() > 0)


def test_changing_the_strength_between_forward_and_backward_is_no_silent_error() -> None:
    """Autograd either uses the coefficients of the forward pass, or says that they have changed."""
    model = TensorModel(nn.Sequential(nn.Identity()), (4,))
    rows = model.rows(SOURCE).requires_grad_()
    with steer(model.module, one_site("0", 3, 0)) as steering:
        result = model.module(rows)
        steering.strength = 0.5
        try:
            result.sum().backward()
        except RuntimeError as error:
            assert "modified by an inplace operation" in str(error)  # noqa: PT017
        else:
            assert rows.grad is not None
            assert torch.allclose(rows.grad, torch.full_like(rows, 3.0))


# --- forwards for a host that puts them in place itself


def test_forwards_do_what_steering_does_and_leave_the_model_alone() -> None:
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


def test_forwards_stack_on_what_was_there() -> None:
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


def test_a_map_put_on_again_after_another_acts_as_at_first() -> None:
    model, act_map = chain(), chain_map()
    one, other = (steer(model.module, act_map, strength) for strength in (0.3, 1.0))
    outputs: list[Tensor] = []
    for steering in (one, other, one, other):
        with steering:
            outputs.append(output(model))
    assert torch.equal(outputs[0], outputs[2])
    assert torch.equal(outputs[1], outputs[3])
    assert not torch.equal(outputs[0], outputs[1])
