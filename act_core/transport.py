"""Estimators: from the values of a channel to its affine map.

A transport moves the activations of a *source* onto those of a *target*, channel by channel, with
``T(a) = omega * a + beta``. It is the best affine approximation of the one-dimensional optimal transport
between the two sets of values, which couples them in sorted order (Rodriguez et al., "Controlling Language
and Diffusion Models by Transporting Activations", ICLR 2025, section 3.2, definition 3.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, SupportsFloat, get_args

import torch
from torch import Tensor

from .displacement import displace
from .errors import FitError, MapError
from .estimators import slopes
from .gates import Gate
from .projections import Projection, fit_projection
from .settings import ChannelEstimator, as_strength, check_choice

# Inverting a slope below this would amplify rounding noise more than a thousandfold.
MIN_INVERTIBLE_SLOPE = 1e-3
# A channel with a smaller standard deviation counts as constant.
MIN_DEVIATION = 1e-6


class Statistics(NamedTuple):
    """Means and population standard deviations of the pooled values, float32, with the shape of the slopes."""

    source_mean: Tensor
    source_std: Tensor
    target_mean: Tensor
    target_std: Tensor


@dataclass(frozen=True, eq=False)
class Transport:
    """The affine maps of all channels of one site, at all noise levels or one for each of several (*bins*).

    Attributes:
        omega: slopes, float32 ``[channels]`` or ``[bins, channels]``.
        beta: offsets, with the same shape, in units of the activation.
        low, high: support interval, with the same shape; None where support is unbounded.
        statistics: of the values it was fitted on; None if the file does not include them.
        fallbacks: how many channels had no usable slope and only shift their mean; of several bins, the largest number.
        effect: median over channels of the shift of the mean, in standard deviations of the source; None if not known.
        gate: how far the map acts on each prompt; None if it acts on all alike.
        projection: how far the map acts on each activation, by how much of the source it shows; None if it acts on all
            alike. Slopes are 1 then.
    """

    omega: Tensor
    beta: Tensor
    low: Tensor | None = None
    high: Tensor | None = None
    statistics: Statistics | None = None
    fallbacks: int = 0
    effect: float | None = None
    gate: Gate | None = None
    projection: Projection | None = None

    def __repr__(self) -> str:
        bins = [f"{self.bins} bins"] if self.bins else []
        return ", ".join([f"<Transport: {self.channels} channels", *bins, *self.conditions]) + ">"

    @property
    def channels(self) -> int:
        return self.omega.shape[-1]

    @property
    def bins(self) -> int:
        """The number of noise levels that have coefficients of their own; 0 if one set acts at all of them."""
        return self.omega.shape[0] if self.omega.ndim == 2 else 0

    @property
    def bounded(self) -> bool:
        """Whether the map acts only inside its support interval."""
        return self.low is not None

    @property
    def is_affine(self) -> bool:
        """Whether the map acts on all values alike, so that two of them compose into one."""
        return not self.conditions

    @property
    def conditions(self) -> tuple[str, ...]:
        """What the move depends on beside slopes and offsets, in words; nothing for an affine map."""
        found = {
            "observed support": self.bounded,
            "gated support": self.gate is not None,
            "a projection": self.projection is not None,
        }
        return tuple(words for words, present in found.items() if present)

    def apply(self, a: Tensor, strength: SupportsFloat = 1.0) -> Tensor:
        """``(1 - strength) * a + strength * T(a)`` for activations ``[..., channels]`` of any floating dtype.

        With a gate, each row ``[channels]`` is taken as the mean of a prompt: it moves by its openness times as far.

        Raises:
            MapError: the strength is not a finite number, or there are several bins.
        """
        number = as_strength(strength)
        if self.bins:
            raise MapError("This transport has coefficients for several noise levels; choose one of them with bin().")
        if number == 0:
            return a
        gain, offset = (self.omega - 1) * number, self.beta * number
        if self.gate is not None:
            opening = self.gate.openness(a).unsqueeze(-1)
            gain, offset = gain.to(opening) * opening, offset.to(opening) * opening
        if self.projection is not None:
            offset = offset.to(a.device) * self.projection.amount(a).unsqueeze(-1)
        return displace(a, gain, offset, self.low, self.high)

    def bin(self, number: int) -> Transport:
        """The transport of one bin; a transport without bins returns itself."""
        if not self.bins:
            return self
        statistics = self.statistics and Statistics(*(values[number] for values in self.statistics))
        return replace(
            self,
            omega=self.omega[number],
            beta=self.beta[number],
            low=None if self.low is None else self.low[number],
            high=None if self.high is None else self.high[number],
            statistics=statistics,
            effect=self.effect if statistics is None else _effect(statistics),
        )

    def inverse(self) -> Transport:
        """``(a - beta) / omega``; a channel whose slope is too small to invert only shifts its mean back.

        Raises:
            MapError: a slope is too small, and there are no statistics from which to derive the mean shift; or there is
                a gate or a projection, which does not know the activations that the inverse would start from.
        """
        if self.gate is not None or self.projection is not None:
            raise MapError(
                "A gated map or a projection acts only where its source is, so it cannot be inverted; fit the opposite "
                "map instead, with source and target prompts exchanged."
            )
        omega, beta = self.omega.double(), self.beta.double()
        flat = omega.abs() < MIN_INVERTIBLE_SLOPE
        inverse_omega = torch.where(flat, 1.0, 1.0 / omega.masked_fill(flat, 1.0))
        inverse_beta = -beta * inverse_omega
        if bool(flat.any()):
            if self.statistics is None:
                raise MapError(
                    "This map has channels with a slope near zero and no statistics, so it cannot be inverted; "
                    "fit the opposite map instead, with source and target prompts exchanged."
                )
            mean = self.statistics.source_mean.double()
            inverse_beta = torch.where(flat, mean - (omega * mean + beta), inverse_beta)
        low = high = None
        if self.low is not None and self.high is not None:
            ends = [omega * edge.double() + beta for edge in (self.low, self.high)]
            low, high = _keep(torch.minimum(*ends)), _keep(torch.maximum(*ends))
        swapped = self.statistics and Statistics(*self.statistics[2:], *self.statistics[:2])
        return Transport(
            _keep(inverse_omega), _keep(inverse_beta), low, high, swapped, _count(flat), swapped and _effect(swapped)
        )

    def then(self, other: Transport) -> Transport:
        """The one affine map that acts like this transport followed by `other`; both must be affine."""
        if not (self.is_affine and other.is_affine):
            raise MapError(
                "Only maps with unbounded support that are not projections can be composed into one; apply the two "
                "maps one after the other."
            )
        omega, beta = other.omega.double(), other.beta.double()
        return Transport(
            _keep(omega * self.omega.double()),
            _keep(omega * self.beta.double() + beta),
            fallbacks=max(self.fallbacks, other.fallbacks),
        )

    def scaled(self, strength: SupportsFloat) -> Transport:
        """The transport that at strength 1 does what this one does at `strength`.

        Raises:
            MapError: the strength is not a finite number.
        """
        number = as_strength(strength)
        return replace(
            self,
            omega=_keep(1 + number * (self.omega.double() - 1)),
            beta=_keep(number * self.beta.double()),
            statistics=None,
            effect=None if self.effect is None else abs(number) * self.effect,
        )


def fit_transport(
    source: Tensor,
    target: Tensor,
    estimator: ChannelEstimator = "linear",
    *,
    activation_dtype: torch.dtype | None = None,
    interval: tuple[Tensor, Tensor] | None = None,
) -> Transport:
    """Fit one transport per channel, in float64, on the device of the values.

    With n source and m target values the two empirical quantile functions are step functions; they are coupled
    exactly, with the widths of the common steps as weights (for n = m: sorted value to sorted value).

    Args:
        source: pooled values ``[n, channels]``, one row per prompt.
        target: pooled values ``[m, channels]``.
        estimator: ``linear`` (least squares on the coupling, the paper's Linear-AcT), ``mean`` (shift of the
            mean, Mean-AcT), ``gaussian`` (mean and standard deviation, the closed form between Gaussians), or
            ``project`` (shift of the mean as far as it is present, see `act_core.projections`).
        activation_dtype: dtype of the activations before pooling, which determines the standard deviation below which a
            channel counts as constant. Default: the dtype of `source`.
        interval: lower and upper end of the support, ``[channels]`` each; None leaves it unbounded.

    Raises:
        FitError: fewer than two values on a side, shapes that do not match, or values that are not finite numbers.
    """
    check_choice("estimator", estimator, get_args(ChannelEstimator), FitError)
    if source.ndim != 2 or target.ndim != 2 or source.shape[1] != target.shape[1]:
        shapes = f"Source {list(source.shape)} and target {list(target.shape)}"
        raise FitError(f"{shapes} must both be [values, channels] with the same channels.")
    if len(source) < 2 or len(target) < 2:
        raise FitError("A transport needs at least two source and two target values; add prompts.")
    dtype = activation_dtype or source.dtype
    if not dtype.is_floating_point:
        raise FitError(f"The activations are of {dtype}; give floating-point values.")
    eps = torch.finfo(dtype).eps
    if source.device.type == "mps":  # which has no float64
        source, target = source.cpu(), target.cpu()
    a, b = source.detach().double(), target.detach().double()
    if not (bool(a.isfinite().all()) and bool(b.isfinite().all())):
        raise FitError("Some activations are NaN or infinite; run the model in a wider dtype, such as bfloat16.")
    mean_a, mean_b = a.mean(0), b.mean(0)
    a, b = a - mean_a, b - mean_b
    std_a, std_b = (v.square().mean(0).sqrt() for v in (a, b))

    flat = std_a <= (4 * eps * mean_a.abs()).clamp(min=MIN_DEVIATION)
    omega = slopes(a, b, std_a, std_b, flat, estimator)
    beta = mean_b - omega * mean_a

    low, high = (None, None) if interval is None else (_keep(edge) for edge in interval)
    statistics = Statistics(*(_keep(s) for s in (mean_a, std_a, mean_b, std_b)))
    fallbacks = 0 if estimator in ("mean", "project") else int(flat.sum())
    projection = fit_projection(mean_a, std_a, mean_b, eps) if estimator == "project" else None
    transport = Transport(
        _keep(omega), _keep(beta), low, high, statistics, fallbacks, _effect(statistics), projection=projection
    )
    if not (bool(transport.omega.isfinite().all()) and bool(transport.beta.isfinite().all())):
        raise FitError("Some activations are too large for the float32 of a map; scale the model's input down.")
    return transport


def _effect(statistics: Statistics) -> float:
    mean_a, std_a, mean_b, _ = statistics
    moved = std_a > MIN_DEVIATION
    return float(((mean_b - mean_a).abs() / std_a)[moved].median()) if bool(moved.any()) else 0.0


def stacked(transports: Sequence[Transport]) -> Transport:
    """One transport with a bin for each of several at one site, which have the same support.

    Example:
        >>> shifts = [Transport(torch.ones(2), torch.full((2,), beta)) for beta in (1.0, 2.0)]
        >>> stacked(shifts)
        <Transport: 2 channels, 2 bins>
    """
    first = transports[0]

    def joined(name: str) -> Tensor | None:
        return None if getattr(first, name) is None else torch.stack([getattr(one, name) for one in transports])

    known = [one.statistics for one in transports if one.statistics is not None]
    complete = len(known) == len(transports)
    statistics = Statistics(*(torch.stack(values) for values in zip(*known, strict=True))) if complete else None
    return Transport(
        torch.stack([one.omega for one in transports]),
        torch.stack([one.beta for one in transports]),
        joined("low"),
        joined("high"),
        statistics,
        max(one.fallbacks for one in transports),
        statistics and _effect(statistics),
    )


def _count(flat: Tensor) -> int:
    """How many channels are marked, in the bin with the most."""
    return int(flat.sum(-1).max())


def _keep(values: Tensor) -> Tensor:
    """A float32 copy on the CPU that outlives the caller's inference mode."""
    with torch.inference_mode(False):
        return values.detach().to("cpu", torch.float32, copy=True)
