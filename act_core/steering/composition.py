"""Composes the maps at one output of one module into as few affine steps as possible."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..displacement import displace_at, displace_tokens, has_layout
from ..errors import MapMismatchError
from ..maps import ActMap
from ..settings import Spatial
from ..sites import Segment, Site
from ..transport import Transport
from .rows import BatchRows

_numbers = itertools.count()


class Gauge:
    """Measures where a stream of two joined parts is divided, see `act_core.sites.Segment`.

    Attributes:
        tokens: how many tokens its submodule returned last; None before its first run.
    """

    def __init__(self) -> None:
        self.tokens: int | None = None

    def read(self, output: Tensor | None) -> None:
        """Note the number of tokens of an output; None if it is not ``[rows, tokens, channels]``."""
        self.tokens = output.shape[1] if output is not None and output.ndim == 3 else None


class Layer:
    """One map at one site.

    Attributes:
        number: unique to each layer.
        act_map, site, rows: what acts, and where.
        level: noise level at which the model runs next.
        bin: number of the bin that acts there.
        strength: 0 switches it off.
        slot: the slot that it acts in; None while it does not act.
        gauge: measures where the tokens that it steers begin or end, once it acts; None if it steers all of them.
    """

    def __init__(self, act_map: ActMap, site: Site, rows: BatchRows | None) -> None:
        self.number = next(_numbers)
        self.act_map = act_map
        self.site = site
        self.level = 1.0
        self.bin = 0
        self.rows = rows
        self.strength = 0.0
        self.slot: Slot | None = None
        self.gauge: Gauge | None = None
        self.counted = 0

    @property
    def transport(self) -> Transport:
        """The transport that acts, without bins."""
        return self.act_map.transports[self.site].bin(self.bin)

    def choose_level(self, level: float, number: int) -> None:
        """Act as at a noise level from now on, with the bin of this number."""
        self.level = level
        if number != self.bin:
            self.bin = number
            if self.slot is not None:
                self.slot.recompose()

    @property
    def fires(self) -> int:
        """How often it has acted; runs of a compiled graph count at least once for each block and strength."""
        if self.slot is not None:
            self.slot.count()
        return self.counted

    def leave(self) -> None:
        """Leave the slot that it acts in, if any."""
        if self.slot is not None:
            self.slot.remove(self)


class Step:
    """One affine displacement of one activation, as float32 tensors that a compiled graph reads at each call.

    Attributes:
        members: which layers of the slot it is composed of, as indices.
        fires: calls outside compiled graphs since they were last counted.
        fired_compiled: whether it was called in a compiled graph since then.
    """

    def __init__(self, layer: Layer, members: list[int], gain: Tensor, offset: Tensor) -> None:
        self.site = layer.site
        self.spatial: Spatial = layer.act_map.record.spatial
        self.rows = layer.rows
        self.gauge = layer.gauge
        self.members = members
        self.fires = 0
        self.fired_compiled = False
        self.gain = gain
        self.offset = offset
        # Of a layer that is not affine, which is the only member then.
        transport = layer.transport
        self.low, self.high = transport.low, transport.high
        self.gate, self.projection = (part and part.packed() for part in (transport.gate, transport.projection))

    def __call__(self, x: Tensor) -> Tensor:
        rows = self.rows
        if rows is not None and rows.parts == ():
            return x
        if not has_layout(x, self.site.layout, self.site.channels):
            raise MapMismatchError(
                f"Site {self.site.key} returns an activation of shape {list(x.shape)}, but the map steers "
                f"{self.site.channels} channels there; fit a map for this model."
            )
        if self.gain.device != x.device:
            self._move_to(x.device)
        x = self._displaced(x) if rows is None else rows.apply(x, self._displaced, self.site.key)
        if torch.compiler.is_compiling():
            # The graph sets this at each run but never reads it: a counter would cause a recompilation at each call.
            self.fired_compiled = True
        else:
            self.fires += 1
        return x

    def _displaced(self, x: Tensor) -> Tensor:
        return displace_tokens(x, self._tokens(x), self._displaced_part)

    def _displaced_part(self, x: Tensor) -> Tensor:
        conditions = self.low, self.high, self.gate, None, self.projection
        return displace_at(x, self.site.layout, self.spatial, self.gain, self.offset, *conditions)

    def _tokens(self, x: Tensor) -> slice | None:
        """The tokens to steer; None for all."""
        if self.site.segment is None:
            return None
        measured = None if self.gauge is None else self.gauge.tokens
        if measured is None or measured > x.shape[1]:
            raise MapMismatchError(
                f"The map steers a part of the tokens at site {self.site.key}, but where it ends was not measured in "
                "this run; fit a map for this model."
            )
        return self.site.segment.of(x.shape[1], measured)

    def _move_to(self, device: torch.device) -> None:
        with torch.inference_mode(False):
            self.gain, self.offset = self.gain.to(device), self.offset.to(device)
            self.low, self.high, self.gate, self.projection = (
                None if tensor is None else tensor.to(device) for tensor in self._conditions
            )

    def update_from(self, other: Step) -> bool:
        """Copy the values of `other` in place, if it acts on the same activation in the same way."""
        if (self.site, self.spatial) != (other.site, other.spatial):
            return False
        if [tensor is None for tensor in self._conditions] != [tensor is None for tensor in other._conditions]:
            return False
        if self.rows is not other.rows or self.gauge is not other.gauge:
            return False
        with torch.inference_mode():
            for mine, theirs in zip(self._tensors(), other._tensors(), strict=True):
                mine.copy_(theirs)
        self.members = other.members
        return True

    @property
    def _conditions(self) -> tuple[Tensor | None, ...]:
        return self.low, self.high, self.gate, self.projection

    def _tensors(self) -> list[Tensor]:
        return [t for t in (self.gain, self.offset, *self._conditions) if t is not None]


class Slot:
    """All maps at one output of one module, composed into as few steps as possible.

    Attributes:
        layers: in the order in which they were added.
        steps: in the order in which they act. They are kept for reuse when the last layer is removed.
    """

    def __init__(self) -> None:
        self.layers: list[Layer] = []
        self.steps: list[Step] = []
        self._composed: list[tuple[int, float, int, int]] = []

    def __call__(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(x)
        return x

    def insert(self, layer: Layer) -> None:
        """Add a layer after those that are present."""
        layer.slot = self
        self.layers.append(layer)
        self.recompose()

    def remove(self, layer: Layer) -> None:
        """Remove a layer, if present."""
        if layer not in self.layers:
            return
        self.count()
        self.layers.remove(layer)
        layer.slot = None
        if self.layers:
            self.recompose()

    def recompose(self) -> None:
        """Compose the layers again. Steps are updated in place where possible, to avoid recompilation."""
        # A host may add and remove the same maps at every denoising step.
        layers = [(layer.number, layer.strength, layer.bin, id(layer.gauge)) for layer in self.layers]
        if layers == self._composed:
            return
        self.count()
        self._composed = []
        with torch.inference_mode(False):  # the steps outlive the mode in which they were made
            steps = list(_composed(self.layers))
        if len(steps) != len(self.steps) or not all(a.update_from(b) for a, b in zip(self.steps, steps, strict=True)):
            self.steps = steps
        self._composed = layers

    def count(self) -> None:
        """Add the fires since the last call to the layers of each step."""
        for step in self.steps:
            if fires := step.fires + step.fired_compiled:
                step.fires, step.fired_compiled = 0, False
                for member in step.members:
                    self.layers[member].counted += fires


class _Affine(NamedTuple):
    """Layers that are composed so far, in float64."""

    first: Layer
    members: list[int]
    gain: Tensor
    offset: Tensor

    def then(self, index: int, gain: Tensor, offset: Tensor) -> _Affine:
        """Followed by another layer."""
        combined = self.gain + gain + self.gain * gain
        return _Affine(self.first, [*self.members, index], combined, (1 + gain) * self.offset + offset)

    def step(self) -> Step:
        return Step(self.first, self.members, self.gain.float(), self.offset.float())


def _composed(layers: list[Layer]) -> Iterator[Step]:
    """One step for each run of affine layers, composed in float64, and one for each bounded or gated layer."""
    # The leading and the trailing tokens of a stream do not depend on each other.
    pending: dict[Segment | None, _Affine] = {}
    for index, layer in enumerate(layers):
        if layer.strength == 0:
            continue
        transport, segment = layer.transport, layer.site.segment
        gain = (transport.omega.double() - 1) * layer.strength
        offset = transport.beta.double() * layer.strength
        before = pending.get(segment)
        composes = before is not None and transport.is_affine and _can_compose(before.first, layer)
        if before is not None and composes:
            pending[segment] = before.then(index, gain, offset)
            continue
        for other in [key for key in pending if key == segment or None in (key, segment)]:
            yield pending.pop(other).step()
        if transport.is_affine:
            pending[segment] = _Affine(layer, [index], gain, offset)
        else:
            yield _Affine(layer, [index], gain, offset).step()
    for affine in pending.values():
        yield affine.step()


def _can_compose(one: Layer, other: Layer) -> bool:
    """Whether two layers on the same tokens steer the same rows by the same rule."""
    return one.act_map.record.spatial == other.act_map.record.spatial and one.rows is other.rows
