"""Gates: how they are fitted, how far they let a map act, and how they are saved."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import MIXED_SITES, assert_identical, chain, mixed, prompts, tiny_llama
from map_files import metadata_of, refused, rewritten
from steering_helpers import LAYERS, SOURCE, fitted, identity, one_site, steered
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from act_core import ActMap, MapError, fit, load_map, save_map, steer
from act_core.displacement import displace_at
from act_core.errors import FitError
from act_core.fitting.coefficients import coefficients
from act_core.gates import SHRINKAGE, Gate, fit_gate
from act_core.settings import Spatial
from act_core.sites import Layout

# exp(-200) is 0 in float32, so such a gate is closed exactly; one with a score of -20 lets 2e-9 of a move through.
CLOSED, OPEN = Gate(torch.zeros(4), -200.0), Gate(torch.zeros(4), 200.0)
HALF = Gate(torch.zeros(4), 0.0)
SHAPES: list[tuple[Layout, Spatial, tuple[int, ...]]] = [
    ("vector", "shift", (3, 4)),
    ("tokens", "shift", (3, 5, 4)),
    ("tokens", "shift", (3, 2, 5, 4)),
    ("spatial", "shift", (3, 4, 2, 5)),
    ("spatial", "pointwise", (3, 4, 2, 5)),
    ("spatial", "shift", (3, 4, 2, 2, 5)),
]


def values(*shape: int, seed: int = 0, shift: float = 0.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + shift


def sides(n: int, m: int, channels: int, shift: float) -> tuple[Tensor, Tensor]:
    return values(n, channels, shift=shift), values(m, channels, seed=1)


def gated_map() -> ActMap:
    return fitted(mixed(), MIXED_SITES, support="gated")


def with_gate(gate: Gate | None) -> ActMap:
    return one_site("0", 2.0, 1.0, gate=gate)


@pytest.mark.parametrize(("n", "m", "channels"), [(40, 40, 6), (12, 30, 50), (4, 4, 200)])
def test_gate_opens_for_source_and_closes_for_target(n: int, m: int, channels: int) -> None:
    gate = fit_gate(*sides(n, m, channels, 2.0))
    # Values that it was not fitted on.
    source, target = values(100, channels, seed=2, shift=2.0), values(100, channels, seed=3)
    assert gate.openness(source).mean() > 0.8
    assert gate.openness(target).mean() < 0.2


@pytest.mark.parametrize("channels", [8, 100])
def test_gate_between_equal_sides_is_half_open(channels: int) -> None:
    gate = fit_gate(*sides(40, 40, channels, 0.0))
    new = gate.openness(values(200, channels, seed=2))
    # Scores of prompts that were left out of the fit show that it learnt nothing.
    assert 0.3 < new.mean() < 0.7


@pytest.mark.parametrize("seed", range(4))
def test_gate_never_closes_for_the_source_rather_than_the_target(seed: int) -> None:
    source, target = values(8, 60, seed=seed), values(8, 60, seed=seed + 10)  # alike but for chance
    gate = fit_gate(source, target)
    assert gate.openness(source).mean() >= gate.openness(target).mean()


@pytest.mark.parametrize("channels", [3, 60])
def test_direction_is_the_shrunk_discriminant(channels: int) -> None:
    a, b = (side.double() for side in sides(20, 30, channels, 1.0))
    both = torch.cat([a - a.mean(0), b - b.mean(0)])
    weights = torch.cat([torch.full((20,), 0.5 / 20), torch.full((30,), 0.5 / 30)]).double()
    gap = a.mean(0) - b.mean(0)
    total = both.T @ (both * weights[:, None]) + torch.outer(gap, gap) / 4
    shrunk = (1 - SHRINKAGE) * total + SHRINKAGE * total.diagonal().diag()
    wanted = torch.linalg.solve(shrunk, gap)
    found = fit_gate(a, b).weight.double()
    # The gate is kept in float32.
    assert torch.allclose(found / found.norm(), wanted / wanted.norm(), atol=1e-6)


def test_gate_ignores_the_number_and_scale_of_values() -> None:
    a, b = sides(20, 20, 5, 1.0)
    gate = fit_gate(a, b)
    probe = values(10, 5, seed=2, shift=0.5)
    scaled = fit_gate(a * 1000, b * 1000)
    assert torch.allclose(scaled.openness(probe * 1000), gate.openness(probe), atol=1e-4)  # float32 scores up to 5
    # Twice the same prompts on one side: the direction is the same, since both sides weigh the same.
    doubled = fit_gate(torch.cat([a, a]), b)
    assert torch.cosine_similarity(doubled.weight, gate.weight, dim=0) > 0.9999


def test_gate_of_constant_channels_is_finite_and_leaves_them_out() -> None:
    a, b = sides(10, 10, 4, 2.0)
    a[:, 1], b[:, 1] = 7.0, 7.0
    gate = fit_gate(a, b)
    assert gate.weight[1] == 0
    same = fit_gate(torch.ones(5, 3), torch.ones(5, 3))
    assert torch.equal(same.openness(values(4, 3)), torch.full((4,), 0.5))


@pytest.mark.parametrize(("layout", "spatial", "shape"), SHAPES)
def test_gate_scales_the_move_of_each_row(layout: Layout, spatial: Spatial, shape: tuple[int, ...]) -> None:
    x, gain, offset = values(*shape), values(4, seed=1), values(4, seed=2)
    gate = Gate(values(4, seed=3), 0.3)
    channel = 1 if layout == "spatial" else -1
    means = x.movedim(channel, -1).reshape(3, -1, 4).mean(1)
    opening = gate.openness(means).view(-1, *[1] * (x.ndim - 1))
    plain = displace_at(x, layout, spatial, gain, offset) - x
    moved = displace_at(x, layout, spatial, gain, offset, gate=gate.packed()) - x
    # Four float32 operations on activations of size 3.
    assert torch.allclose(moved, opening * plain, atol=2e-6)
    assert bool((moved.abs() <= plain.abs() + 2e-6).all())
    assert torch.equal(displace_at(x, layout, spatial, gain, offset, gate=CLOSED.packed()), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_steering_with_a_gate(dtype: torch.dtype) -> None:
    model = identity()
    x = model.rows(SOURCE).to(dtype)

    def moved(gate: Gate | None, strength: float = 1.0) -> Tensor:
        with torch.no_grad(), steer(model.module, with_gate(gate), strength):
            return model.module(x)

    assert torch.equal(moved(CLOSED), x)
    assert torch.equal(moved(OPEN), moved(None))
    assert torch.equal(moved(HALF), moved(None, 0.5))
    assert torch.equal(moved(HALF, 0.0), x)
    assert moved(HALF).dtype == dtype


def test_gated_maps_are_stacked_one_after_the_other() -> None:
    model = identity()
    x = model.rows(SOURCE)
    first, second = with_gate(Gate(values(4), 0.1)), with_gate(Gate(values(4, seed=1), -0.2))
    plain = with_gate(None)
    with torch.no_grad(), steer(model.module, first), steer(model.module, plain), steer(model.module, second):
        found = model.module(x)
    wanted = x
    for act_map in (first, plain, second):
        wanted = act_map["toy/0"].apply(wanted)
    assert torch.allclose(found, wanted, atol=1e-5)  # three float32 maps of slope 2


def test_walk_steers_as_the_live_model_does() -> None:
    """The last site is fitted on what the gates before it leave."""
    model = chain()
    act_map = fitted(model, LAYERS, support="gated")
    *before, last = act_map.transports
    earlier = act_map.restrict(*(site.key for site in before))
    seen: list[Tensor] = []
    handle = model.module.get_submodule(last.name).register_forward_hook(lambda *call: seen.append(call[2]))
    with torch.no_grad(), steer(model.module, earlier):
        model.module(model.rows(SOURCE))
    handle.remove()
    statistics = act_map.transports[last].statistics
    assert statistics is not None
    assert torch.allclose(seen[0].mean(0), statistics.source_mean, atol=1e-5)  # the same float32 kernels, other batches


def test_fit_reads_padding_as_the_model_returns_it() -> None:
    """Prompts of other lengths in a batch change nothing: a gate never reads the padding between them."""
    llama = tiny_llama()
    short, mixed_lengths = (
        fit(llama, prompts("source", 6), prompts("target", 6), sites="norms", support="gated", batch_size=size)
        for size in (1, 6)
    )
    for site, transport in short.transports.items():
        gate, other = transport.gate, mixed_lengths.transports[site].gate
        assert gate is not None
        assert other is not None
        probe = values(20, site.channels)
        assert torch.allclose(gate.openness(probe), other.openness(probe), atol=1e-2)  # six prompts, ill conditioned


def test_changing_strength_of_gated_map_causes_no_recompilation() -> None:
    torch._dynamo.reset()
    counter = CompileCounter()
    model = mixed()
    act_map = gated_map()
    compiled: Any = torch.compile(model.module, backend=counter)
    rows = model.rows(SOURCE)
    with torch.no_grad(), steer(model.module, act_map, 1.0) as steering:
        compiled(rows)
        first = counter.frame_count
        for strength in (0.3, -1.0, 1.0):
            steering.strength = strength
            assert torch.equal(compiled(rows), steered(model, act_map, strength))
        assert counter.frame_count == first
    torch._dynamo.reset()


def test_another_gated_map_causes_no_recompilation() -> None:
    torch._dynamo.reset()
    counter = CompileCounter()
    model = identity()
    compiled: Any = torch.compile(model.module, backend=counter)
    x = model.rows(SOURCE)
    for gate in (HALF, OPEN):
        with torch.no_grad(), steer(model.module, with_gate(gate)):
            assert torch.equal(compiled(x), with_gate(gate)["toy/0"].apply(x))
    assert counter.frame_count == 1
    torch._dynamo.reset()


def test_operations_on_gated_maps() -> None:
    act_map = gated_map()
    site = next(iter(act_map.transports))
    assert act_map.restrict(site.key)[site.key].gate is act_map[site.key].gate
    x = values(3, site.channels)
    scaled, transport = act_map[site.key].scaled(0.5), act_map[site.key]
    assert torch.allclose(scaled.apply(x), transport.apply(x, 0.5), atol=1e-6)  # float32 activations of size 3
    with pytest.raises(MapError, match="fit the opposite map instead"):
        act_map.inverse()
    with pytest.raises(MapError, match="Only maps with unbounded support"):
        act_map.then(act_map)
    bare = ActMap({s: replace(t, gate=None) for s, t in act_map.transports.items()}, act_map.record)
    assert set(act_map.difference(bare).values()) == {float("inf")}
    assert set(act_map.difference(act_map).values()) == {0.0}
    assert "gated" in repr(transport)


def test_save_and_load_keep_gates(path: Path) -> None:
    act_map = gated_map()
    save_map(act_map, path, statistics=True)
    assert metadata_of(path)["act.format"] == "2"
    loaded = load_map(path)
    assert_identical(loaded, act_map)
    for site, transport in act_map.transports.items():
        gate, read = transport.gate, loaded[site.key].gate
        assert gate is not None
        assert read is not None
        assert torch.equal(gate.packed(), read.packed())
    assert loaded.record.support == "gated"


GATE = "toy/conv.gate"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (torch.zeros(6), r"not F32 \[7\]"),
        (torch.zeros(7, dtype=torch.float64), r"not F32 \[7\]"),
        (torch.full((7,), torch.nan), "not finite"),
        (torch.full((7,), torch.inf), "not finite"),
    ],
)
def test_load_refuses_damaged_gate(path: Path, damage: Tensor, message: str) -> None:
    assert re.search(message, refused(rewritten(path, gated_map(), tensors={GATE: damage})))


@pytest.mark.parametrize("counts", [(2, 6), (6, 3)])
def test_fit_of_gates_needs_four_prompts_a_side(counts: tuple[int, int]) -> None:
    model = chain()
    with pytest.raises(FitError, match="needs at least 4 source and 4 target prompts"):
        fit(model, prompts("source", counts[0]), prompts("target", counts[1]), sites=LAYERS, support="gated")


def test_refinement_refuses_to_start_from_gated_map() -> None:
    act_map = gated_map()
    with pytest.raises(FitError, match="gated support, which cannot be refined"):
        coefficients(list(act_map.transports), act_map)
