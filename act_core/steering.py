"""Putting maps onto a live model and taking them off again."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary, ref

import torch
from torch import Tensor, nn

from .errors import MapError
from .fingerprints import weights_hash
from .forwards import Forward, output_tensors, own_forward, restore_forward, submodules, with_output
from .maps import ActMap, Site, Spatial
from .sites import Coverage, channel_dim, displace_at, layout_of
from .transport import Transport

# Greatest strength: far beyond where any model still makes sense, and far below where float16 overflows at once.
MOST = 1000

# One for all components of a map, or one for each.
Strength = float | Mapping[str, float]


class Rows:
    """Which parts of every batch are moved, such as one branch under classifier-free guidance.

    Several maps may share one; it is read at every call of the model.

    Attributes:
        parts: numbers of the parts that are moved; None for the whole batch.
        of: how many parts of equal size a batch has.
    """

    def __init__(self, parts: tuple[int, ...] | None = None, of: int = 1) -> None:
        self.parts = parts
        self.of = of

    def choose(self, parts: tuple[int, ...] | None, of: int = 1) -> None:
        """Take other parts from the next call of the model on."""
        self.parts, self.of = parts, of


def steer(
    model: nn.Module | Mapping[str, nn.Module],
    act_map: ActMap,
    strength: Strength = 1.0,
    *,
    rows: Mapping[str, Rows] | None = None,
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
            f"{_titled(act_map)} was fitted on {base} and {how}; "
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
        rows: Mapping[str, Rows],
    ) -> None:
        self.act_map = act_map
        self._connected = tuple(roots)
        self._roots = WeakValueDictionary(roots)
        self._modules = {site: ref(module) for site, module in found.items()}
        self._layers = {site: _Layer(act_map, site, rows.get(site.component)) for site in found}
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
                f"{_titled(self.act_map)} moves {', '.join(components)}, but strengths are given for "
                f"{', '.join(by_component) or 'nothing'}; give one number, or one for each component."
            )
        for number in by_component.values():
            if not isinstance(number, (int, float)) or not abs(number) <= MOST:
                raise MapError(f"The strength is {number}; it must be a number from -{MOST} to {MOST}, such as 1.")
        self._strength: Strength = value
        for site, layer in self._layers.items():
            layer.strength = by_component[site.component]
            if layer.slot is not None:
                layer.slot.refold()

    @cached_property
    def warnings(self) -> tuple[str, ...]:
        """What speaks against this map on this model, a sentence each."""
        told: list[str] = []
        if missing := self.coverage.missing:
            told.append(
                f"{_titled(self.act_map)} has {len(self.act_map)} sites, of which {len(missing)} are not in this model "
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
                f"{_titled(self.act_map)} was fitted on other weights of {base.architecture} ({name})"
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
                f"{_titled(self.act_map)} had no effect: the branch that it steers is not there without guidance; "
                "raise the guidance above 1, or steer the positive branch."
            )
        raise MapError(
            f"{_titled(self.act_map)} had no effect: {self.coverage}. The model was not run, or runs its parts in "
            "a way the map cannot reach; fit a map with other sites."
        )

    def forwards(self, before: Callable[[str, str], Forward]) -> dict[tuple[str, str], Forward]:
        """Steered forwards by component and submodule, for a host that puts them in place itself.

        Args:
            before: the forward that each of them is to run, by component and submodule.
        """
        forwards: dict[tuple[str, str], _SteeredForward] = {}
        for site, layer in self._layers.items():
            place = site.component, site.name
            if place not in forwards:
                forwards[place] = _SteeredForward()
                forwards[place].forward = before(*place)
            forwards[place].insert(site.output, layer)
        return dict(forwards)

    def __enter__(self) -> Steering:
        if any(layer.slot for layer in self._layers.values()):
            raise MapError(f"{_titled(self.act_map)} is on already by this very object; call steer again to stack it.")
        try:
            for site, module in self._living():
                forward = _FORWARDS.setdefault(module, _SteeredForward())
                forward.add(module, site.output, self._layers[site])
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for site, module in self._living():
            if forward := _FORWARDS.get(module):
                forward.remove(module, self._layers[site])

    def _living(self) -> Iterator[tuple[Site, nn.Module]]:
        return ((site, module) for site, found in self._modules.items() if (module := found()) is not None)


def active_maps(root: nn.Module) -> tuple[str, ...]:
    """Titles of the maps that steer a module or its submodules at this moment."""
    forwards = (_FORWARDS.get(module) for module in root.modules())
    layers = (layer for forward in forwards if forward for layer in forward.layers() if layer.strength)
    return tuple(dict.fromkeys(_titled(layer.act_map) for layer in layers))


_numbers = itertools.count()


class _Layer:
    """One map at one site."""

    def __init__(self, act_map: ActMap, site: Site, rows: Rows | None) -> None:
        self.number = next(_numbers)
        self.act_map = act_map
        self.site = site
        self.transport: Transport = act_map.transports[site]
        self.rows = rows
        self.strength = 0.0
        self.slot: _Slot | None = None
        self._fires = 0
        self._fires_before = 0

    @property
    def fires(self) -> int:
        if self.slot is None:
            return self._fires
        counted = self.slot.fires - self._fires_before
        return self._fires + max(counted, int(self.slot.compiled and self.strength != 0))

    def join(self, slot: _Slot) -> None:
        self.slot, self._fires_before = slot, slot.fires

    def leave(self) -> None:
        self._fires, self.slot = self.fires, None  # once it has left, this changes nothing


class _Step:
    """One affine move of one activation, as float32 tensors that a compiled graph reads anew at each call."""

    def __init__(self, layer: _Layer, gain: Tensor, offset: Tensor, bounds: tuple[Tensor, Tensor] | None) -> None:
        self.site = layer.site
        self.spatial: Spatial = layer.act_map.record.spatial
        self.rows = layer.rows
        self.gain = gain
        self.offset = offset
        self.low, self.high = bounds or (None, None)

    def __call__(self, x: Tensor) -> Tensor:
        layout = self.site.layout
        if layout_of(x) != layout or x.shape[channel_dim(layout)] != self.site.channels:
            raise MapError(
                f"Site {self.site.key} now gives an activation of shape {list(x.shape)}, but the map moves "
                f"{self.site.channels} channels there; fit a map for this model."
            )
        if self.gain.device != x.device:
            self._move_to(x.device)
        if self.rows is None or self.rows.parts is None:
            return self._moved(x)
        chunks = list(x.chunk(self.rows.of))
        for part in self.rows.parts:
            chunks[part] = self._moved(chunks[part])
        return torch.cat(chunks)

    @property
    def acts(self) -> bool:
        """Whether any row is to be moved."""
        return self.rows is None or self.rows.parts != ()

    def _moved(self, x: Tensor) -> Tensor:
        return displace_at(x, self.site.layout, self.spatial, self.gain, self.offset, self.low, self.high)

    def _move_to(self, device: torch.device) -> None:
        with torch.inference_mode(False):
            self.gain, self.offset = self.gain.to(device), self.offset.to(device)
            if self.low is not None and self.high is not None:
                self.low, self.high = self.low.to(device), self.high.to(device)

    def takes(self, other: _Step) -> bool:
        """Take the values of `other` in place, if it does the same to the same activation."""
        if (self.site, self.spatial, self.low is None) != (other.site, other.spatial, other.low is None):
            return False
        if self.rows is not other.rows:
            return False
        with torch.inference_mode():
            for mine, theirs in zip(self._tensors(), other._tensors(), strict=True):
                mine.copy_(theirs)
        return True

    def _tensors(self) -> list[Tensor]:
        return [t for t in (self.gain, self.offset, self.low, self.high) if t is not None]


class _Slot:
    """All maps at one output of one module, folded into as few steps as they allow."""

    def __init__(self) -> None:
        self.layers: list[_Layer] = []
        self.steps: list[_Step] = []
        self.fires = 0
        self.compiled = False
        self._folded: list[tuple[int, float]] = []

    def refold(self) -> None:
        """Fold the layers anew. Steps are updated in place where they can be, so that no graph is compiled again."""
        # A host puts the same maps on and takes them off at every step of a schedule.
        layers = [(layer.number, layer.strength) for layer in self.layers]
        if layers == self._folded:
            return
        self._folded = layers
        with torch.inference_mode(False):  # the steps outlive the mode in which they were made
            steps = list(_folded(self.layers))
        if len(steps) != len(self.steps) or not all(a.takes(b) for a, b in zip(self.steps, steps, strict=True)):
            self.steps = steps

    def __call__(self, x: Tensor) -> Tensor:
        steps = [step for step in self.steps if step.acts]
        if not steps:
            return x
        for step in steps:
            x = step(x)
        if torch.compiler.is_compiling():
            self.compiled = True  # written and never read here: a counter would make a new graph at each call
        else:
            self.fires += 1
        return x


def _folded(layers: list[_Layer]) -> Iterator[_Step]:
    """One step for each run of unbounded layers, composed in float64, and one for each bounded layer."""
    pending: tuple[_Layer, Tensor, Tensor] | None = None
    for layer in layers:
        if layer.strength == 0:
            continue
        transport = layer.transport
        gain = (transport.omega.double() - 1) * layer.strength
        offset = transport.beta.double() * layer.strength
        bounds = None
        if transport.low is not None and transport.high is not None:
            bounds = transport.low, transport.high
        if pending and bounds is None and _alike(pending[0], layer):
            _, gain_before, offset_before = pending
            offset = (1 + gain) * offset_before + offset
            gain = gain_before + gain + gain_before * gain
        elif pending:
            yield _step(*pending)
        pending = (layer, gain, offset) if bounds is None else None
        if bounds is not None:
            yield _step(layer, gain, offset, bounds)
    if pending:
        yield _step(*pending)


def _alike(one: _Layer, other: _Layer) -> bool:
    """Whether two layers move the same rows by the same rule."""
    return one.act_map.record.spatial == other.act_map.record.spatial and one.rows is other.rows


def _step(layer: _Layer, gain: Tensor, offset: Tensor, bounds: tuple[Tensor, Tensor] | None = None) -> _Step:
    return _Step(layer, gain.float(), offset.float(), bounds)


class _SteeredForward:
    """Stands in for the ``forward`` of a module while maps steer it.

    There is one for each module, and it is used again whenever maps come back: a graph that was compiled with it
    stays valid.
    """

    def __init__(self) -> None:
        self.slots: dict[int | None, _Slot] = {}
        self.forward: Forward | None = None
        self._before: object = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        assert self.forward is not None
        output = self.forward(*args, **kwargs)
        for index, slot in self.slots.items():
            if slot.layers and slot.steps:
                output = with_output(output, index, slot(_tensor_at(output, index, slot)))
        return output

    def add(self, module: nn.Module, output: int | None, layer: _Layer) -> None:
        # In an order in which `remove` mends whatever an interrupt leaves half done.
        self.insert(output, layer)
        if self.forward is None:
            self._before = own_forward(module)
            self.forward = module.forward
            module.__dict__["forward"] = self

    def insert(self, output: int | None, layer: _Layer) -> None:
        slot = self.slots.setdefault(output, _Slot())
        layer.join(slot)
        slot.layers.append(layer)
        slot.refold()

    def remove(self, module: nn.Module, layer: _Layer) -> None:
        slot = layer.slot
        if slot is not None and layer in slot.layers:
            slot.layers.remove(layer)
            if slot.layers:
                slot.refold()
        layer.leave()
        # Where somebody else has put a forward over this one since, it stays below that one and does nothing.
        if not any(self.layers()) and module.__dict__.get("forward") is self:
            restore_forward(module, self._before)
            self.forward = self._before = None  # they hold the module, which must stay free to be collected

    def layers(self) -> Iterator[_Layer]:
        return (layer for slot in self.slots.values() for layer in slot.layers)


# Owned by the modules: an entry goes when its module goes.
_FORWARDS: WeakKeyDictionary[nn.Module, _SteeredForward] = WeakKeyDictionary()


def _tensor_at(output: Any, index: int | None, slot: _Slot) -> Tensor:
    tensor = output_tensors(output).get(index)
    if tensor is None:
        raise MapError(f"Site {slot.layers[0].site.key} returns no such activation in this model; fit a map for it.")
    return tensor


def _roots(model: nn.Module | Mapping[str, nn.Module], act_map: ActMap) -> dict[str, nn.Module]:
    if not isinstance(model, (nn.Module, Mapping)):
        raise MapError(f"steer takes a PyTorch module, not a {type(model).__name__}; give its .module.")
    if not isinstance(model, nn.Module):
        return {name: module for name, module in model.items() if name in act_map.components}
    if len(act_map.components) > 1:
        raise MapError(
            f"{_titled(act_map)} moves several components ({', '.join(act_map.components)}); give a module for each."
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


def _titled(act_map: ActMap) -> str:
    return f"The map {act_map.card.title!r}" if act_map.card.title else "The map"
