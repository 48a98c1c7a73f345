"""Projections: what they take away, and how they are applied and saved."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import MIXED_SITES, assert_identical, mixed
from map_files import metadata_of, refused, rewritten
from steering_helpers import SOURCE, fitted, identity, one_site, steered
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from act_core import ActMap, MapError, load_map, save_map, steer
from act_core.displacement import displace_at
from act_core.errors import FitError
from act_core.fitting.coefficients import coefficients
from act_core.projections import Projection, amounts
from act_core.settings import Spatial
from act_core.sites import Layout
from act_core.transport import Transport, fit_transport

SHAPES: list[tuple[Layout, Spatial, tuple[int, ...]]] = [
    ("vector", "shift", (3, 4)),
    ("tokens", "shift", (3, 5, 4)),
    ("tokens", "shift", (3, 2, 5, 4)),
    ("spatial", "pointwise", (3, 4, 2, 5)),
    ("spatial", "shift", (3, 4, 2, 5)),
]


def values(*shape: int, seed: int = 0, shift: float = 0.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + shift


def projection() -> Transport:
    return fit_transport(values(20, 4, shift=2.0), values(30, 4, seed=1), "project")


def projected_map() -> ActMap:
    return fitted(mixed(), MIXED_SITES, estimator="project")


def test_projection_moves_the_source_mean_to_the_target_mean() -> None:
    t = projection()
    assert t.statistics is not None
    source, _, target, _ = t.statistics
    # Float32 activations of size 3.
    assert torch.allclose(t.apply(source[None])[0], target, atol=1e-5)
    assert torch.allclose(t.apply(target[None])[0], target, atol=1e-5)


def test_projection_leaves_no_more_of_the_direction_than_the_target_has() -> None:
    t = projection()
    assert t.statistics is not None
    direction = t.statistics.source_mean - t.statistics.target_mean
    direction, a = direction / direction.norm(), values(200, 4, seed=2, shift=1.0)
    level = float(t.statistics.target_mean @ direction)
    before, after = a @ direction, t.apply(a) @ direction
    # Float32 activations of size 5.
    assert torch.allclose(after, before.clamp(max=level), atol=1e-5)
    # Everything at right angles to the direction stays.
    rest = a - torch.outer(before, direction)
    assert torch.allclose(t.apply(a) - torch.outer(after, direction), rest, atol=1e-5)
    below = a[before < level - 1e-3]
    assert len(below)
    assert torch.equal(t.apply(below), below)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_projection_between_equal_means_does_nothing(dtype: torch.dtype) -> None:
    a, x = values(6, 400), values(9, 400, seed=1)
    rounded = a * (1 + torch.finfo(dtype).eps * values(6, 400, seed=2))
    for b in (a, rounded):
        assert torch.equal(fit_transport(a, b, "project", activation_dtype=dtype).apply(x), x)


def test_projection_finds_small_shift_beside_large_channel() -> None:
    a, moved = values(20, 400), torch.zeros(400)
    a[:, 0] += 3000
    moved[1] = 1.0
    t = fit_transport(a, a + moved, "project", activation_dtype=torch.bfloat16)
    assert torch.allclose(t.apply(a.mean(0)), a.mean(0) + moved, atol=1e-3)  # float32 activations of size 3000


@pytest.mark.parametrize(("layout", "spatial", "shape"), SHAPES)
def test_projection_acts_on_each_token_or_position(layout: Layout, spatial: Spatial, shape: tuple[int, ...]) -> None:
    t, x = projection(), values(*shape, shift=1.0)
    assert t.projection is not None
    channel = 1 if layout == "spatial" else -1
    own = x.movedim(channel, -1)
    if layout == "spatial" and spatial == "shift":
        mean = own.mean((1, 2), keepdim=True)
        wanted = own + t.apply(mean) - mean
    else:
        wanted = t.apply(own)
    packed = t.projection.packed()
    found = displace_at(x, layout, spatial, t.omega - 1, t.beta, projection=packed)
    # Float32 activations of size 5.
    assert torch.allclose(found.movedim(channel, -1), wanted, atol=1e-5)


def test_autocast_does_not_round_amounts() -> None:
    # Channels as large as some in language models: the amount is a small difference of large numbers.
    t = fit_transport(values(20, 4) + 3000, values(30, 4, seed=1) + 3000, "project")
    x = values(3, 5, 4, seed=2) + 3000
    assert t.projection is not None
    wanted = amounts(x, "tokens", t.projection.packed())
    assert float(wanted.max()) > 0
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(amounts(x, "tokens", t.projection.packed()), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_steering_with_a_projection(dtype: torch.dtype) -> None:
    model = identity()
    x = model.rows(SOURCE).to(dtype)

    def moved(amount: float, strength: float = 1.0) -> Tensor:
        part = Projection(torch.zeros(4), amount)
        with torch.no_grad(), steer(model.module, one_site("0", 1.0, 3.0, projection=part), strength):
            return model.module(x)

    assert torch.equal(moved(-1.0), x)
    assert torch.equal(moved(2.0), x + 6)
    assert torch.equal(moved(1.0, 2.0), x + 6)
    assert torch.equal(moved(1.0, 0.0), x)


def test_projections_are_not_composed_with_other_maps() -> None:
    model = identity()
    x = model.rows(SOURCE)
    first = one_site("0", 1.0, -1.0, projection=Projection(torch.full((4,), 0.5), 0.2))
    second = one_site("0", 2.0, 1.0)
    with torch.no_grad(), steer(model.module, second), steer(model.module, first), steer(model.module, second):
        found = model.module(x)
    wanted = second["toy/0"].apply(first["toy/0"].apply(second["toy/0"].apply(x)))
    assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-5)  # float32 activations of size 10


def test_projection_may_be_gated() -> None:
    act_map = fitted(mixed(), MIXED_SITES, estimator="project", support="gated")
    for site, t in act_map.transports.items():
        assert t.gate is not None
        a = values(5, site.channels)
        plain = Transport(t.omega, t.beta, projection=t.projection).apply(a) - a
        # Float32 activations of size 3.
        assert torch.allclose(t.apply(a) - a, t.gate.openness(a)[:, None] * plain, atol=1e-5)


def test_changing_strength_of_projection_causes_no_recompilation() -> None:
    torch._dynamo.reset()
    counter = CompileCounter()
    model, act_map = mixed(), projected_map()
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


def test_operations_on_projections() -> None:
    act_map = projected_map()
    site = next(iter(act_map.transports))
    t, x = act_map[site.key], values(3, site.channels)
    assert torch.allclose(t.scaled(0.5).apply(x), t.apply(x, 0.5), atol=1e-6)  # float32 activations of size 3
    with pytest.raises(MapError, match="fit the opposite map instead"):
        act_map.inverse()
    with pytest.raises(MapError, match="are not projections can be composed"):
        act_map.then(act_map)
    with pytest.raises(FitError, match="has a projection, which cannot be refined"):
        coefficients(list(act_map.transports), act_map)
    assert set(act_map.difference(act_map).values()) == {0.0}
    assert set(act_map.difference(fitted(mixed(), MIXED_SITES, estimator="mean")).values()) == {float("inf")}


def test_save_and_load_keep_projections(path: Path) -> None:
    act_map = projected_map()
    save_map(act_map, path, statistics=True)
    assert metadata_of(path)["act.format"] == "2"
    loaded = load_map(path)
    assert_identical(loaded, act_map)
    assert set(loaded.difference(act_map).values()) == {0.0}
    assert loaded.record.estimator == "project"


@pytest.mark.parametrize(
    ("damage", "message"),
    [(torch.zeros(6), r"not F32 \[7\]"), (torch.full((7,), torch.nan), "not finite")],
)
def test_load_refuses_damaged_projection(path: Path, damage: Tensor, message: str) -> None:
    assert re.search(message, refused(rewritten(path, projected_map(), tensors={"toy/conv.projection": damage})))
