"""Composes the maps at one output of one module into as few affine steps as possible."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..sites import Segment
from .layer import Layer
from .step import NOTHING, Step

logger = logging.getLogger(__name__)


def is_captured(x: Tensor) -> bool:
    """Whether operations on a tensor are recorded at this moment, in a graph that is replayed without running Python.

    Example:
        >>> is_captured(torch.ones(1))
        False
    """
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


class Slot:
    """All maps at one output of one module, composed into as few steps as possible.

    A graph that is captured (a CUDA graph) repeats what it was captured with on the same storages, without running any
    of this code. So it is captured with all steps, those at strength 0 included, and these steps are kept and updated
    in place for as long as the module is steered or may be steered again.

    Attributes:
        layers: in the order in which they were added.
        steps: those that change something, in the order in which they act. They are kept for reuse when the last layer
            is removed.
        idle: further steps that a captured graph would run.
        captured: whether there is a captured graph, which may still be in use.
    """

    def __init__(self) -> None:
        self.layers: list[Layer] = []
        self.steps: list[Step] = []
        self.idle: list[Step] = []
        self.captured = False
        self._all: list[Step] = []
        self._composed: list[tuple[int, float, int, int, int]] = []

    def __call__(self, x: Tensor) -> Tensor:
        steps = self.steps
        if not torch.compiler.is_compiling():
            if is_captured(x):
                steps = self._captured_steps()
            elif self.idle:
                for step in self.idle:
                    step.place(x)
        for step in steps:
            x = step(x)
        return x

    def _captured_steps(self) -> list[Step]:
        self.captured = True
        for layer in self.layers:
            layer.is_captured = True
        return self._all

    def insert(self, layer: Layer) -> None:
        """Add a layer after those that are present."""
        layer.slot = self
        layer.is_captured = self.captured
        self.layers.append(layer)
        self.recompose()

    def remove(self, layer: Layer) -> None:
        """Remove a layer, if present."""
        if layer not in self.layers:
            return
        self.count()
        self.layers.remove(layer)
        layer.slot = None
        if self.layers or self.captured:
            self.recompose()

    def recompose(self) -> None:
        """Compose the layers again. Steps are updated in place where possible, to avoid recompilation."""
        # A host may add and remove the same maps at every denoising step.
        layers = [(layer.number, layer.strength, layer.bin, id(layer.gauge), id(layer.mask)) for layer in self.layers]
        if layers == self._composed:
            return
        self.count()
        self._composed = []
        with torch.inference_mode(False):  # the steps outlive the mode in which they were made
            indexed = list(enumerate(self.layers))
            self._all = self._updated(list(_composed(indexed)))
            self.steps = [step for step in self._all if step.members]
            if any(layer.strength == 0 for layer in self.layers):
                # Without the layers at strength 0, those around them may compose.
                alone = list(_composed([entry for entry in indexed if entry[1].strength]))
                self.steps = self.steps if len(alone) == len(self.steps) else alone
        self.idle = [step for step in self._all if step not in self.steps]
        self._composed = layers

    def _updated(self, steps: list[Step]) -> list[Step]:
        """The steps, where possible as the present ones with new values."""
        if len(steps) == len(self._all) and all(a.update_from(b) for a, b in zip(self._all, steps, strict=True)):
            return self._all
        if not self.captured:
            return steps
        left = list(steps)
        for step in self._all:
            if left and step.update_from(left[0]):
                del left[0]
            else:
                step.empty()
        if left:
            logger.warning(
                "A captured graph (CUDA graph) of this model cannot follow the maps at %s, since they act in another "
                "way than those it was captured with; capture it again.",
                left[0].site.key,
            )
        return self._all + left

    def count(self) -> None:
        """Add the fires since the last call to the layers of each step."""
        for step in (*self.steps, *self.idle):
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

    def then(self, other: _Affine) -> _Affine:
        """Followed by another layer."""
        gain, offset = other.gain, other.offset
        combined = self.gain + gain + self.gain * gain
        return _Affine(self.first, self.members + other.members, combined, (1 + gain) * self.offset + offset)

    def step(self) -> Step:
        return Step(self.first, self.members, self.gain.float(), self.offset.float())


def _composed(layers: Sequence[tuple[int, Layer]]) -> Iterator[Step]:
    """One step for each run of affine layers, composed in float64, and one for each bounded or gated layer.

    Args:
        layers: with their indices.
    """
    # The leading and the trailing tokens of a stream do not depend on each other.
    pending: dict[Segment | None, _Affine] = {}
    for index, layer in layers:
        segment, is_affine = layer.site.segment, layer.transport.is_affine
        affine, before = _affine(index, layer), pending.get(segment)
        if before is not None and is_affine and _can_compose(before.first, layer):
            pending[segment] = before.then(affine)
            continue
        for other in [key for key in pending if key == segment or None in (key, segment)]:
            yield pending.pop(other).step()
        if is_affine:
            pending[segment] = affine
        else:
            yield affine.step()
    for affine in pending.values():
        yield affine.step()


def _affine(index: int, layer: Layer) -> _Affine:
    omega, beta = layer.transport.omega.double(), layer.transport.beta.double()
    if layer.strength == 0:
        return _Affine(layer, [], torch.zeros_like(omega), torch.full_like(beta, NOTHING))
    return _Affine(layer, [index], (omega - 1) * layer.strength, beta * layer.strength)


def _can_compose(one: Layer, other: Layer) -> bool:
    """Whether two layers on the same tokens steer the same rows by the same rule."""
    return one.act_map.record.spatial == other.act_map.record.spatial and one.rows is other.rows
