"""Refines a map on the model's own loss: the coefficients of its sites follow the gradient, and nothing else does.

Where `fit` reads the coefficients off the activations of two sets of samples, this needs one set, a loss, and a model
that can be differentiated::

    for each step
        draw a batch of samples
        loss of the model, while every site adds `gain * a + offset`      coefficients
        its gradient with respect to gains and offsets                    frozen: no weight gets any
        one step of Adam, at a rate that falls to 0 as a cosine
    every few steps
        loss on the samples that were held back; the best coefficients so far are kept

The result is an ordinary map. Scaling activations by learned vectors is the form of (IA)^3 (Liu et al., arXiv
2205.05638, section 3.3).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Generic, cast

import torch
from torch import Tensor

from ..components import Component
from ..discovery import discover
from ..errors import FitError, NotDifferentiableError
from ..interception import intercepted
from ..maps import ActMap
from ..settings import FitMethod, RefineSettings, changed
from ..sites import Site
from ..text import plain_text
from ..transport import Transport
from .checkpoints import checkpointed
from .coefficients import SPATIAL, Coefficients, coefficients, handlers
from .differentiable import FLOAT16_SCALE, try_gradient
from .draws import Draws
from .frozen import frozen
from .prepare import check_weights, prepared
from .record import record_of
from .samples import LossModel, Progress, Sample, no_progress

logger = logging.getLogger(__name__)

_CHECK_EVERY = 10  # steps
# Draws of noise for each sample at a check: with a single one, chance would choose among few samples.
_CHECK_DRAWS = 4
# Checks without an improvement after which a refinement ends.
_PATIENCE = 3
_OUT_OF_MEMORY = "The gradients do not fit into memory even for one sample", "use smaller pictures or transport"


def refine(
    model: LossModel[Sample],
    samples: Sequence[Sample],
    settings: RefineSettings | None = None,
    *,
    start: ActMap | None = None,
    progress: Progress = no_progress,
    keep_on: tuple[type[BaseException], ...] = (),
    **changes: Any,
) -> ActMap:
    """Fit a map under which the model's loss on samples is as low as possible.

    Args:
        model: an adapter with a loss, such as `act_core.models.picture_loss.PictureModel`.
        samples: at least two.
        settings: how to refine; the defaults of `RefineSettings` if None.
        start: an unbounded map that it starts from; sites that the map lacks start at no change. Sites of it that are
            not refined are left out, which the record notes.
        progress: called as ``progress(done, total, state)`` after each step. An exception it raises cancels.
        keep_on: exceptions, of the model or of `progress`, that end the refinement with the best coefficients so far,
            such as that of a host's cancel button. Before the first step is done, they are raised as usual.
        **changes: individual settings, by their names in `RefineSettings`.

    Raises:
        FitError: samples, sites, settings or a starting map that cannot be used, weights that are not loaded, a model
            that cannot be differentiated or is already being fitted, or a loss that is not finite.

    Example:
        See `LossModel` for a complete adapter.
    """
    settings = changed(settings or RefineSettings(), changes)
    samples = list(samples)
    model.check_samples(samples)
    components = list(model.components)
    check_weights(components)
    record = record_of(model, FitMethod(spatial=SPATIAL, seed=settings.seed), components, [], samples)
    roots = list(model.modules.values())
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(prepared(roots))
        stack.enter_context(frozen(roots))
        # Twice the same sample: two different ones may not share a batch.
        batch = model.batches([samples[0]] * 2, 2)[0]
        sites = discover(components, settings.sites, batch.run, batch.rows)
        stack.enter_context(torch.enable_grad())
        refinement = _Refinement(model, coefficients(sites, start), settings)
        refinement.run(components, samples, progress, keep_on)
    transports = refinement.transports()
    used = {site.component for site in transports}
    base = {name: fingerprint for name, fingerprint in record.base.items() if name in used}
    notes = (*record.notes, *_started(sites, start), *refinement.notes)
    return ActMap(transports, replace(record, fitted_by="refinement", base=base, notes=notes))


def _started(sites: Sequence[Site], start: ActMap | None) -> list[str]:
    """What the record notes of the starting map."""
    if start is None:
        return []
    left_out = len({site.key for site in start.transports} - {site.key for site in sites})
    missing = f"; left out {left_out} of its {len(start)} sites, which were not refined" if left_out else ""
    return [f"started from {plain_text(start.called)}{missing}"]


@dataclass(frozen=True)
class _Best:
    """The coefficients with the lowest loss on the samples that were held back."""

    step: int
    loss: float
    transports: dict[Site, Transport]


class _Refinement(Generic[Sample]):
    """One refinement: the coefficients, and the best ones so far.

    Attributes:
        notes: what happened, for the record.
    """

    def __init__(self, model: LossModel[Sample], adjusted: Sequence[Coefficients], settings: RefineSettings) -> None:
        self._model = model
        self._adjusted = adjusted
        self._parameters = [tensor for one in adjusted for tensor in (one.gain, one.offset)]
        self._settings = settings
        self._rows = model.max_rows or settings.batch_size
        self._scale = 1.0
        self._done = 0  # steps
        self._best: _Best | None = None
        self.notes: list[str] = []

    def run(
        self,
        components: Sequence[Component],
        samples: Sequence[Sample],
        progress: Progress,
        keep_on: tuple[type[BaseException], ...],
    ) -> None:
        """Follow the gradient until it has taken all steps, stops helping, or is interrupted."""
        settings = self._settings
        draws = Draws(samples, settings.batch_size, settings.held_back, settings.seed)
        with ExitStack() as stack:
            stack.enter_context(intercepted(handlers(components, self._adjusted)))
            if self._model.checkpoints:
                with torch.no_grad():  # puts the coefficients where the model runs
                    self._model.loss(draws.training[:1], torch.Generator().manual_seed(settings.seed))
                stack.enter_context(checkpointed([part.module for part in components], self._parameters))
            self._try_gradient(draws.training[:1], stack)
            self._check(draws.held_back)
            try:
                ending = self._follow(draws, progress)
            except keep_on:
                if not self._done:
                    raise
                ending = f", interrupted before step {self._done + 1} of {settings.steps}"
        self._note(f"refined for {self._done} steps on {len(draws.training)} samples{ending}")

    def _follow(self, draws: Draws[Sample], progress: Progress) -> str:
        """Take the steps; returns why they ended early, for the note."""
        steps = self._settings.steps
        optimizer = torch.optim.Adam(self._parameters, self._settings.rate)
        # At a constant rate, the coefficients keep following the noise of single batches.
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        while self._done < steps:
            loss = self._gradient(draws.batch(self._done), self._done)
            if not math.isfinite(loss):
                if self._best is None or not self._best.step:
                    raise FitError("The loss or its gradient is not finite; load the model in a wider dtype.")
                return f", ended because the loss of step {self._done + 1} was not finite"
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            self._done += 1
            if self._done == steps or self._done % _CHECK_EVERY == 0:
                self._check(draws.held_back)
            progress(self._done, steps, f"loss {loss:.4f}")
            if self._best and self._done - self._best.step >= _PATIENCE * _CHECK_EVERY:
                return ", ended early"
        return ""

    def transports(self) -> dict[Site, Transport]:
        """The best coefficients on the samples that were held back, or the last ones if none were."""
        return self._transports() if self._best is None else self._best.transports

    def _note(self, refined: str) -> None:
        if self._best is None:
            self.notes.append(refined)
        elif self._best.step:
            self.notes.append(f"{refined}; kept the map of step {self._best.step}")
        else:
            self.notes.append(f"{refined}; samples that were held back did not improve, so the map is as at the start")
            logger.warning("%s. Give more samples or another seed.", self.notes[-1].capitalize())

    def _transports(self) -> dict[Site, Transport]:
        reached = [one for one in self._adjusted if one.is_changed]
        # Before the first step none is, and a map needs sites.
        return {one.site: one.transport() for one in reached or self._adjusted}

    def _try_gradient(self, samples: Sequence[Sample], stack: ExitStack) -> None:
        """Find out whether the model can be differentiated, and make it so where it needs more than its own code.

        Raises:
            FitError: it cannot.
        """

        def differentiate() -> None:
            loss = self._model.loss(samples, torch.Generator().manual_seed(self._settings.seed))
            torch.autograd.grad(loss, self._parameters, allow_unused=True)

        try:
            try_gradient(differentiate, stack, "no map can be refined", "fit with transport, or from prompts")
        except torch.cuda.OutOfMemoryError as error:
            raise NotDifferentiableError(*_OUT_OF_MEMORY) from error
        if any(one.dtype == torch.float16 for one in self._adjusted):
            self._scale = FLOAT16_SCALE

    def _gradient(self, batch: Sequence[Sample], step: int) -> float:
        """Put the gradient of a batch into the parameters, in parts that memory holds.

        Returns:
            The loss; not finite if the gradient is not.
        """
        while True:
            try:
                loss = self._accumulated(batch, step)
            except torch.cuda.OutOfMemoryError as error:
                self._halve(len(batch), error)
                continue
            gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
            if not math.isfinite(loss) or all(bool(gradient.isfinite().all()) for gradient in gradients):
                return loss
            if self._scale <= 1:
                return math.nan
            self._scale /= 2

    def _halve(self, count: int, error: torch.cuda.OutOfMemoryError) -> None:
        """Run fewer samples together, after memory ran out for so many."""
        if self._rows == 1:
            raise NotDifferentiableError(*_OUT_OF_MEMORY) from error
        self._rows = max(1, min(self._rows, count) // 2)
        torch.cuda.empty_cache()

    def _accumulated(self, batch: Sequence[Sample], step: int) -> float:
        generator = torch.Generator().manual_seed(self._settings.seed + step)
        sums: dict[int, Tensor] = {}
        total = 0.0
        for part in self._parts(batch):
            loss = self._model.loss(part, generator) * (len(part) / len(batch))
            gradients = torch.autograd.grad(loss * self._scale, self._parameters, allow_unused=True)
            # Sites that did not run have none, which the annotations do not allow for.
            present = [(n, g) for n, g in enumerate(cast("Sequence[Tensor | None]", gradients)) if g is not None]
            for number, gradient in present:
                own = gradient / self._scale
                sums[number] = sums[number] + own if number in sums else own
            total += float(loss.detach())
        for number, parameter in enumerate(self._parameters):
            parameter.grad = sums.get(number)
        return total

    def _parts(self, samples: Sequence[Sample]) -> list[Sequence[Sample]]:
        return [samples[at : at + self._rows] for at in range(0, len(samples), self._rows)]

    @torch.no_grad()
    def _check(self, held_back: Sequence[Sample]) -> None:
        """Keep the coefficients if they are the best so far on the samples that were held back."""
        if not held_back:
            return
        while True:
            try:
                loss = self._held_back_loss(held_back)
                break
            except torch.cuda.OutOfMemoryError as error:
                self._halve(len(held_back), error)
        if self._best is None or loss < self._best.loss:
            self._best = _Best(self._done, loss, self._transports())

    def _held_back_loss(self, held_back: Sequence[Sample]) -> float:
        # The same noise at each check, and other noise than that of the steps.
        generator = torch.Generator().manual_seed(self._settings.seed + self._settings.steps)
        drawn = [part for _ in range(_CHECK_DRAWS) for part in self._parts(held_back)]
        total = sum(float(self._model.loss(part, generator)) * len(part) for part in drawn)
        return total / (_CHECK_DRAWS * len(held_back))
