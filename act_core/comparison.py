"""How far maps move activations at their sites, and how two maps differ.

A map is read at the mean of its source: the displacement of a channel is ``T(mean) - mean``, in standard deviations of
the source. Files seldom keep these statistics. Without them, slopes and offsets stand in for the displacement, as the
two parts of ``T(a) - a = (omega - 1) * a + beta``. For an activation with mean 0 and standard deviation 1 in each
channel, the expected product of two such moves is ``(omega - 1) * (omega' - 1) + beta * beta'``, so lengths and angles
of the pairs ``(omega - 1, beta)`` are those of the moves. Gates, projections and support are left out: a displacement
is that of a source which the map moves fully.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .errors import MapError
from .sites import Site
from .text import shorten
from .transport import MIN_DEVIATION, Statistics, Transport

if TYPE_CHECKING:
    from .maps import ActMap

UNTITLED = "untitled"
DEVIATIONS = "in standard deviations of the source"
_MOVES = "of (slope - 1, offset), because a map without statistics was compared"
_TINY = torch.finfo(torch.float64).tiny


@dataclass(frozen=True)
class SiteComparison:
    """The displacements of two maps at a site that both have.

    Attributes:
        site: where.
        cosine: of the angle between them: 1 for the same direction, -1 for opposite ones, NaN if a map moves nothing.
        first, second: their sizes, the root mean square over the channels.
        unit: of the sizes.
    """

    site: Site
    cosine: float
    first: float
    second: float
    unit: str

    @property
    def angle(self) -> float:
        """In degrees."""
        return math.degrees(math.acos(max(-1.0, min(1.0, self.cosine)))) if self.cosine == self.cosine else math.nan

    @property
    def ratio(self) -> float:
        """The size of the second displacement divided by that of the first: infinite if that is 0, NaN if both are."""
        if self.first:
            return self.second / self.first
        return math.inf if self.second else math.nan


@dataclass(frozen=True)
class MapComparison:
    """What `compare` finds.

    Attributes:
        names: of the two maps.
        shared: sites that both have, in execution order of the first.
        only_first, only_second: keys of the sites that only one has.
        differing: keys of sites that the maps describe differently, as maps of different models do.
    """

    names: tuple[str, str]
    shared: tuple[SiteComparison, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    differing: tuple[str, ...]

    def __str__(self) -> str:
        """A report in several lines."""
        lines = [f"A: {self.names[0]}", f"B: {self.names[1]}", f"{len(self.shared)} sites in both"]
        parts = {"only in A": self.only_first, "only in B": self.only_second, "described differently": self.differing}
        lines[-1] += "".join(f", {len(keys)} {where} (first: {keys[0]})" for where, keys in parts.items() if keys) + "."
        if not self.shared:
            return "\n".join(lines)
        known = [(one.cosine, one.ratio) for one in self.shared if one.cosine == one.cosine]
        if known:
            cosine, ratio = (float(torch.tensor(values).median()) for values in zip(*known, strict=True))
            lines.append(f"Typical site: cosine {cosine:.2f}, size of B {ratio:.2f} times that of A (medians).")
        units = ", and ".join(dict.fromkeys(one.unit for one in self.shared))
        lines += [f"Sizes: root mean square over the channels, {units}.", ""]
        lines.append(f"{'cosine':>7}  {'angle':>5}  {'size A':>8}  {'size B':>8}  {'B / A':>6}  site")
        for one in self.shared:
            numbers = f"{one.cosine:7.3f}  {one.angle:4.0f}°  {one.first:8.3f}  {one.second:8.3f}  {one.ratio:6.2f}"
            lines.append(f"{numbers}  {one.site.key}")
        return "\n".join(lines)


def compare(first: ActMap, second: ActMap) -> MapComparison:
    """Compare two maps of one model: which sites they share, and how far and in which direction they move them.

    If a map lacks statistics at a site, it is read at the source mean of the other. If both lack them, the sizes and
    angles are those of slopes and offsets, see `act_core.comparison`. Noise levels of either map count equally.

    Example:
        >>> site = Site("toy", "layer", None, "tokens", 2)
        >>> one, other = (ActMap({site: Transport(torch.ones(2), torch.tensor(b))}) for b in ([1.0, 0.0], [2.0, 2.0]))
        >>> (found,) = compare(one, other).shared
        >>> round(found.angle), found.ratio
        (45, 2.8284271247461903)
    """
    theirs = {site.key: site for site in second.transports}
    mine = {site.key for site in first.transports}
    both = [(site, theirs[site.key]) for site in first.transports if site.key in theirs]
    return MapComparison(
        (shorten(first.card.title, 60) or UNTITLED, shorten(second.card.title, 60) or UNTITLED),
        tuple(_compared(site, first, second) for site, other in both if site == other),
        tuple(site.key for site in first.transports if site.key not in theirs),
        tuple(key for key in theirs if key not in mine),
        tuple(site.key for site, other in both if site != other),
    )


def _compared(site: Site, first: ActMap, second: ActMap) -> SiteComparison:
    levels = sorted({*first.levels, *second.levels}, reverse=True)
    pairs = [_at(site, level, first, second) for level in levels] or [(first.transports[site], second.transports[site])]
    known = all(one.statistics or other.statistics for one, other in pairs)
    moves = [_in_deviations(*pair) if known else (_pair_of(pair[0]), _pair_of(pair[1])) for pair in pairs]
    x, y = torch.cat([move for move, _ in moves]), torch.cat([move for _, move in moves])
    first_length, second_length = (math.sqrt(float(v @ v)) for v in (x, y))
    lengths = first_length * second_length
    root = math.sqrt(len(pairs) * site.channels)
    return SiteComparison(
        site,
        float(x @ y) / lengths if lengths else math.nan,
        first_length / root,
        second_length / root,
        DEVIATIONS if known else _MOVES,
    )


def _at(site: Site, level: float, *maps: ActMap) -> tuple[Transport, Transport]:
    first, second = (act_map.transports[site].bin(act_map.bin_at(level) or 0) for act_map in maps)
    return first, second


def _in_deviations(first: Transport, second: Transport) -> tuple[Tensor, Tensor]:
    """Both displacements ``[channels]``, in one unit: the root mean square of the known deviations."""
    known = [one.statistics for one in (first, second) if one.statistics is not None]
    deviation = torch.stack([statistics.source_std.double().square() for statistics in known]).mean(0).sqrt()
    x, y = (_shift(one, one.statistics or known[0]) for one in (first, second))
    return _divided(x, deviation), _divided(y, deviation)


def _shift(transport: Transport, statistics: Statistics) -> Tensor:
    """``T(mean) - mean``, with the shape of the slopes."""
    return (transport.omega.double() - 1) * statistics.source_mean.double() + transport.beta.double()


def _divided(shift: Tensor, deviation: Tensor) -> Tensor:
    """A shift in standard deviations; 0 where the source is constant."""
    return torch.where(deviation > MIN_DEVIATION, shift / deviation.clamp(min=MIN_DEVIATION), 0)


def _pair_of(transport: Transport) -> Tensor:
    return torch.cat([transport.omega.double().flatten() - 1, transport.beta.double().flatten()])


def squared_displacements(act_map: ActMap) -> tuple[dict[Site, Tensor], str]:
    """How far a map moves the values of each channel, squared, in a measure that can be added over channels and sites.

    Args:
        act_map: the map.

    Returns:
        By site, float64 ``[channels]``, the mean over its bins; and the unit of their roots, in words. If all sites
        have statistics, these are those of `squared_displacement`. Else, if all have a known effect
        (the median displacement of their channels in standard deviations, which files keep), the square of the effect
        is the mean of the site, and is shared out over its channels in proportion to ``(omega - 1)^2 + beta^2``. Else
        it is that sum itself.

    Example:
        >>> site = Site("toy", "layer", None, "tokens", 2)
        >>> act_map = ActMap({site: Transport(torch.ones(2), torch.tensor([3.0, 4.0]), effect=1.0)})
        >>> squared_displacements(act_map)[0][site]
        tensor([0.7200, 1.2800], dtype=torch.float64)
    """
    moves = {site: _by_channel(_squared_move(transport)) for site, transport in act_map.transports.items()}
    transports = act_map.transports.values()
    if all(transport.statistics is not None for transport in transports):
        return {site: squared_displacement(transport) for site, transport in act_map.transports.items()}, DEVIATIONS
    if any(transport.effect is None for transport in transports):
        return moves, "as (slope - 1, offset)"
    squares = {site: (transport.effect or 0.0) ** 2 for site, transport in act_map.transports.items()}
    shared = {site: squares[site] * move / move.mean().clamp(min=_TINY) for site, move in moves.items()}
    return shared, DEVIATIONS


def squared_displacement(transport: Transport) -> Tensor:
    """The mean over the source of ``((T(a) - a) / std a) ** 2``; 0 for channels that are constant.

    Args:
        transport: with statistics.

    Returns:
        float64 ``[channels]``, the mean over the bins.

    Example:
        >>> ones, zeros = torch.ones(1), torch.zeros(1)
        >>> squared_displacement(Transport(3 * ones, zeros, statistics=Statistics(ones, ones, ones, ones)))
        tensor([8.], dtype=torch.float64)
    """
    assert transport.statistics is not None
    deviation = transport.statistics.source_std.double()
    slope = torch.where(deviation > MIN_DEVIATION, transport.omega.double() - 1, 0)
    shift = _divided(_shift(transport, transport.statistics), deviation)
    return _by_channel(shift.square() + slope.square())


def _squared_move(transport: Transport) -> Tensor:
    return (transport.omega.double() - 1).square() + transport.beta.double().square()


def _by_channel(values: Tensor) -> Tensor:
    """The mean over the bins."""
    return values.mean(0) if values.ndim == 2 else values


def difference(first: ActMap, second: ActMap) -> dict[str, float]:
    """The largest relative difference between the coefficients of two maps at each site, by site key.

    Compares slopes, offsets, both ends of the support, gates and projections. If only one of the maps has one of
    the last three, the difference is infinite.

    Raises:
        MapError: the two maps do not have the same sites, or the same noise levels.

    Example:
        >>> site = Site("toy", "layer", None, "tokens", 2)
        >>> one, other = (ActMap({site: Transport(torch.ones(2), torch.full((2,), beta))}) for beta in (1.0, 2.0))
        >>> difference(one, other)
        {'toy/layer': 0.5}
    """
    if set(first.transports) != set(second.transports):
        raise MapError("The two maps have different sites and cannot be compared.")
    if first.levels != second.levels:
        raise MapError("The two maps have different noise levels and cannot be compared.")
    differences: dict[str, float] = {}
    for site, mine in first.transports.items():
        theirs = second.transports[site]
        if mine.conditions != theirs.conditions:
            differences[site.key] = math.inf
            continue
        x, y = (torch.cat(_coefficients(transport)).double() for transport in (mine, theirs))
        scale = torch.maximum(x.abs(), y.abs()).clamp(min=_TINY)
        differences[site.key] = float(((x - y).abs() / scale).max())
    return differences


def _coefficients(transport: Transport) -> list[Tensor]:
    packed = [part and part.packed() for part in (transport.gate, transport.projection)]
    tensors = (transport.omega, transport.beta, transport.low, transport.high, *packed)
    return [tensor for tensor in tensors if tensor is not None]
