"""Maps with noise levels: which transport acts at which level, and how such maps are composed, edited and kept."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from bins import CHANNELS, FIRST, LEVELS, SECOND, binned_map, binned_transport, plain_map, values
from torch import Tensor, nn

from act_core import ActMap, MapError, steer
from act_core.errors import FitError
from act_core.fitting.coefficients import coefficients
from act_core.levels import MAX_LEVELS, as_levels, check_levels
from act_core.models.pipeline_calls import Call
from act_core.models.sampling_levels import with_levels
from act_core.summary import describe
from act_core.transport import Statistics, fit_transport, stacked


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(CHANNELS, CHANNELS), nn.Linear(CHANNELS, CHANNELS))


class FlowMatchScheduler:
    """Times from 1000 down to 0, as a scheduler of diffusers counts them."""

    config = SimpleNamespace(shift=1.0, num_train_timesteps=1000)


X = torch.randn(2, 5, CHANNELS, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(("level", "number"), [(1.0, 0), (0.9, 0), (0.71, 0), (0.69, 1), (0.5, 1), (0.34, 2), (0.0, 2)])
def test_at_takes_the_nearest_bin(level: float, number: int) -> None:
    act_map = binned_map()
    plain = act_map.at(level)
    assert plain.levels == ()
    for site, transport in plain.transports.items():
        assert torch.equal(transport.omega, act_map.transports[site].omega[number])
        assert torch.equal(transport.beta, act_map.transports[site].beta[number])


def test_map_without_levels_is_the_same_at_all_levels() -> None:
    act_map = plain_map()
    assert act_map.at(0.3) is act_map


def test_site_without_bins_acts_at_all_levels() -> None:
    act_map = ActMap({FIRST: binned_transport(1), SECOND: plain_map()[FIRST.key]}, levels=LEVELS)
    for level in LEVELS:
        assert torch.equal(act_map.at(level)[SECOND.key].omega, act_map[SECOND.key].omega)
    assert act_map.restrict(FIRST.key).levels == LEVELS
    assert act_map.restrict(SECOND.key).levels == ()


def test_times_beyond_the_schedule_are_at_its_ends() -> None:
    """Some samplers overshoot the last time, or take an intermediate step before the first."""
    module = model()
    pipeline = SimpleNamespace(transformer=module, scheduler=FlowMatchScheduler())
    with steer(module, binned_map()) as steering:
        denoise = with_levels(pipeline, {})["transformer"]
        levels: list[float] = []
        for time in (1000.0, 1010.0, 500.0, -10.0):
            denoise(Call("transformer", {"timestep": torch.tensor([time])}, lambda: module(X)))
            levels.append(steering.level)
    assert levels == [1, 1, 0.5, 0]


@pytest.mark.parametrize("bounded", [False, True])
@pytest.mark.parametrize("strength", [1.0, -0.5, 0.0])
def test_steering_is_that_of_the_nearest_bin_bit_for_bit(bounded: bool, strength: float) -> None:
    act_map, module = binned_map(bounded=bounded), model()
    outputs: list[Tensor] = []
    with steer(module, act_map, strength) as steering:
        for level in (0.95, 0.55, 0.1, 0.9):
            steering.level = level
            outputs.append(module(X))
    for level, output in zip((0.95, 0.55, 0.1, 0.9), outputs, strict=True):
        with steer(module, act_map.at(level), strength):
            assert torch.equal(module(X), output)
    if strength:
        assert not torch.equal(outputs[0], outputs[1])
        assert torch.equal(outputs[0], outputs[3])


def test_level_is_the_noisiest_until_it_is_set() -> None:
    act_map, module = binned_map(), model()
    with steer(module, act_map) as steering:
        assert steering.level == 1.0
        output = module(X)
    with steer(module, act_map.at(1.0)):
        assert torch.equal(module(X), output)


def test_level_can_be_set_before_and_after_the_block() -> None:
    act_map, module = binned_map(), model()
    steering = steer(module, act_map)
    steering.level = 0.2
    with steering:
        output = module(X)
    steering.level = 0.9
    with steer(module, act_map.at(0.2)):
        assert torch.equal(module(X), output)
    assert steering.level == 0.9


@pytest.mark.parametrize("binned_first", [True, False])
def test_binned_and_plain_maps_compose_on_one_site(binned_first: bool) -> None:
    binned, plain, module = binned_map(), plain_map(), model()

    def run(*maps: ActMap, level: float) -> Tensor:
        with steer(module, maps[0], 0.7) as outer, steer(module, maps[1], 0.4) as inner:
            outer.level = inner.level = level
            return module(X)

    for level in LEVELS:
        order = (binned, plain) if binned_first else (plain, binned)
        assert torch.equal(run(*order, level=level), run(*(one.at(level) for one in order), level=level))


def test_switching_levels_makes_no_second_graph() -> None:
    act_map, module = binned_map(), model()
    graphs: list[object] = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    compiled = torch.compile(module, backend=backend)
    with steer(module, act_map) as steering:
        compiled(X)
        first = len(graphs)
        for level in (0.5, 0.2):
            steering.level = level
            output = compiled(X)
            with_eager = module(X)
            assert torch.equal(output, with_eager)
    assert len(graphs) == first
    torch.compiler.reset()


def test_edits_act_on_each_bin() -> None:
    act_map = binned_map()
    for edited, edit in (
        (act_map.scaled(0.3), lambda plain: plain.scaled(0.3)),
        (act_map.inverse(), lambda plain: plain.inverse()),
        (act_map.then(act_map), lambda plain: plain.then(plain)),
        (act_map.restrict("*/0"), lambda plain: plain.restrict("*/0")),
    ):
        assert edited.levels == LEVELS
        for level in LEVELS:
            wanted = edit(act_map.at(level))
            assert set(wanted.difference(edited.at(level)).values()) == {0.0}


def test_bins_keep_their_statistics_and_effect() -> None:
    fitted = [fit_transport(values(n), values(n + 50)) for n in range(3)]
    together = stacked(fitted)
    for number, one in enumerate(fitted):
        again = together.bin(number)
        assert isinstance(again.statistics, Statistics)
        assert one.statistics is not None
        assert torch.equal(again.statistics.source_mean, one.statistics.source_mean)
        assert again.effect == one.effect
    assert together.channels == CHANNELS


def test_maps_of_other_levels_are_not_joined() -> None:
    act_map = binned_map()
    other = ActMap({SECOND: binned_transport(30)}, levels=(0.8, 0.5, 0.2))
    with pytest.raises(MapError, match="different noise levels; apply them one after the other"):
        act_map.then(plain_map())
    with pytest.raises(MapError, match="different noise levels"):
        act_map.restrict("*/0").joined(other)
    assert act_map.restrict("*/1").joined(plain_map()).levels == LEVELS


@pytest.mark.parametrize(
    ("levels", "reason"),
    [
        ((0.9, 1.5, 0.2), "noise level is 1.5; it must be a number from 0 to 1"),
        ((0.9, 0.5, 0.0), "must be above 0"),
        ((0.9, 0.5, float("nan")), "noise level is nan"),
        ((0.2, 0.5, 0.9), "each must be lower than the one before it"),
        ((0.9, 0.9, 0.2), "each must be lower than the one before it"),
        ((0.9, 0.5), "3 bins, its map 2 noise levels"),
        ((), "3 bins, its map 0 noise levels"),
    ],
)
def test_levels_that_do_not_fit_are_refused(levels: tuple[float, ...], reason: str) -> None:
    with pytest.raises(MapError, match=reason):
        ActMap({FIRST: binned_transport(1)}, levels=levels)


def test_map_may_have_as_many_levels_as_a_fit_gives() -> None:
    levels = tuple(1 - number / MAX_LEVELS for number in range(MAX_LEVELS))
    check_levels(levels)
    with pytest.raises(MapError, match=f"{MAX_LEVELS + 1} noise levels; a map can have {MAX_LEVELS}"):
        check_levels((*levels, 0.001))


def test_levels_without_bins_are_refused() -> None:
    with pytest.raises(MapError, match="no site has bins"):
        ActMap(plain_map().transports, levels=(0.5,))


@pytest.mark.parametrize("level", [-0.1, 1.1, float("nan"), "high", None, True])
def test_level_outside_its_range_is_refused(level: Any) -> None:
    steering = steer(model(), binned_map())
    for use in (binned_map().at, lambda value: setattr(steering, "level", value)):
        with pytest.raises(MapError, match="must be a number from 0 to 1"):
            use(level)


def test_no_levels_are_refused() -> None:
    with pytest.raises(MapError, match="There are no noise levels"):
        as_levels([])


def test_transport_with_bins_is_not_applied_directly() -> None:
    with pytest.raises(MapError, match=r"choose one of them with bin\(\)"):
        binned_transport(1).apply(X)


def test_map_with_levels_cannot_be_refined() -> None:
    with pytest.raises(FitError, match="has several noise levels"):
        coefficients([FIRST], binned_map())


def test_description_lists_levels() -> None:
    assert "0.9, 0.5, 0.2" in describe(binned_map())
    assert "noise levels" not in describe(plain_map())
