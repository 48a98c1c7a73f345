"""Prunes a map to what carries most of its effect, and blends several maps of one model into one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from itertools import accumulate
from typing import TYPE_CHECKING, Literal, SupportsFloat, get_args

import torch
from torch import Tensor

from .comparison import UNTITLED, squared_displacements
from .errors import MapError
from .numeric import real
from .records import Card
from .settings import as_strength, check_choice
from .sites import Site
from .text import shorten
from .transport import Transport

if TYPE_CHECKING:
    from .maps import ActMap

Unit = Literal["sites", "channels"]


def prune(act_map: ActMap, share: float, by: Unit = "sites") -> ActMap:
    """The smallest part of a map that carries a share of its effect.

    The effect is the squared displacement, see `act_core.comparison.squared_displacements`. A site that is dropped
    leaves the map, which makes the file smaller. A channel that is dropped becomes the identity (slope 1, offset 0),
    and its site leaves the map if no other channel is left.

    Args:
        act_map: the map.
        share: of the effect, above 0; 1 keeps the whole map.
        by: whether whole sites are dropped, or channels of any site.

    Raises:
        MapError: the share is not a number above 0 and up to 1, or `by` is unknown.

    Example:
        >>> sites = [Site("toy", name, None, "tokens", 2) for name in ("a", "b")]
        >>> offsets = torch.tensor([1.0, 0.0]), torch.tensor([1.0, 3.0])
        >>> act_map = ActMap({site: Transport(torch.ones(2), beta) for site, beta in zip(sites, offsets)})
        >>> prune(act_map, 0.9), prune(act_map, 0.8, "channels")["toy/b"].beta
        (<ActMap: 1 site of toy, linear, causal>, tensor([0., 3.]))
    """
    check_choice("by", by, get_args(Unit), MapError)
    share = as_share(share)
    if share == 1:
        return act_map
    squares, _ = squared_displacements(act_map)
    by_site = {site: values.sum()[None] for site, values in squares.items()} if by == "sites" else squares
    kept = dict(zip(by_site, _largest(list(by_site.values()), share), strict=True))
    transports = {site: _keeping(t, kept[site]) for site, t in act_map.transports.items() if bool(kept[site].any())}
    return act_map.edited(transports, f"pruned to the {by} that carry {share:g} of the effect")


def as_share(value: object) -> float:
    """A share of the effect, as a float.

    Raises:
        MapError: it is not a number above 0 and up to 1.

    Example:
        >>> as_share(1)
        1.0
    """
    number = real(value)
    if not 0 < number <= 1:
        raise MapError(f"The share to keep is {value!r}; it must be a number above 0 and at most 1.")
    return number


def _largest(groups: list[Tensor], share: float) -> list[Tensor]:
    """Marks the fewest values whose sum is at least a share of the sum of all."""
    values = torch.cat(groups)
    order = values.argsort(descending=True, stable=True)
    sums = values[order].cumsum(0)
    count = int((sums < share * sums[-1]).sum()) + 1
    marked = torch.zeros(len(values), dtype=torch.bool)
    marked[order[:count]] = True
    ends = list(accumulate(len(group) for group in groups))
    return [marked[end - len(group) : end] for group, end in zip(groups, ends, strict=True)]


def _keeping(transport: Transport, kept: Tensor) -> Transport:
    """The transport with only some of its channels, bool ``[channels]`` or ``[1]``."""
    if bool(kept.all()):
        return transport
    omega, beta = transport.omega.where(kept, 1.0), transport.beta.where(kept, 0.0)
    return replace(transport, omega=omega, beta=beta, effect=None)


def blend(parts: Sequence[tuple[ActMap, SupportsFloat]]) -> ActMap:
    """One map that moves activations by the weighted sum of the moves of several maps of one model.

    With weights ``w``, slopes are ``1 + sum w (omega - 1)`` and offsets ``sum w beta``; a map without a site adds
    nothing there. The blend has the record of the first map, and names all of them in ``merged_from``.

    Args:
        parts: at least two maps, each with its weight.

    Raises:
        MapError: the maps are of different models, have different noise levels or rules for feature maps, or have
            observed or gated support or are projections; or a weight is not a finite number.

    Example:
        >>> site = Site("toy", "layer", None, "tokens", 1)
        >>> one, other = (ActMap({site: Transport(torch.tensor([omega]), torch.ones(1))}) for omega in (2.0, 4.0))
        >>> mixed = blend([(one, 0.5), (other, 0.25)])["toy/layer"]
        >>> mixed.omega, mixed.beta
        (tensor([2.2500]), tensor([0.7500]))
    """
    weighted = [(act_map, as_strength(weight)) for act_map, weight in parts]
    maps = [act_map for act_map, _ in weighted]
    if len(maps) < 2:
        raise MapError("A blend needs at least two maps; scale a single one instead.")
    for other in maps[1:]:
        _check_alike(maps[0], other)
    _check_one_model(maps)
    if not all(transport.is_affine for act_map in maps for transport in act_map.transports.values()):
        raise MapError("Maps with observed or gated support and projections cannot be blended; apply them together.")
    transports = {
        site: _summed([(act_map.transports[site], w) for act_map, w in weighted if site in act_map.transports])
        for site in sites_in_order(maps)
    }
    names = [act_map.card.title or UNTITLED for act_map in maps]
    described = " + ".join(f"{weight:g} x {name}" for name, (_, weight) in zip(names, weighted, strict=True))
    blended = maps[0].edited(transports, f"blended: {described}")
    base = {name: base for act_map in reversed(maps) for name, base in act_map.record.base.items()}
    return replace(
        blended,
        record=replace(blended.record, base=base, merged_from=merged_titles(maps)),
        card=Card(" + ".join(names), _common(maps, "author"), license=_common(maps, "license")),
        any_architecture=any(act_map.any_architecture for act_map in maps),
    )


def merged_titles(maps: Sequence[ActMap]) -> tuple[str, ...]:
    """The titles of maps that become one, without repetition; of one that was merged before, those that it came from.

    Example:
        >>> site = Site("toy", "layer", None, "tokens", 1)
        >>> merged_titles([ActMap({site: Transport(torch.ones(1), torch.ones(1))}, card=Card("Ink"))])
        ('Ink',)
    """
    return tuple(dict.fromkeys(t for m in maps for t in m.record.merged_from or (m.card.title or UNTITLED,)))


def _common(maps: Sequence[ActMap], text: str) -> str:
    """A text of the cards, if all maps have the same."""
    texts = {getattr(act_map.card, text) for act_map in maps}
    return texts.pop() if len(texts) == 1 else ""


def _check_alike(first: ActMap, other: ActMap) -> None:
    """Refuse two maps that cannot be blended.

    Raises:
        MapError: they share no component, or have different noise levels or rules for feature maps.
    """
    if set(first.components).isdisjoint(other.components):
        raise MapError(
            f"The maps are of different models: one steers {', '.join(first.components)}, the other "
            f"{', '.join(other.components)}; blend maps of one model."
        )
    if first.levels != other.levels:
        raise MapError("The maps have different noise levels, so they cannot be blended; apply them together.")
    spatial = any(site.layout == "spatial" for site in (*first.transports, *other.transports))
    if spatial and first.record.spatial != other.record.spatial:
        raise MapError(
            "The maps steer feature maps by different rules, so they cannot be blended; apply them together."
        )


def _check_one_model(maps: Sequence[ActMap]) -> None:
    """Refuse maps of different models.

    Raises:
        MapError: a component has several architectures, or a site is described in several ways.
    """
    kinds: dict[str, str] = {}
    known: dict[str, Site] = {}
    for act_map in maps:
        for component, base in act_map.record.base.items():
            kind = kinds.setdefault(component, base.architecture)
            if kind != base.architecture:
                both = " and ".join(shorten(name, 60) for name in (kind, base.architecture))
                raise MapError(f"The maps are of different models, {both}; blend maps of one model.")
        for site in act_map.transports:
            if known.setdefault(site.key, site) != site:
                raise MapError(f"The maps read site {site.key} differently, so they are of different models.")


def _summed(parts: list[tuple[Transport, float]]) -> Transport:
    """The weighted sum of the moves of transports at one site; one without bins acts alike in all of them."""
    gains = [weight * (transport.omega.double() - 1) for transport, weight in parts]
    offsets = [weight * transport.beta.double() for transport, weight in parts]
    gain, offset = (reduce(torch.add, values) for values in (gains, offsets))
    return Transport((1 + gain).float(), offset.float(), fallbacks=max(t.fallbacks for t, _ in parts))


def sites_in_order(maps: Sequence[ActMap]) -> list[Site]:
    """The sites of all maps; each that the first map lacks stands after the one that it follows in its own map.

    Maps that share no site are taken to run one after the other.

    Example:
        >>> sites = [Site("toy", name, None, "tokens", 1) for name in "abc"]
        >>> shift = Transport(torch.ones(1), torch.ones(1))
        >>> maps = [ActMap(dict.fromkeys(part, shift)) for part in (sites[::2], sites)]
        >>> [site.name for site in sites_in_order(maps)]
        ['a', 'b', 'c']
    """
    order = list(maps[0].transports)
    for act_map in maps[1:]:
        at = 0 if any(site in order for site in act_map.transports) else len(order)
        for site in act_map.transports:
            if site not in order:
                order.insert(at, site)
            at = order.index(site) + 1
    return order
