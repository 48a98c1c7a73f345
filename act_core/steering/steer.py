"""Applies maps to a live model, and removes them again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Protocol
from weakref import WeakValueDictionary, ref

from torch import nn

from ..errors import MapError, MapMismatchError
from ..interception import Forward
from ..interrupts import begin, critical, end, raise_deferred
from ..maps import ActMap
from ..settings import Strength, as_strength
from ..sites import Coverage, Site
from .forward import LOCK, SteeredForward, add_gauge, add_layer, add_mask, remove_layer
from .layer import Layer
from .localised import Localised, localised
from .matching import check_architectures, find_gauges, find_sites, find_token_readers, notes_for, warnings_for
from .rows import BatchRows

logger = logging.getLogger(__name__)


class SupportsSteer(Protocol):
    """A model that knows its own components, such as those in `act_core.models`."""

    def steer(self, act_map: ActMap, strength: Strength = 1.0) -> Steering:
        """Steer the model, see `act_core.steer`."""
        ...


def steer(
    model: nn.Module | Mapping[str, nn.Module] | SupportsSteer,
    act_map: ActMap,
    strength: Strength = 1.0,
    *,
    rows: Mapping[str, BatchRows] | None = None,
    must_fire: bool = True,
) -> Steering:
    """Steer a live model: ``with steer(model, act_map, strength=0.7) as steering: ...``.

    Inside the block every activation `a` at a site of the map becomes ``(1 - strength) * a + strength * T(a)``.
    At strength 0 the model runs as if there were no map, bit for bit. Blocks nest: the map of the inner one acts on
    what the outer one returns. After the block every ``forward`` is what it was before, also after an error or
    Ctrl-C. A copy of the model that is made or saved inside the block (`copy.deepcopy`, `torch.save`) is not steered.

    A map with noise levels acts as at its noisiest one until ``steering.level`` is set. Adapters of diffusion models
    and ComfyUI set it at each call of the model. Compiled and captured graphs follow, see `act_core.steering`.

    Threads: inside the block *every* call of the model is steered, whichever thread makes it, and the blocks of two
    threads stack. A server that shares one model between requests must let a steered request run alone (one lock
    around the block and the calls in it), steer parts of a batch by `rows`, or copy the model.

    Args:
        model: the module whose submodules are the sites, one module for each component of the map, or an adapter
            with its own `steer` method, such as those in `act_core.models`.
        act_map: map of this model, or of one of the same architecture; see `act_core.ActMap.for_any_architecture`.
        strength: a number, or one for each component; inside the block, assign ``steering.strength`` to change it.
        rows: which rows of a batch are steered, by component; by default all.
        must_fire: whether leaving the block is an error if the map should have acted but none of its sites fired. False
            is for hosts that enter the block for every call of a model, even if a cache answers the call.

    Returns:
        A context manager that steers inside its block. Its `warnings` are available without entering it.

    Raises:
        MapError: the strength is not a number from -1000 to 1000, or names other components than the map.
        MapMismatchError: no site of the map is in the model, one has another number of channels, or the map was fitted
            on another architecture. On leaving the block without an exception: the map should have acted, but none of
            its sites fired.

    Example:
        >>> import torch
        >>> from act_core.transport import Transport
        >>> double = Transport(torch.full((2,), 2.0), torch.zeros(2))
        >>> act_map = ActMap({Site("model", "0", None, "vector", 2): double})
        >>> model = nn.Sequential(nn.Identity())
        >>> with steer(model, act_map, strength=0.5) as steering:
        ...     model(torch.ones(1, 2))
        tensor([[1.5000, 1.5000]])
        >>> print(steering.coverage)
        1 of 1 sites fired
    """
    if isinstance(model, (nn.Module, Mapping)):
        local = localised(model, act_map)
        found = find_sites(model, local)
        check_architectures(local, {site.component for site in found})
        return Steering(local, found, strength, rows or {}, must_fire=must_fire)
    if not callable(getattr(model, "steer", None)):
        raise MapError(
            "steer takes a PyTorch module, a mapping from component to module, or a model of act_core.models, "
            f"not {type(model).__name__}."
        )
    if rows is not None or not must_fire:
        raise MapError(f"{type(model).__name__} chooses rows and must_fire itself; leave them out.")
    return model.steer(act_map, strength)


class Steering:
    """One map on one live model, which it does not keep alive. Created by `steer`; steers while it is entered.

    Attributes:
        act_map: the map, with the names of the model.
    """

    def __init__(
        self,
        local: Localised,
        found: Mapping[Site, nn.Module],
        strength: Strength,
        rows: Mapping[str, BatchRows],
        *,
        must_fire: bool = True,
    ) -> None:
        act_map = self.act_map = local.act_map
        self._must_fire = must_fire
        self._connected = tuple(local.roots)
        self._roots = WeakValueDictionary(local.roots)
        self._local = replace(local, roots=self._roots)
        self._layers = {site: Layer(act_map, site, rows.get(site.component)) for site in found}
        self._places = [(ref(module), self._layers[site]) for site, module in found.items()]
        # Other modules that a layer needs a number or a mask from.
        self._helpers = [
            *((ref(m), add_gauge, self._layers[site]) for site, m in find_gauges(local.roots, self._layers)),
            *((ref(m), add_mask, self._layers[site]) for site, m in find_token_readers(local, self._layers)),
        ]
        self._fires_before = 0
        self._began = False
        self.strength = strength

    @property
    def strength(self) -> float | dict[str, float]:
        """The strength as it was given: one number, or one for each component."""
        return self._strength

    @strength.setter
    def strength(self, value: Strength) -> None:
        components = self.act_map.components
        if isinstance(value, Mapping):
            value = {self._local.renamed.get(name, name): number for name, number in value.items()}
            if set(value) != set(components):
                raise MapError(
                    f"{self.act_map.called} steers {', '.join(components)}, but strengths are given for "
                    f"{', '.join(value) or 'nothing'}; give one number, or one for each component."
                )
            strengths = {component: as_strength(number) for component, number in value.items()}
            self._strength: float | dict[str, float] = strengths
        else:
            self._strength = as_strength(value)
            strengths = dict.fromkeys(components, self._strength)
        for site, layer in self._layers.items():
            layer.strength = strengths[site.component]
            if layer.slot is not None:
                layer.slot.recompose()

    @property
    def level(self) -> float:
        """The noise level, from 0 to 1, at which the model runs next; see `act_core.levels`."""
        return next(iter(self._layers.values())).level

    @level.setter
    def level(self, value: float) -> None:
        number = self.act_map.bin_at(value) or 0
        for layer in self._layers.values():
            layer.choose_level(float(value), number)

    @cached_property
    def warnings(self) -> tuple[str, ...]:
        """Reasons to doubt that the map works well on this model, a sentence each."""
        return tuple(warnings_for(self._local, self._steered, self.coverage.missing))

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """Why the map applies to a model of another class or library, a sentence for each component."""
        return tuple(notes_for(self._local, self._steered))

    @property
    def coverage(self) -> Coverage:
        """Sites of the map that were found, and how often each has fired while steering."""
        keys = tuple(site.key for site in self.act_map.transports if site.component in self._connected)
        fires = {site.key: layer.fires for site, layer in self._layers.items()}
        unconnected = tuple(name for name in self.act_map.components if name not in self._connected)
        return Coverage(keys, tuple(key for key in keys if key not in fires), fires, unconnected)

    def check(self) -> None:
        """Raise an error if the map should have acted in this block but did not; leaving the block does the same.

        Raises:
            MapMismatchError: no site fired although the strength is not 0, or the branch to steer was absent.
        """
        layers = self._layers.values()
        if self._fires() > self._fires_before or not any(layer.strength and not layer.is_captured for layer in layers):
            return
        if not self._is_due:
            raise MapMismatchError(self._absent_branch)
        raise MapMismatchError(
            f"{self.act_map.called} had no effect: {self.coverage}. The model was not run, or runs its parts in "
            "a way the map cannot reach; fit a map with other sites."
        )

    def forwards(self, before: Callable[[str, str], Forward]) -> dict[tuple[str, str], Forward]:
        """Steered forwards by component and submodule, for a host that installs them itself.

        Args:
            before: returns the forward that each of them calls, by component and submodule.

        Raises:
            MapMismatchError: the map steers parts of a stream of tokens.
        """
        if any(site.segment for site in self._layers):
            raise MapMismatchError(
                f"{self.act_map.called} steers parts of the tokens at {next(iter(self._layers)).key}, which this host "
                "cannot measure there; use it with the model it was fitted on."
            )
        forwards: dict[tuple[str, str], SteeredForward] = {}
        for site, layer in self._layers.items():
            place = site.component, site.name
            if place not in forwards:
                forwards[place] = SteeredForward(before(*place))
            forwards[place].insert(site.output, layer)
        return dict(forwards)

    @critical
    def __enter__(self) -> Steering:
        if any(layer.slot for layer in self._layers.values()):
            raise MapError(f"{self.act_map.called} is already on through this object; call steer again to stack it.")
        if next(self._living(), None) is None:
            raise MapMismatchError(f"{self.act_map.called} steers a model that has been deleted; call steer again.")
        began = begin()
        try:
            self._fires_before = self._fires()
            with LOCK:
                for found, add, layer in self._helpers:
                    if (module := found()) is not None:
                        add(module, layer)
                for module, layer in self._living():
                    add_layer(module, layer.site.output, layer)
            raise_deferred()
        except BaseException:
            self._take_off()
            end(began)
            raise
        self._began = began
        return self

    @critical
    def __exit__(self, kind: type[BaseException] | None = None, *_: object) -> None:
        self._take_off()
        began, self._began = self._began, False
        error = self._error_on_exit() if kind is None else None
        end(began)  # raises an interrupt that arrived meanwhile; nothing may come after it that takes long
        if error is not None:
            raise error

    def _take_off(self) -> None:
        with LOCK:
            for module, layer in self._living():
                remove_layer(module, layer)
            for found, _, layer in self._helpers:
                if (module := found()) is not None:
                    remove_layer(module, layer)
            for _, layer in self._places:  # of modules that no longer exist
                layer.leave()

    def _error_on_exit(self) -> MapMismatchError | None:
        try:
            self.check()
        except MapMismatchError as error:
            if self._is_due and self._must_fire:
                return error
            if not self._is_due:
                logger.warning("%s", error)
        return None

    @property
    def _steered(self) -> set[str]:
        return {site.component for site in self._layers}

    @property
    def _is_due(self) -> bool:
        """Whether any site should act: its strength is not 0, and the branch that it steers is in the batch."""
        return any(layer.strength and (layer.rows is None or layer.rows.parts != ()) for layer in self._layers.values())

    @property
    def _absent_branch(self) -> str:
        return (
            f"{self.act_map.called} had no effect: the branch that it steers is absent without guidance; "
            "raise the guidance above 1, or steer the positive branch."
        )

    def _fires(self) -> int:
        return sum(layer.fires for layer in self._layers.values())

    def _living(self) -> Iterator[tuple[nn.Module, Layer]]:
        return ((module, layer) for found, layer in self._places if (module := found()) is not None)
