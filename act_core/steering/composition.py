"""Maps at one output of one module, composed into as few affine steps as they allow."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from ..displacement import displace_at, has_layout
from ..errors import MapMismatchError
from ..maps import ActMap
from ..settings import Spatial
from ..sites import Site
from ..transport import Transport
from .rows import BatchRows

_numbers = itertools.count()


class Layer:
    """One map at one site."""

    def __init__(self, act_map: ActMap, site: Site, rows: BatchRows | None) -> None:
        self.number = next(_numbers)
        self.act_map = act_map
        self.site = site
        self.transport: Transport = act_map.transports[site]
        self.rows = rows
        self.strength = 0.0
        self.slot: Slot | None = None
        self._fires = 0
        self._fires_before = 0

    @property
    def fires(self) -> int:
        if self.slot is None:
            return self._fires
        counted = self.slot.fires - self._fires_before
        return self._fires + max(counted, int(self.slot.compiled and self.strength != 0))

    def join(self, slot: Slot) -> None:
        self.slot, self._fires_before = slot, slot.fires

    def leave(self) -> None:
        self._fires, self.slot = self.fires, None  # once it has left, this changes nothing


class Step:
    """One affine move of one activation, as float32 tensors that a compiled graph reads anew at each call."""

    def __init__(self, layer: Layer, gain: Tensor, offset: Tensor, bounds: tuple[Tensor, Tensor] | None) -> None:
        self.site = layer.site
        self.spatial: Spatial = layer.act_map.record.spatial
        self.rows = layer.rows
        self.gain = gain
        self.offset = offset
        self.low, self.high = bounds or (None, None)

    def __call__(self, x: Tensor) -> Tensor:
        layout = self.site.layout
        if not has_layout(x, layout, self.site.channels):
            raise MapMismatchError(
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

    def takes(self, other: Step) -> bool:
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


class Slot:
    """All maps at one output of one module, folded into as few steps as they allow."""

    def __init__(self) -> None:
        self.layers: list[Layer] = []
        self.steps: list[Step] = []
        self.fires = 0
        self.compiled = False
        self._composed: list[tuple[int, float]] = []

    def recompose(self) -> None:
        """Fold the layers anew. Steps are updated in place where they can be, so that no graph is compiled again."""
        # A host puts the same maps on and takes them off at every step of a schedule.
        layers = [(layer.number, layer.strength) for layer in self.layers]
        if layers == self._composed:
            return
        self._composed = layers
        with torch.inference_mode(False):  # the steps outlive the mode in which they were made
            steps = list(_composed(self.layers))
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


def _composed(layers: list[Layer]) -> Iterator[Step]:
    """One step for each run of unbounded layers, composed in float64, and one for each bounded layer."""
    pending: tuple[Layer, Tensor, Tensor] | None = None
    for layer in layers:
        if layer.strength == 0:
            continue
        transport = layer.transport
        gain = (transport.omega.double() - 1) * layer.strength
        offset = transport.beta.double() * layer.strength
        bounds = None
        if transport.low is not None and transport.high is not None:
            bounds = transport.low, transport.high
        if pending and bounds is None and _can_compose(pending[0], layer):
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


def _can_compose(one: Layer, other: Layer) -> bool:
    """Whether two layers move the same rows by the same rule."""
    return one.act_map.record.spatial == other.act_map.record.spatial and one.rows is other.rows


def _step(layer: Layer, gain: Tensor, offset: Tensor, bounds: tuple[Tensor, Tensor] | None = None) -> Step:
    return Step(layer, gain.float(), offset.float(), bounds)
