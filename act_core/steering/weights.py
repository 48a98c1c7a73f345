"""Steering by weights: a whole map folded into the parameters of a model, in place of swapped forwards.

It acts on every row and at every step, and costs nothing per call.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import cast

from torch import Tensor, nn

from ..comparison import DEVIATIONS, squared_displacement, squared_displacements
from ..errors import MapError, MapMismatchError
from ..folding import Fold, NotFoldableError, fold, returned_layer
from ..maps import ActMap
from .localised import localised
from .matching import check_architectures, find_sites, warnings_for

# A component, and the name of a module in it.
Place = tuple[str, str]
# By component, and by name of a parameter in it, the value to start from.
Parameters = Callable[[str, str], Tensor | None]

_ABSENT = "not in this model"
# What is left at sites that hardly depend on the prompt, such as the first self-attention, is rounding.
_ALL = 0.9995


@dataclass(frozen=True, eq=False)
class FoldedMap:
    """A map folded into the parameters of a model.

    Attributes:
        act_map: the map, without noise levels.
        folds: what changes, by place.
        left_out: why a site could not be folded, by its key.
        lost: share of the squared displacement of the map that the left-out sites carry, from 0 to 1, see
            `act_core.comparison.squared_displacements`; None if the map does not record it.
        remarks: reasons to doubt that the map works well on this model, and what the choice of a noise level loses.
    """

    act_map: ActMap
    folds: Mapping[Place, Fold]
    left_out: Mapping[str, str]
    lost: float | None
    remarks: tuple[str, ...] = ()

    def without(self, reason_against: Callable[[Place, Fold], str]) -> FoldedMap:
        """The folded map without some of its sites.

        Args:
            reason_against: returns why a fold is left out; empty to keep it.

        Raises:
            MapMismatchError: nothing is left.
        """
        reasons = {place: reason_against(place, fold) for place, fold in self.folds.items()}
        folds = {place: fold for place, fold in self.folds.items() if not reasons[place]}
        left_out = {**self.left_out, **{self.folds[p].site.key: reason for p, reason in reasons.items() if reason}}
        return replace(self, folds=folds, left_out=left_out, lost=_lost(self.act_map, folds, left_out))

    @property
    def report(self) -> str:
        """What was folded, what was left out and why, and how much of the effect is lost."""
        total = len(self.folds) + len(self.left_out)
        lines = [f"{len(self.folds)} of {total} sites of the map are in the weights."]
        if self.left_out:
            lines.append(f"Left out, {self._share} of the map's squared displacement:")
            by_reason: dict[str, list[str]] = {}
            for key, reason in self.left_out.items():
                by_reason.setdefault(reason, []).append(key)
            lines += [f"- {_listed(keys)}: {reason}" for reason, keys in by_reason.items()]
        return "\n".join([*lines, *self.remarks])

    @property
    def _share(self) -> str:
        return "an unknown share" if self.lost is None else f"{self.lost:.1%}"


def fold_map(
    act_map: ActMap,
    model: nn.Module | Mapping[str, nn.Module],
    *,
    level: float | None = None,
    parameters: Parameters | None = None,
) -> FoldedMap:
    """Fold a map into the parameters of a model, as far as they can take its place. The model is only read.

    Args:
        act_map: a map of this model, or of one of the same architecture.
        model: the module, or one for each component, as for `act_core.steer`.
        level: for a map with noise levels, that of which the nearest is folded; it then acts at all of them.
        parameters: returns the value to start from, by component and name such as ``blocks.0.norm.weight``; by
            default, and where it returns None, that in the model.

    Raises:
        MapMismatchError: the map does not fit the model, or none of its sites can be folded.
        MapError: the map acts by an interval, a gate, a projection or the noise level.

    Example:
        >>> import torch
        >>> from act_core.sites import Site
        >>> from act_core.transport import Transport
        >>> site = Site("model", "0", None, "tokens", 2)
        >>> act_map = ActMap({site: Transport(torch.full((2,), 2.0), torch.ones(2), effect=1.0)})
        >>> print(fold_map(act_map, nn.Sequential(nn.LayerNorm(2))).report)
        1 of 1 sites of the map are in the weights.
    """
    _check_unconditional(act_map)
    act_map, remarks = _at_one_level(act_map, level)
    local = localised(model, act_map)
    act_map, roots = local.act_map, local.roots
    found = find_sites(model, local)
    steered = {site.component for site in found}
    check_architectures(local, steered)
    places = {component: _Places(root) for component, root in roots.items()}
    folds: dict[Place, Fold] = {}
    left_out: dict[str, str] = {}
    for site, transport in act_map.transports.items():
        if site not in found:
            left_out[site.key] = _ABSENT if site.component in roots else f"{site.component} is not connected"
            continue
        module = returned_layer(found[site])
        name = places[site.component].names[module]
        if places[site.component].shares(module) or (site.component, name) in folds:
            left_out[site.key] = "its weight is that of another layer or site, too"
            continue
        start = {part: parameters and parameters(site.component, f"{name}.{part}") for part in ("weight", "bias")}
        try:
            folds[site.component, name] = fold(site, transport, act_map.record.spatial, module, **start)
        except NotFoldableError as error:
            left_out[site.key] = str(error)
    lost = _lost(act_map, folds, left_out)
    absent = tuple(key for key, reason in left_out.items() if reason == _ABSENT)
    remarks += [*local.notes, *warnings_for(local, steered, absent)]
    return FoldedMap(act_map, folds, left_out, lost, tuple(remarks))


def _check_unconditional(act_map: ActMap) -> None:
    if conditions := [transport.conditions for transport in act_map.transports.values() if transport.conditions]:
        raise MapError(
            f"{act_map.called} has {conditions[0][0]}, so it acts on some values and not on others, which weights "
            "cannot do; steer with the map itself, or fit one with unbounded support."
        )


class _Places:
    """The modules of a component: their names, and which of them share a parameter with another."""

    def __init__(self, root: nn.Module) -> None:
        named = cast("Iterable[tuple[str, nn.Module]]", root.named_modules())
        self.names = {module: name for name, module in named}
        self._uses = Counter(id(parameter) for module in self.names for parameter in module.parameters(recurse=False))

    def shares(self, module: nn.Module) -> bool:
        return any(self._uses[id(parameter)] > 1 for parameter in module.parameters(recurse=False))


def _nothing_left(act_map: ActMap, left_out: Mapping[str, str]) -> MapMismatchError:
    reasons = Counter(left_out.values()).most_common(3)
    return MapMismatchError(
        f"{act_map.called} cannot be put into weights at any of its sites "
        f"({'; '.join(f'{count} of {len(left_out)}: {reason}' for reason, count in reasons)}); steer with the map "
        "itself, or fit one on norms with parameters or layers with a bias."
    )


def _at_one_level(act_map: ActMap, level: float | None) -> tuple[ActMap, list[str]]:
    """The map at one noise level, and what is lost by it."""
    if not act_map.levels:
        return act_map, []
    levels = ", ".join(f"{one:g}" for one in act_map.levels)
    if level is None:
        raise MapError(
            f"{act_map.called} acts differently at each of its noise levels ({levels}), which weights cannot do; steer "
            "with the map itself, or export it as a LoRA with a level, of which the nearest then acts at all."
        )
    number = act_map.bin_at(level)
    assert number is not None
    chosen = act_map.at(level)
    remark = f"The transports at noise level {act_map.levels[number]:g} act at all levels ({levels})"
    distance = _distance(act_map, number)
    if distance is None:
        return chosen, [f"{remark}; the map has no statistics to show what that changes."]
    return chosen, [f"{remark}, which misses {distance:.1%} of the squared displacement at the others."]


def _distance(act_map: ActMap, number: int) -> float | None:
    """Squared distance of one bin from what the others do, relative to their squared displacement."""
    missed = whole = 0.0
    for transport in act_map.transports.values():
        if not transport.bins:
            continue
        if transport.statistics is None:
            return None
        # What is left to do after the chosen bin is a transport, too.
        rest = replace(
            transport,
            omega=1 + transport.omega - transport.omega[number],
            beta=transport.beta - transport.beta[number],
        )
        missed += float(squared_displacement(rest).sum())
        whole += float(squared_displacement(transport).sum())
    return missed / whole if whole else 0.0


def _lost(act_map: ActMap, folds: Collection[object], left_out: Mapping[str, str]) -> float | None:
    """The share of the squared displacement at the sites that are left out.

    Raises:
        MapMismatchError: all of it.
    """
    squares, unit = squared_displacements(act_map)
    by_site = {site.key: float(values.sum()) for site, values in squares.items()}
    total = sum(by_site.values())
    lost = sum(by_site[key] for key in left_out) / total if unit == DEVIATIONS and total else None
    if not folds or (lost is not None and lost > _ALL):
        raise _nothing_left(act_map, left_out)
    return lost


def _listed(keys: list[str]) -> str:
    return keys[0] if len(keys) == 1 else f"{len(keys)} sites, such as {keys[0]}"
