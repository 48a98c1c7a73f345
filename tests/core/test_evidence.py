"""Controls of the benchmarks, and what it takes to clear them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from steering_helpers import one_site
from torch.testing import assert_close

from act_core import ActMap
from act_core.transport import fit_transport
from benchmarks.lib.controls import RANDOM_CONTROLS, flipped, permuted, random_controls
from benchmarks.lib.evidence import cleared
from benchmarks.lib.intervals import score_interval
from tools.results import Estimate

MAKERS = pytest.mark.parametrize("control", [permuted, flipped])


def wide_map() -> ActMap:
    """A map of one site, whose 64 channels are displaced by different amounts."""
    act_map, values = one_site("layers.1", 1, 0, channels=64), torch.linspace(-1, 2, 64)
    transports = {
        site: replace(transport, omega=1 + values, beta=values.square())
        for site, transport in act_map.transports.items()
    }
    return replace(act_map, transports=transports)


def displacements(act_map: ActMap) -> list[torch.Tensor]:
    """Of an activation of 0.5 in every channel, by site."""
    return [(transport.omega - 1) * 0.5 + transport.beta for transport in act_map.transports.values()]


@MAKERS
def test_control_displaces_as_far_in_another_direction(control: Callable[[ActMap, int], ActMap]) -> None:
    act_map = wide_map()
    for before, after in zip(displacements(act_map), displacements(control(act_map, 0)), strict=True):
        assert_close(after.norm(), before.norm())
        assert not torch.equal(after, before)


def test_permuted_control_moves_the_source_of_a_fitted_map_as_far() -> None:
    generator = torch.Generator().manual_seed(0)
    spread, centre = torch.rand(64, generator=generator), 5 * torch.randn(64, generator=generator)
    source = centre + spread * torch.randn(500, 64, generator=generator)
    target = 1.5 * (source - centre) + centre + torch.randn(64, generator=generator)
    transport = fit_transport(source, target)
    (site,) = one_site("layers.1", 1, 0, channels=64).transports
    act_map = replace(one_site("layers.1", 1, 0, channels=64), transports={site: transport})
    control = permuted(act_map).transports[site]
    moved, expected = ((one.omega - 1) * source + one.beta for one in (control, transport))
    # The source deviates as in the statistics, up to rounding.
    assert_close(moved.square().mean().sqrt(), expected.square().mean().sqrt(), rtol=1e-3, atol=0)
    assert float(torch.cosine_similarity(moved.mean(0), expected.mean(0), dim=0)) < 0.5


def test_share_has_an_interval_even_if_all_units_are_alike() -> None:
    nobody = score_interval(np.zeros(7))
    assert (nobody.value, nobody.low) == (0, 0)
    assert 0.3 < nobody.high < 0.41  # Wilson's; the exact one is 0.41


def test_one_text_in_eight_does_not_clear_a_control() -> None:
    scores = np.array([1.0, *7 * [0.0]])
    assert score_interval(scores).low > 0
    assert not cleared(scores, {"none": np.zeros(8)}).all


@MAKERS
def test_control_depends_on_its_seed_alone(control: Callable[[ActMap, int], ActMap]) -> None:
    act_map = wide_map()
    one, again, other = (torch.cat(displacements(control(act_map, seed))) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_random_controls_are_of_both_kinds_and_differ() -> None:
    controls = random_controls(wide_map())
    assert list(controls)[:3] == ["permuted 1", "flipped 1", "permuted 2"]
    assert len(controls) == RANDOM_CONTROLS
    assert len({tuple(torch.cat(displacements(control)).tolist()) for control in controls.values()}) == RANDOM_CONTROLS


def test_effect_clears_controls_whose_paired_difference_is_above_0() -> None:
    difficulty = np.linspace(0, 10, 40)  # far wider than the effect, but the same for both
    noise = np.random.default_rng(0).normal(0, 0.1, (3, 40))
    found = cleared(difficulty + 1 + noise[0], {"a": difficulty + noise[1], "b": difficulty + 1 + noise[2]})
    assert (found.count, found.of, found.all) == (1, 2, False)
    assert found.margin.value == pytest.approx(0, abs=0.1)  # to b, which comes closest
    assert found.cells == [found.margin, "**no** (1 of 2)"]
    assert cleared(difficulty + 1, {"a": difficulty}).cells == [Estimate(1.0, 1.0, 1.0), "yes"]


def test_effect_that_equals_its_control_is_not_cleared() -> None:
    units = np.random.default_rng(0).normal(0, 1, 40)
    assert not cleared(units, {"a": units}).all
