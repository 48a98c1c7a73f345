"""Which sites fired, and what happens when none did."""

from __future__ import annotations

import pytest
import torch
from helpers import (
    chain,
    keys,
    swapped,
)
from steering_helpers import (
    chain_map,
    output,
)
from torch import nn

from act_core import ActMap, steer
from act_core.errors import MapMismatchError
from act_core.sites import Site
from act_core.steering import BatchRows
from act_core.transport import Transport


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


def test_nested_maps_count_only_their_own_runs() -> None:
    model, act_map = chain(), chain_map()
    with steer(model.module, act_map) as outer:
        output(model)
        with steer(model.module, act_map) as inner:
            output(model)
        output(model)
    assert set(outer.coverage.fires.values()) == {3}
    assert set(inner.coverage.fires.values()) == {1}


def test_missing_and_silent_sites_are_reported() -> None:
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


def test_check_raises_only_if_map_should_act_and_nothing_fired() -> None:
    model, act_map = chain(), chain_map()
    with steer(model.module, act_map) as steering:
        with pytest.raises(MapMismatchError, match="had no effect: 0 of 3 sites fired"):
            steering.check()
        output(model)
        steering.check()
    with steer(model.module, act_map, 0) as steering:
        steering.check()


def test_leaving_block_raises_if_no_site_fired() -> None:
    model = chain()
    with pytest.raises(MapMismatchError, match="had no effect: 0 of 3 sites fired"), steer(model.module, chain_map()):
        pass
    assert swapped(model.module) == []


def test_leaving_block_raises_if_no_site_fired_in_this_block() -> None:
    model = chain()
    steering = steer(model.module, chain_map())
    with steering:
        output(model)
    with pytest.raises(MapMismatchError, match="had no effect"), steering:
        pass


def test_leaving_block_keeps_error_raised_inside() -> None:
    model = chain()
    with pytest.raises(ZeroDivisionError), steer(model.module, chain_map()):
        raise ZeroDivisionError


def test_leaving_block_accepts_unused_map_of_strength_zero() -> None:
    model = chain()
    with steer(model.module, chain_map(), 0) as steering:
        pass
    assert steering.coverage.fired == ()


def test_leaving_block_accepts_unused_map_if_it_need_not_fire() -> None:
    model = chain()
    with steer(model.module, chain_map(), must_fire=False) as steering:
        pass
    assert steering.coverage.fired == ()


def test_leaving_block_warns_if_branch_is_absent(caplog: pytest.LogCaptureFixture) -> None:
    model = chain()
    with steer(model.module, chain_map(), rows={"toy": BatchRows(())}) as steering:
        output(model)
        with pytest.raises(MapMismatchError, match="the branch that it steers is absent"):
            steering.check()
    assert "the branch that it steers is absent" in caplog.text


def test_map_with_strength_zero_does_not_count_runs_of_other_map() -> None:
    model, act_map = chain(), chain_map()
    with steer(model.module, act_map, 0) as off, steer(model.module, act_map) as on:
        output(model)
        assert set(off.coverage.fires.values()) == {0}
        off.strength = 1
        output(model)
    assert set(off.coverage.fires.values()) == {1}
    assert set(on.coverage.fires.values()) == {2}


def test_strength_zero_at_end_keeps_count() -> None:
    model = chain()
    with steer(model.module, chain_map()) as steering:
        output(model)
        steering.strength = 0
    assert str(steering.coverage) == "3 of 3 sites fired"
