"""Applying a transport to activations; inverting, composing and scaling it."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor

from act_core import MapError
from act_core.settings import ChannelEstimator
from act_core.transport import Transport, fit_transport

ESTIMATORS = get_args(ChannelEstimator)
HALVES = (torch.float16, torch.bfloat16)
DTYPES = (torch.float32, *HALVES)


def values(rows: int, channels: int = 3, seed: int = 0, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    return torch.randn(rows, channels, generator=torch.Generator().manual_seed(seed)) * scale + shift


@pytest.mark.parametrize("dtype", DTYPES)
def test_apply_at_strength_zero_returns_its_input(dtype: torch.dtype) -> None:
    a = values(5).to(dtype)
    assert fit_transport(values(4), values(4, seed=1)).apply(a, 0) is a


def test_apply_at_strength_one_maps_source_to_target() -> None:
    a = values(6)
    b = a * 3 - 2
    assert torch.allclose(fit_transport(a, b).apply(a), b, atol=1e-5)  # float32 activations of size 10


def test_apply_is_linear_in_strength() -> None:
    a, t = values(6, seed=3), fit_transport(values(5), values(5, seed=1, scale=2, shift=1))
    moved = t.apply(a) - a
    for strength in (-1.5, -0.3, 0.25, 1.0, 2.0):
        # Three float32 operations on activations of size 10.
        assert torch.allclose(t.apply(a, strength), a + strength * moved, atol=1e-5)


def test_apply_accepts_any_shape_and_leaves_it_unchanged() -> None:
    t, a = fit_transport(values(5), values(5, seed=1)), values(24).view(2, 3, 4, 3)
    before = a.clone()
    rows = torch.stack([t.apply(row) for row in a.view(-1, 3)])
    assert torch.equal(t.apply(a).view(-1, 3), rows)
    assert torch.equal(a, before)


def test_apply_changes_only_values_inside_the_support() -> None:
    t = fit_transport(values(5), values(5, seed=1, shift=9), interval=(torch.full((3,), -0.5), torch.full((3,), 0.5)))
    a = torch.tensor([[-0.51, -0.5, 0.0], [0.5, 0.51, 30.0]])
    assert (t.apply(a) != a).tolist() == [[False, True, True], [True, False, False]]
    inside = Transport(t.omega, t.beta).apply(a)
    assert torch.equal(t.apply(a), torch.where((a >= -0.5) & (a <= 0.5), inside, a))


@pytest.mark.parametrize("dtype", HALVES)
def test_apply_does_not_round_the_slope_to_half_precision(dtype: torch.dtype) -> None:
    # In bfloat16 a slope of 1.001 is 1, and so is the product with any activation: the offset must survive that.
    a = torch.linspace(-4, 4, 64).view(-1, 1).to(dtype)
    t = Transport(torch.tensor([1.001]), torch.tensor([0.0]))
    for strength in (1.0, 8.0, 16.0):
        exact = a.double() * (1 + strength * 0.001)
        # Half a step for the sum, and as much again for the small displacement itself.
        spacing = torch.finfo(dtype).eps * a.double().abs()
        assert bool(((t.apply(a, strength).double() - exact).abs() <= spacing).all())
    assert not torch.equal(t.apply(a, 16.0), a)


@pytest.mark.parametrize("dtype", HALVES)
def test_apply_keeps_the_dtype(dtype: torch.dtype) -> None:
    assert fit_transport(values(5), values(5, seed=1)).apply(values(2).to(dtype)).dtype == dtype


def test_transport_from_inference_mode_supports_gradients() -> None:
    with torch.inference_mode():
        t = fit_transport(values(5), values(5, seed=1), interval=(torch.full((3,), -9.0), torch.full((3,), 9.0)))
    a = values(4).requires_grad_()
    t.apply(a).sum().backward()
    assert a.grad is not None
    assert torch.allclose(a.grad, t.omega.expand(4, 3), rtol=1e-6)  # 1 + (omega - 1)


# --- inverting, composing, scaling


@pytest.mark.parametrize("estimator", sorted({*ESTIMATORS} - {"project"}))
def test_inverse_undoes_the_transport(estimator: ChannelEstimator) -> None:
    t, a = fit_transport(values(6), values(6, seed=1, scale=2, shift=3), estimator), values(9, seed=2)
    assert torch.allclose(t.inverse().apply(t.apply(a)), a, atol=1e-5)  # float32 activations of size 10
    assert t.inverse().fallbacks == 0


def test_inverse_of_a_flat_channel_undoes_its_mean_shift() -> None:
    a, b = values(6, 2), values(6, 2, seed=1, shift=3)
    b[:, 1] = 4.0
    inverse = fit_transport(a, b).inverse()
    assert inverse.fallbacks == 1
    assert inverse.omega[1] == 1
    assert float(inverse.beta[1]) == pytest.approx(float(a[:, 1].mean()) - 4, rel=1e-5)  # float32 statistics


def test_inverse_of_a_flat_channel_without_statistics_is_refused() -> None:
    with pytest.raises(MapError, match="cannot be inverted"):
        Transport(torch.zeros(2), torch.ones(2)).inverse()


def test_inverse_maps_the_support() -> None:
    low, high = torch.tensor([-1.0, -2.0, -3.0]), torch.tensor([1.0, 2.0, 3.0])
    t = fit_transport(values(6), values(6, seed=1, scale=2, shift=3), interval=(low, high))
    inverse = t.inverse()
    assert inverse.low is not None
    assert inverse.high is not None
    assert torch.allclose(inverse.low, t.apply(low), rtol=1e-5, atol=1e-6)  # float32 against float64
    assert torch.allclose(inverse.high, t.apply(high), rtol=1e-5, atol=1e-6)


def test_inverse_swaps_the_statistics() -> None:
    t = fit_transport(values(6), values(6, seed=1))
    statistics, swapped = t.statistics, t.inverse().statistics
    assert statistics is not None
    assert swapped is not None
    assert torch.equal(swapped.source_mean, statistics.target_mean)
    assert torch.equal(swapped.target_std, statistics.source_std)


def test_then_applies_one_transport_after_the_other() -> None:
    first, second = (fit_transport(values(6, seed=s), values(6, seed=s + 1, scale=2, shift=1)) for s in (0, 5))
    a = values(9, seed=2)
    # Float32 activations of size 20.
    assert torch.allclose(first.then(second).apply(a), second.apply(first.apply(a)), rtol=1e-5, atol=1e-5)


def test_then_refuses_bounded_support() -> None:
    free = fit_transport(values(6), values(6, seed=1))
    bounded = fit_transport(values(6), values(6, seed=1), interval=(torch.zeros(3), torch.ones(3)))
    for one, other in ((free, bounded), (bounded, free)):
        with pytest.raises(MapError, match="unbounded support"):
            one.then(other)


@pytest.mark.parametrize("strength", [-1.0, 0.0, 0.4, 1.0, 1.7])
def test_scaled_at_strength_one_is_the_transport_at_that_strength(strength: float) -> None:
    a = values(9, seed=2)
    for interval in (None, (torch.full((3,), -0.7), torch.full((3,), 0.7))):
        t = fit_transport(values(6), values(6, seed=1, scale=2), interval=interval)
        assert torch.allclose(t.scaled(strength).apply(a), t.apply(a, strength), atol=1e-5)  # rounded in another order


@pytest.mark.parametrize("strength", [-2.0, 0.5])
def test_scaled_effect_is_a_size(strength: float) -> None:
    """Never below 0, whatever the sign of the strength: a map file with such an effect is refused."""
    t = fit_transport(values(6), values(6, seed=1, shift=3))
    assert t.effect
    assert t.scaled(strength).effect == pytest.approx(abs(strength) * t.effect)
