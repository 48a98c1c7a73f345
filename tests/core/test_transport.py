"""The estimators, and the transports that they fit."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from act_core import MapError
from act_core.settings import ChannelEstimator
from act_core.transport import fit_transport

ESTIMATORS = get_args(ChannelEstimator)
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


def reference(a: np.ndarray, b: np.ndarray, estimator: ChannelEstimator) -> tuple[np.ndarray, np.ndarray]:
    """Slopes and offsets for equal numbers of values, as in the paper, channel by channel."""
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
def test_estimators_follow_their_formulas(estimator: ChannelEstimator) -> None:
    a, b = values(11, seed=1), values(11, seed=2, scale=2, shift=1)
    omega, beta = reference(a.double().numpy(), b.double().numpy(), estimator)
    t = fit_transport(a, b, estimator)
    assert t.omega.numpy() == pytest.approx(omega, rel=KEPT)
    assert t.beta.numpy() == pytest.approx(beta, rel=KEPT, abs=KEPT)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@given(a=samples())
def test_equal_sides_give_the_identity(estimator: ChannelEstimator, a: Tensor) -> None:
    t = fit_transport(a, a, estimator)
    # The products of the coupling are summed in another order than the squares of the deviation.
    assert torch.allclose(t.omega, torch.ones(4), rtol=KEPT)
    assert torch.allclose(t.beta, torch.zeros(4), atol=KEPT * float(1 + a.abs().max()))


@pytest.mark.parametrize("estimator", ["linear", "gaussian"])
@given(seed=st.integers(0, 10**6), slope=st.floats(0.01, 100), offset=st.floats(-100, 100), rows=st.integers(2, 9))
def test_an_exact_affine_relation_is_recovered(
    estimator: ChannelEstimator, seed: int, slope: float, offset: float, rows: int
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
def test_order_of_values_does_not_matter(estimator: ChannelEstimator, a: Tensor, b: Tensor, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    t = fit_transport(a, b, estimator)
    x, y = (v[torch.randperm(len(v), generator=generator)] for v in (a, b))
    u = fit_transport(x, y, estimator)
    # Means and deviations are summed in another order.
    assert torch.allclose(t.omega, u.omega, rtol=1e-5, atol=KEPT)
    assert torch.allclose(t.beta, u.beta, rtol=1e-5, atol=KEPT * float(1 + a.abs().max() + b.abs().max()))


@pytest.mark.parametrize("estimator", ESTIMATORS)
@given(a=samples(most=7), b=samples(most=7))
def test_unequal_numbers_couple_as_if_each_side_were_repeated(
    estimator: ChannelEstimator, a: Tensor, b: Tensor
) -> None:
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
def test_constant_channels_shift_their_mean_and_are_counted(estimator: ChannelEstimator) -> None:
    a, b = values(6, seed=1, shift=5), values(6, seed=2)
    a[:, 1] = 5.0
    a[:, 2] = 5.0 + torch.tensor([0, 1, 0, 1, 0, 1]) * 4.8e-7  # one rounding step of float32 at 5
    t = fit_transport(a, b, estimator)
    assert t.fallbacks == 2
    assert t.omega[1:].tolist() == [1, 1]
    assert t.omega[0] != 1
    assert t.beta[1:].tolist() == pytest.approx((b - a).double().mean(0)[1:].tolist(), rel=KEPT)


def test_constant_threshold_follows_activation_dtype() -> None:
    a, b = values(6, 1, seed=1, scale=0.05, shift=8), values(6, 1, seed=2)
    assert fit_transport(a, b).fallbacks == 0
    assert fit_transport(a, b, activation_dtype=torch.bfloat16).fallbacks == 1
    assert fit_transport(a.bfloat16(), b.bfloat16()).fallbacks == 1


def test_mean_estimator_has_no_fallbacks() -> None:
    assert fit_transport(torch.ones(4, 2), values(4, 2), "mean").fallbacks == 0


@pytest.mark.parametrize("estimator", ["linear", "gaussian"])
@given(a=samples(), b=samples(), shift=st.floats(-10, 10), scale=st.floats(0.1, 10))
def test_shift_and_scale_of_either_side_change_the_map_accordingly(
    estimator: ChannelEstimator, a: Tensor, b: Tensor, shift: float, scale: float
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
    "whole numbers": (values(4).long(), values(4).long(), r"are of torch\.int64; give floating-point"),
    "too large for float32": (values(4).double(), values(4).double() * 1e300, "too large"),
}


@pytest.mark.parametrize("case", BAD)
def test_fit_transport_refuses_bad_values(case: str) -> None:
    source, target, reason = BAD[case]
    with pytest.raises(MapError, match=reason):
        fit_transport(source, target)


def test_fit_transport_lists_choices_for_an_unknown_estimator() -> None:
    with pytest.raises(MapError, match="linear, mean, gaussian"):
        fit_transport(values(4), values(4), "magic")  # pyright: ignore[reportArgumentType]
