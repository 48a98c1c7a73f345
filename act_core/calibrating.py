"""Calibrates a map: draws a few subjects at several strengths, and measures them in the model's own terms.

How a calibration comes about::

    calibrate
      model.draw          the same noise at each strength, outwards from 0: up, down, and up with the inverse map
      model.activations   of the untouched model on what was drawn: the effect is how far they move towards the target
      curves.Arm          effect, content kept and steps of one of the three; its range of use, and its even scale
    Calibration           of the upward arm, and of the better one of the two others
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from .calibration import Calibration, Negative
from .components import Component
from .curves import MIN_KEPT, Arm, content_kept, direction, step_between
from .discovery import discover
from .errors import MapError
from .fitting.pooling import pool
from .interception import intercepted, output_tensors, submodules
from .maps import ActMap
from .settings import as_strength

STRENGTHS = (-1.5, -1.25, -1.0, -0.75, -0.5, -0.25, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
SUBJECTS = 8
MIN_SUBJECTS = 3
# Strengths that are added where the pictures change most.
REFINEMENTS = 4

Progress = Callable[[int, int, str], object]


class CalibrationModel(Protocol):
    """What a calibration needs of a model."""

    def draw(self, prompts: Sequence[str], act_map: ActMap | None = None, strength: float = 0.0) -> Tensor:
        """The denoised latents ``[prompts, ...]``; prompt n always starts from the same noise."""
        ...

    def activations(self, latents: Tensor, prompts: Sequence[str]) -> Tensor:
        """Pooled activations ``[prompts, channels]`` of the unsteered model on these latents with some noise."""
        ...


def calibrate(
    model: CalibrationModel,
    act_map: ActMap,
    prompts: Iterable[str] = (),
    targets: Iterable[str] = (),
    *,
    strengths: Iterable[float] = STRENGTHS,
    progress: Progress = lambda done, total, what: None,
) -> ActMap:
    """Measure what a map does at several strengths, and return it with its `Calibration`.

    The target is what the model draws for `targets` from the same noise. Without any, such as for a map that was fitted
    on pictures, the effect is measured along the way that the map itself takes at strength 1.

    Args:
        model: such as `act_core.models.calibration.PipelineCalibration`.
        act_map: a map for it.
        prompts: subjects to draw, at least three; by default the map's own source prompts, of which eight are used,
            with its target prompts.
        targets: the same subjects as the map should make them, one for each prompt.
        strengths: of both signs; a direction ends early where nothing more can be learned.
        progress: called as ``progress(done, total, what)`` after each strength; an exception that it raises ends the
            calibration.

    Raises:
        MapError: too few prompts or strengths, another number of targets, a map that does not fit, or one that does
            not move the pictures towards its target while it keeps their content.

    Example::

        model = PipelineCalibration(DiffusersModel.from_pretrained("demo_model"), steps=8, guidance=3.0)
        calibrate(model, load_map("plain_to_ink.safetensors")).calibrated.range
    """
    up, down = _sides(strengths)
    return _Measurement(model, act_map, *_subjects(act_map, list(prompts), list(targets)), up, down, progress).run()


@dataclass(frozen=True)
class _Point:
    """What was measured at one strength, which is given without its sign."""

    strength: float
    effect: float
    kept: float
    latents: Tensor


def _arm(points: Sequence[_Point]) -> Arm:
    steps = [step_between(one.latents, other.latents) for one, other in pairwise(points)]
    return Arm([p.strength for p in points], [p.effect for p in points], [p.kept for p in points], steps)


class _Measurement:
    """One calibration."""

    def __init__(
        self,
        model: CalibrationModel,
        act_map: ActMap,
        subjects: Sequence[str],
        targets: Sequence[str],
        up: Sequence[float],
        down: Sequence[float],
        progress: Progress,
    ) -> None:
        self._model = model
        self._map = act_map
        self._subjects, self._targets = subjects, targets
        self._up, self._down = up, down
        self._progress = progress
        self._done, self._total = 0, len(up) + 2 * len(down) + 2 * REFINEMENTS + 1

    def run(self) -> ActMap:
        self._unsteered = self._model.draw(self._subjects)
        self._before = self._seen(self._unsteered)
        self._direction = self._towards_target()
        self._step("unsteered")
        complete = 1.0 if self._targets else math.inf
        points = self._outwards(self._map, self._up)
        if not _arm(points).towards(complete):
            raise MapError(
                f"{self._map.called} does not move these pictures towards its target while it keeps their content, so "
                "it has no range to recommend; try other prompts, or fit it again."
            )
        up = self._refined(self._map, points, _arm(points).towards(complete))
        end = up.towards(complete)
        negative, down, low = self._opposite()
        below = [(0.0 - s, effect, kept) for s, effect, kept in zip(*down.curves, strict=True)]
        measured = sorted([*below, *list(zip(*up.curves, strict=True))[1:]])
        strengths, effects, kept = (tuple(curve) for curve in zip(*measured, strict=True))
        calibration = Calibration(
            strengths=strengths,
            effects=effects,
            kept=kept,
            up=up.even(end),
            down=tuple(0.0 - strength for strength in down.even(low)) if low else (),
            negative=negative,
        )
        card = replace(self._map.card, strength_range=calibration.strength_range)
        return replace(self._map, calibration=calibration, card=card)

    def _opposite(self) -> tuple[Negative, Arm, float]:
        """What a negative strength does, its arm, and the strength at its end."""
        found: list[tuple[Negative, ActMap, list[_Point], int]] = [
            ("negated", self._map, self._outwards(self._map, [-strength for strength in self._down]), -1)
        ]
        try:
            inverse = self._map.inverse()
        except MapError:
            self._done += len(self._down)
        else:
            found.append(("inverse", inverse, self._outwards(inverse, self._down), 1))
        negative, act_map, points, sign = min(found, key=lambda kind: _arm(kind[2]).furthest())
        low = _arm(points).away()
        if not low:
            self._done += REFINEMENTS
            return "none", _arm(found[0][2]), 0.0
        down = self._refined(act_map, points, low, sign)
        return negative, down, down.away() or low

    def _outwards(self, act_map: ActMap, strengths: Sequence[float]) -> list[_Point]:
        """Draw at strengths, from the smallest on, until the content is lost or the effect is complete."""
        points = [_Point(0.0, 0.0, 1.0, self._unsteered)]
        for number, strength in enumerate(strengths):
            point = self._point(act_map, strength)
            complete = bool(self._targets) and points[-1].effect >= 1
            if point is not None:
                points.append(point)
            if point is None or point.kept < MIN_KEPT or complete:
                self._done += len(strengths) - number - 1
                break
        return points

    def _refined(self, act_map: ActMap, points: list[_Point], end: float, sign: int = 1) -> Arm:
        """Draw at some more strengths below `end`, each in the middle of the largest step."""
        for _ in range(REFINEMENTS):
            steps = [(step_between(a.latents, b.latents), a, b) for a, b in pairwise(points) if a.strength < end]
            _, a, b = max(steps, key=lambda step: step[0])
            point = self._point(act_map, sign * (a.strength + b.strength) / 2)
            if point is not None:
                points = sorted([*points, point], key=lambda point: point.strength)
        return _arm(points)

    def _point(self, act_map: ActMap, strength: float) -> _Point | None:
        """What is measured at a strength; None if the model breaks down there."""
        latents = self._model.draw(self._subjects, act_map, strength)
        self._step(f"strength {strength:g}")
        if not bool(latents.isfinite().all()):
            return None
        moved = self._seen(latents).double() - self._before.double()
        kept = content_kept(latents, self._unsteered)
        return _Point(abs(strength), float(moved.mean(0) @ self._direction), kept, latents)

    def _towards_target(self) -> Tensor:
        drawn = self._model.draw(self._targets) if self._targets else self._model.draw(self._subjects, self._map, 1.0)
        return direction(self._before, self._seen(drawn))

    def _seen(self, latents: Tensor) -> Tensor:
        return self._model.activations(latents, self._subjects)

    def _step(self, what: str) -> None:
        self._done += 1
        self._progress(self._done, self._total, what)


def last_block(component: Component, run: Callable[[], object], rows: int) -> Tensor:
    """Pooled activations ``[rows, channels]`` of the last block that runs.

    Args:
        component: holds the blocks.
        run: runs it once.
        rows: in the batch.

    Raises:
        FitError: the blocks of this model are not known.

    Example:
        >>> from torch import nn
        >>> from act_core.architectures import Architecture
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Identity())
        >>> toy = Component("toy", model, Architecture("toy", {"blocks": ("*",)}))
        >>> last_block(toy, lambda: model(torch.ones(3, 2)), 3).shape
        torch.Size([3, 2])
    """
    found: list[Tensor] = []
    with torch.no_grad():
        site = discover([component], "blocks", run, rows)[-1]

        def read(output: object) -> object:
            found.append(pool(output_tensors(output)[site.output], site.layout, None))
            return output

        with intercepted({submodules(component.module)[site.name]: read}):
            run()
    return found[-1].cpu()


def _sides(strengths: Iterable[float]) -> tuple[list[float], list[float]]:
    """Positive strengths, and the sizes of negative ones, both ascending."""
    numbers = {as_strength(strength) for strength in strengths}
    up, down = sorted(s for s in numbers if s > 0), sorted(-s for s in numbers if s < 0)
    if len(up) < 2 or not down:
        raise MapError("A calibration needs at least two strengths above 0, and one below.")
    return up, down


def _subjects(act_map: ActMap, prompts: list[str], targets: list[str]) -> tuple[list[str], list[str]]:
    """The prompts to draw, and those of their targets, of which there may be none."""
    record = act_map.record
    if not prompts and not targets:
        prompts, targets = list(record.source_prompts[:SUBJECTS]), list(record.target_prompts[:SUBJECTS])
        if record.fitted_by == "refinement":
            prompts, targets = [caption for caption in targets if caption], []
        if len(prompts) != len(targets):
            targets = []
        if len(prompts) < MIN_SUBJECTS:
            raise MapError(f"{act_map.called} keeps no prompts to calibrate it with; give at least {MIN_SUBJECTS}.")
    if len(set(prompts)) < MIN_SUBJECTS:
        raise MapError(f"A calibration needs at least {MIN_SUBJECTS} different prompts, and got {len(set(prompts))}.")
    if targets and len(targets) != len(prompts):
        raise MapError(f"There are {len(prompts)} prompts, but {len(targets)} targets; give one for each, or none.")
    return prompts, targets
