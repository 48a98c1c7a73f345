"""The estimators, and what a transport does to activations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from act_core import MapError
from act_core.settings import Estimator
from act_core.transport import ESTIMATORS, Transport, fit_transport

HALVES = (torch.float16, torch.bfloat16)
DTYPES = (torch.float32, *HALVES)

# Slopes and offsets are computed in float64 and kept in float32, whose rounding is 6e-8 relative.
KEPT = 1e-6


def values(rows: int, channels: int = 3, seed: int = 0, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    return torch.randn(rows, channels, generator=torch.Generator().manual_seed(seed)) * scale + shift


@st.composite
def samples(draw: st.DrawFn, least: int = 2, most: int = 9) -> Tensor:
    """Values of one side: random, or with many ties; 4 channels."""
    rows = draw(st.integers(least, most))
    drawn = values(
        rows,
        4,
        draw(st.integers(0, 10**6)),
        draw(st.sampled_from([0.01, 1.0, 50.0])),
        draw(st.sampled_from([-3.0, 0.0, 20.0])),
    )
    return drawn.round(decimals=1) if draw(st.booleans()) else drawn


def reference(a: np.ndarray, b: np.ndarray, estimator: Estimator) -> tuple[np.ndarray, np.ndarray]:
    """Slopes and offsets for equally many values, written down from the paper, channel by channel."""
    omega, beta = np.ones(a.shape[1]), np.zeros(a.shape[1])
    for channel in range(a.shape[1]):
        x, y = np.sort(a[:, channel]), np.sort(b[:, channel])
        if estimator == "linear":
            omega[channel] = ((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum()
        elif estimator == "gaussian":
            omega[channel] = y.std() / x.std()
        beta[channel] = y.mean() - omega[channel] * x.mean()
    return omega, beta


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_estimators_follow_their_formulas(estimator: Estimator) -> None:
    a, b = values(11, seed=1), values(11, seed=2, scale=2, shift=1)
    omega, beta = reference(a.double().numpy(), b.double().numpy(), estimator)
    t = fit_transport(a, b, estimator)
    assert t.omega.numpy() == pytest.approx(omega, rel=KEPT)
    assert t.beta.numpy() == pytest.approx(beta, rel=KEPT, abs=KEPT)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@given(a=samples())
def test_a_source_that_is_its_own_target_gives_the_identity(estimator: Estimator, a: Tensor) -> None:
    t = fit_transport(a, a, estimator)
    # The products of the coupling are summed in another order than the squares of the deviation.
    assert torch.allclose(t.omega, torch.ones(4), rtol=KEPT)
    assert torch.allclose(t.beta, torch.zeros(4), atol=KEPT * float(1 + a.abs().max()))


@pytest.mark.parametrize("estimator", ["linear", "gaussian"])
@given(seed=st.integers(0, 10**6), slope=st.floats(0.01, 100), offset=st.floats(-100, 100), rows=st.integers(2, 9))
def test_an_exact_affine_relation_is_recovered(
    estimator: Estimator, seed: int, slope: float, offset: float, rows: int
) -> None:
    a = values(rows, seed=seed).double()
    t = fit_transport(a, a * slope + offset, estimator)
    # Two values that nearly coincide, with an offset 1e4 times their distance, lose digits of float64.
    assert torch.allclose(t.omega, torch.full((3,), slope), rtol=1e-5)
    assert torch.allclose(t.beta, torch.full((3,), offset), rtol=1e-5, atol=1e-5 * slope)


@given(a=samples(), b=samples())
def test_linear_slope_lies_between_zero_and_the_ratio_of_deviations(a: Tensor, b: Tensor) -> None:
    t = fit_transport(a, b, "linear")
    steepest = b.double().std(0, correction=0) / a.double().std(0, correction=0)
    sloped = a.double().std(0, correction=0) > 1e-3  # far from where a channel counts as constant
    assert bool((t.omega >= 0).all())
    assert bool((t.omega <= steepest * (1 + KEPT))[sloped].all())


@pytest.mark.parametrize("estimator", ESTIMATORS)
@given(a=samples(), b=samples(), seed=st.integers(0, 99))
def test_order_of_the_prompts_does_not_matter(estimator: Estimator, a: Tensor, b: Tensor, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    t = fit_transport(a, b, estimator)
    x, y = (v[torch.randperm(len(v), generator=generator)] for v in (a, b))
    u = fit_transport(x, y, estimator)
    # Means and deviations are summed in another order.
    assert torch.allclose(t.omega, u.omega, rtol=1e-5, atol=KEPT)
    assert torch.allclose(t.beta, u.beta, rtol=1e-5, atol=KEPT * float(1 + a.abs().max() + b.abs().max()))


@pytest.mark.parametrize("estimator", ESTIMATORS)
@given(a=samples(most=7), b=samples(most=7))
def test_unequal_numbers_couple_as_if_each_side_were_repeated(estimator: Estimator, a: Tensor, b: Tensor) -> None:
    common = math.lcm(len(a), len(b))
    x, y = (v.double().repeat_interleave(common // len(v), 0) for v in (a, b))
    t, u = fit_transport(a, b, estimator), fit_transport(x, y, estimator, activation_dtype=torch.float32)
    scale = float(1 + a.abs().max() + b.abs().max())
    # The same sums in another order, of values up to `scale`, over a deviation of 1e-2 at least (or an exact tie).
    assert torch.allclose(t.omega, u.omega, rtol=1e-5, atol=KEPT)
    assert torch.allclose(t.beta, u.beta, rtol=1e-5, atol=KEPT * scale)


def test_unequal_numbers_are_coupled_by_quantiles() -> None:
    # Worked by hand: of the source each value has weight 1/2, of the target 1/3; the middle target is shared.
    a, b = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [3.0], [9.0]])
    below, above = (2 / 3 * 0 + 1 / 3 * 3), (1 / 3 * 3 + 2 / 3 * 9)
    t = fit_transport(a, b)
    assert float(t.omega) == pytest.approx(above - below)
    assert float(t.beta) == pytest.approx(below)


@pytest.mark.parametrize("estimator", ["linear", "gaussian"])
def test_constant_channels_shift_their_mean_and_are_counted(estimator: Estimator) -> None:
    a, b = values(6, seed=1, shift=5), values(6, seed=2)
    a[:, 1] = 5.0
    a[:, 2] = 5.0 + torch.tensor([0, 1, 0, 1, 0, 1]) * 4.8e-7  # one rounding step of float32 at 5
    t = fit_transport(a, b, estimator)
    assert t.fallbacks == 2
    assert t.omega[1:].tolist() == [1, 1]
    assert t.omega[0] != 1
    assert t.beta[1:].tolist() == pytest.approx((b - a).double().mean(0)[1:].tolist(), rel=KEPT)


def test_what_counts_as_constant_follows_the_activations_own_precision() -> None:
    a, b = values(6, 1, seed=1, scale=0.05, shift=8), values(6, 1, seed=2)
    assert fit_transport(a, b).fallbacks == 0
    assert fit_transport(a, b, activation_dtype=torch.bfloat16).fallbacks == 1
    assert fit_transport(a.bfloat16(), b.bfloat16()).fallbacks == 1


def test_the_mean_estimator_has_no_slope_to_lose() -> None:
    assert fit_transport(torch.ones(4, 2), values(4, 2), "mean").fallbacks == 0


@pytest.mark.parametrize("estimator", ["linear", "gaussian"])
@given(a=samples(), b=samples(), shift=st.floats(-10, 10), scale=st.floats(0.1, 10))
def test_shift_and_scale_of_either_side_carry_through(
    estimator: Estimator, a: Tensor, b: Tensor, shift: float, scale: float
) -> None:
    a, b = a.double(), b.double()
    t = fit_transport(a, b, estimator)
    sloped = a.std(0) > 1e-3
    u = fit_transport(a * scale + shift, b, estimator)
    v = fit_transport(a, b * scale + shift, estimator)
    # Float64 arithmetic kept in float32, on offsets up to 10 times 70; a tie makes the slope exactly zero.
    assert torch.allclose(u.omega[sloped], t.omega[sloped] / scale, rtol=1e-4, atol=1e-5)
    assert torch.allclose(u.beta[sloped], (t.beta - t.omega * shift / scale)[sloped], rtol=1e-4, atol=1e-3)
    assert torch.allclose(v.omega[sloped], (t.omega * scale)[sloped], rtol=1e-4, atol=1e-5)
    assert torch.allclose(v.beta[sloped], (t.beta * scale + shift)[sloped], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_of_any_dtype_are_fitted_in_float64(dtype: torch.dtype) -> None:
    a, b = values(8, seed=1).to(dtype), values(8, seed=2, scale=2).to(dtype)
    omega, beta = reference(a.double().numpy(), b.double().numpy(), "linear")
    t = fit_transport(a, b)
    assert t.omega.dtype == t.beta.dtype == torch.float32
    assert t.omega.numpy() == pytest.approx(omega, rel=KEPT)
    assert t.beta.numpy() == pytest.approx(beta, rel=KEPT, abs=KEPT)


def test_statistics_are_those_of_the_raw_values() -> None:
    a, b = values(5, seed=1), values(7, seed=2)
    statistics = fit_transport(a, b).statistics
    assert statistics is not None
    expected = [f(v.double().numpy(), axis=0) for v in (a, b) for f in (np.mean, np.std)]
    for kept, wanted in zip(statistics, expected, strict=True):
        assert kept.numpy() == pytest.approx(wanted, rel=KEPT, abs=KEPT)


def test_effect_is_the_median_shift_in_deviations_of_the_source() -> None:
    a = values(50, 3)
    a = (a - a.mean(0)) / a.std(0, correction=0)
    t = fit_transport(a, a + torch.tensor([0.5, 7.0, -2.0]), "mean")
    assert t.effect == pytest.approx(2, rel=1e-5)  # the standardised float32 values have means of some 1e-8


def test_effect_is_finite_whatever_the_deviation() -> None:
    t = fit_transport(torch.tensor([[0.0], [1e-42]]), torch.tensor([[1.0], [2.0]]))
    assert t.effect is not None
    assert math.isfinite(t.effect)


# --- applying


@pytest.mark.parametrize("dtype", DTYPES)
def test_strength_zero_returns_the_very_input(dtype: torch.dtype) -> None:
    a = values(5).to(dtype)
    assert fit_transport(values(4), values(4, seed=1)).apply(a, 0) is a


def test_strength_one_takes_the_source_onto_the_target() -> None:
    a = values(6)
    b = a * 3 - 2
    assert torch.allclose(fit_transport(a, b).apply(a), b, atol=1e-5)  # float32 activations of size 10


def test_strength_is_linear_and_may_be_negative_or_above_one() -> None:
    a, t = values(6, seed=3), fit_transport(values(5), values(5, seed=1, scale=2, shift=1))
    moved = t.apply(a) - a
    for strength in (-1.5, -0.3, 0.25, 1.0, 2.0):
        # Three float32 operations on activations of size 10.
        assert torch.allclose(t.apply(a, strength), a + strength * moved, atol=1e-5)


def test_apply_takes_activations_of_any_shape_and_leaves_them_unchanged() -> None:
    t, a = fit_transport(values(5), values(5, seed=1)), values(24).view(2, 3, 4, 3)
    before = a.clone()
    rows = torch.stack([t.apply(row) for row in a.view(-1, 3)])
    assert torch.equal(t.apply(a).view(-1, 3), rows)
    assert torch.equal(a, before)


def test_only_values_inside_the_support_are_moved() -> None:
    t = fit_transport(values(5), values(5, seed=1, shift=9), interval=(torch.full((3,), -0.5), torch.full((3,), 0.5)))
    a = torch.tensor([[-0.51, -0.5, 0.0], [0.5, 0.51, 30.0]])
    assert (t.apply(a) != a).tolist() == [[False, True, True], [True, False, False]]
    inside = Transport(t.omega, t.beta).apply(a)
    assert torch.equal(t.apply(a), torch.where((a >= -0.5) & (a <= 0.5), inside, a))


@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_activations_are_not_scaled_by_a_rounded_slope(dtype: torch.dtype) -> None:
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


def test_what_was_fitted_in_inference_mode_is_usable_in_training() -> None:
    with torch.inference_mode():
        t = fit_transport(values(5), values(5, seed=1), interval=(torch.full((3,), -9.0), torch.full((3,), 9.0)))
    a = values(4).requires_grad_()
    t.apply(a).sum().backward()
    assert a.grad is not None
    assert torch.allclose(a.grad, t.omega.expand(4, 3), rtol=1e-6)  # 1 + (omega - 1)


# --- inverting, composing, scaling


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_inverse_undoes_the_transport(estimator: Estimator) -> None:
    t, a = fit_transport(values(6), values(6, seed=1, scale=2, shift=3), estimator), values(9, seed=2)
    assert torch.allclose(t.inverse().apply(t.apply(a)), a, atol=1e-5)  # float32 activations of size 10
    assert t.inverse().fallbacks == 0


def test_inverse_of_a_flat_channel_takes_its_mean_shift_back() -> None:
    a, b = values(6, 2), values(6, 2, seed=1, shift=3)
    b[:, 1] = 4.0
    inverse = fit_transport(a, b).inverse()
    assert inverse.fallbacks == 1
    assert inverse.omega[1] == 1
    assert float(inverse.beta[1]) == pytest.approx(float(a[:, 1].mean()) - 4, rel=1e-5)  # float32 statistics


def test_inverse_of_a_flat_channel_without_statistics_is_refused() -> None:
    with pytest.raises(MapError, match="cannot be inverted"):
        Transport(torch.zeros(2), torch.ones(2)).inverse()


def test_inverse_acts_where_the_transport_has_taken_its_support() -> None:
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


def test_then_is_one_transport_after_the_other() -> None:
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


# --- what cannot be fitted

BAD: dict[str, tuple[Tensor, Tensor, str]] = {
    "one source value": (torch.ones(1, 3), values(4), "at least two"),
    "one target value": (values(4), torch.ones(1, 3), "at least two"),
    "no value": (torch.ones(0, 3), values(4), "at least two"),
    "NaN": (values(4).index_fill(0, torch.tensor(1), math.nan), values(4), "NaN"),
    "infinity": (values(4), values(4).index_fill(0, torch.tensor(1), math.inf), "infinite"),
    "other channels": (values(4), values(4, 2), "same channels"),
    "three dimensions": (values(4).view(1, 4, 3), values(4), r"\[values, channels\]"),
    "one dimension": (values(4)[0], values(4)[0], r"\[values, channels\]"),
    "too large for float32": (values(4).double(), values(4).double() * 1e300, "too large"),
}


@pytest.mark.parametrize("case", BAD)
def test_values_that_cannot_be_fitted_are_refused(case: str) -> None:
    source, target, reason = BAD[case]
    with pytest.raises(MapError, match=reason):
        fit_transport(source, target)


def test_an_unknown_estimator_is_refused_with_the_choices() -> None:
    with pytest.raises(MapError, match="linear, mean, gaussian"):
        fit_transport(values(4), values(4), "magic")  # pyright: ignore[reportArgumentType]
