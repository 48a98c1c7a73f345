"""Putting maps onto a live model and taking them off again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from weakref import WeakValueDictionary, ref

import torch
from torch import Tensor, nn

from ..errors import MapError
from ..fingerprints import weights_hash
from ..interception import Forward, submodules
from ..maps import ActMap
from ..settings import Strength, as_strength
from ..sites import Coverage, Site
from .composition import Layer
from .forward import FORWARDS, SteeredForward
from .rows import BatchRows


def steer(
    model: nn.Module | Mapping[str, nn.Module],
    act_map: ActMap,
    strength: Strength = 1.0,
    *,
    rows: Mapping[str, BatchRows] | None = None,
) -> Steering:
    """Steer a live model: ``with steer(model, act_map, strength=0.7) as steering: ...``.

    Inside the block every activation `a` at a site of the map becomes ``(1 - strength) * a + strength * T(a)``:
    at strength 0 the model runs as if there were no map, bit for bit. Blocks nest, the map of the inner one acting
    on what the outer one has moved. After the block, also by an error, every ``forward`` is what it was before.

    Args:
        model: the module whose submodules are the sites, or one module for each component of the map.
        act_map: map of this model, or of one of the same structure.
        strength: any finite number, or one for each component. It can be changed inside the block:
            ``steering.strength = 0.3``.
        rows: which rows of a batch are moved, by component; all where nothing is said.

    Raises:
        MapError: the strength is not finite or names other components than the map, no site of the map is in the
            model, or one has other channels.
    """
    roots = _roots(model, act_map)
    found: dict[Site, nn.Module] = {}
    for name, root in roots.items():
        modules = submodules(root)
        for site in act_map.transports:
            if site.component == name and site.name in modules:
                found[site] = modules[site.name]
    differing = [site for site, module in found.items() if _output_channels(module) not in (None, site.channels)]
    if differing or not found:
        base = " and ".join(f"{b.architecture} ({name})" for name, b in act_map.record.base.items()) or "another model"
        given = [model] if isinstance(model, nn.Module) else model.values()
        kinds = " and ".join(type(root).__name__ for root in given) or "no component of the map"
        how = f"none of its {len(act_map)} sites is in this model, {kinds}"
        if differing:
            site, channels = differing[0], _output_channels(found[differing[0]])
            missing = sum(site.component in roots for site in act_map.transports) - len(found)
            how = (
                f"does not fit this model, {kinds}: of its {len(act_map)} sites {len(differing)} have other channels "
                f"({site.key}: {site.channels} in the map, {channels} here) and {missing} are missing"
            )
        raise MapError(
            f"{act_map.called} was fitted on {base} and {how}; "
            "use it with the model it was fitted on, or fit a map for this one."
        )
    return Steering(act_map, found, roots, strength, rows or {})


class Steering:
    """One map on one live model, which it does not keep alive; made by `steer`, and steering while it is entered.

    Attributes:
        act_map: the map.
    """

    def __init__(
        self,
        act_map: ActMap,
        found: Mapping[Site, nn.Module],
        roots: Mapping[str, nn.Module],
        strength: Strength,
        rows: Mapping[str, BatchRows],
    ) -> None:
        self.act_map = act_map
        self._connected = tuple(roots)
        self._roots = WeakValueDictionary(roots)
        self._modules = {site: ref(module) for site, module in found.items()}
        self._layers = {site: Layer(act_map, site, rows.get(site.component)) for site in found}
        self.strength = strength

    @property
    def strength(self) -> Strength:
        return self._strength

    @strength.setter
    def strength(self, value: Strength) -> None:
        components = self.act_map.components
        by_component = value if isinstance(value, Mapping) else dict.fromkeys(components, value)
        if set(by_component) != set(components):
            raise MapError(
                f"{self.act_map.called} moves {', '.join(components)}, but strengths are given for "
                f"{', '.join(by_component) or 'nothing'}; give one number, or one for each component."
            )
        numbers = {component: as_strength(number) for component, number in by_component.items()}
        self._strength: Strength = value
        for site, layer in self._layers.items():
            layer.strength = numbers[site.component]
            if layer.slot is not None:
                layer.slot.recompose()

    @cached_property
    def warnings(self) -> tuple[str, ...]:
        """What speaks against this map on this model, a sentence each."""
        told: list[str] = []
        if missing := self.coverage.missing:
            told.append(
                f"{self.act_map.called} has {len(self.act_map)} sites, of which {len(missing)} are not in this model "
                f"(first: {missing[0]}); it moves less here than where it was fitted."
            )
        found = {site.component for site in self._layers}
        for name, base in self.act_map.record.base.items():
            root = self._roots.get(name)
            if root is None or name not in found or base.weights in ("", weights_hash(root)):
                continue
            # float16 holds fewer small numbers than the bfloat16 of the hash.
            half = any(parameter.dtype == torch.float16 for parameter in root.parameters())
            told.append(
                f"{self.act_map.called} was fitted on other weights of {base.architecture} ({name})"
                f"{', or on these in another precision' * half}; it may work less well here, so try low strengths "
                "first."
            )
        return tuple(told)

    @property
    def coverage(self) -> Coverage:
        """Sites of the map that were found, and how often each has fired while steering."""
        keys = tuple(site.key for site in self.act_map.transports if site.component in self._connected)
        fires = {site.key: layer.fires for site, layer in self._layers.items()}
        unconnected = tuple(name for name in self.act_map.components if name not in self._connected)
        return Coverage(keys, tuple(key for key in keys if key not in fires), fires, unconnected)

    def check(self) -> None:
        """Raise a MapError if the map was due and yet no site of it has fired."""
        due = [layer for layer in self._layers.values() if layer.strength]
        if not due or self.coverage.fired:
            return
        if all(layer.rows is not None and layer.rows.parts == () for layer in due):
            raise MapError(
                f"{self.act_map.called} had no effect: the branch that it steers is not there without guidance; "
                "raise the guidance above 1, or steer the positive branch."
            )
        raise MapError(
            f"{self.act_map.called} had no effect: {self.coverage}. The model was not run, or runs its parts in "
            "a way the map cannot reach; fit a map with other sites."
        )

    def forwards(self, before: Callable[[str, str], Forward]) -> dict[tuple[str, str], Forward]:
        """Steered forwards by component and submodule, for a host that puts them in place itself.

        Args:
            before: the forward that each of them is to run, by component and submodule.
        """
        forwards: dict[tuple[str, str], SteeredForward] = {}
        for site, layer in self._layers.items():
            place = site.component, site.name
            if place not in forwards:
                forwards[place] = SteeredForward()
                forwards[place].forward = before(*place)
            forwards[place].insert(site.output, layer)
        return dict(forwards)

    def __enter__(self) -> Steering:
        if any(layer.slot for layer in self._layers.values()):
            raise MapError(f"{self.act_map.called} is on already by this very object; call steer again to stack it.")
        try:
            for site, module in self._living():
                forward = FORWARDS.setdefault(module, SteeredForward())
                forward.add(module, site.output, self._layers[site])
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for site, module in self._living():
            if forward := FORWARDS.get(module):
                forward.remove(module, self._layers[site])

    def _living(self) -> Iterator[tuple[Site, nn.Module]]:
        return ((site, module) for site, found in self._modules.items() if (module := found()) is not None)


def active_maps(root: nn.Module) -> tuple[str, ...]:
    """Titles of the maps that steer a module or its submodules at this moment."""
    forwards = (FORWARDS.get(module) for module in root.modules())
    layers = (layer for forward in forwards if forward for layer in forward.layers() if layer.strength)
    return tuple(dict.fromkeys(layer.act_map.called for layer in layers))


def _roots(model: nn.Module | Mapping[str, nn.Module], act_map: ActMap) -> dict[str, nn.Module]:
    if not isinstance(model, (nn.Module, Mapping)):
        raise MapError(f"steer takes a PyTorch module, not a {type(model).__name__}; give its .module.")
    if not isinstance(model, nn.Module):
        return {name: module for name, module in model.items() if name in act_map.components}
    if len(act_map.components) > 1:
        raise MapError(
            f"{act_map.called} moves several components ({', '.join(act_map.components)}); give a module for each."
        )
    return dict.fromkeys(act_map.components, model)


def _output_channels(module: nn.Module) -> int | None:
    """How many channels a module returns, where its kind tells."""
    if isinstance(module, nn.Linear):
        return module.out_features
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return module.out_channels
    weight = getattr(module, "weight", None)
    if "Norm" in type(module).__name__ and isinstance(weight, Tensor) and weight.ndim == 1:
        return weight.numel()
    return None
