"""Fits all transports at once: gains and offsets follow the gradient of how far the steered source is from the target.

The lockstep walk fits each site for itself, in order, so noise of early sites adds up in later ones. Here all
coefficients share one loss, as in LinEAS (Rodriguez et al., arXiv 2503.10679)::

    once          pooled values of the target at each site; the model is not steered
    each step     the source runs through all transports; at each site its pooled values are compared with the target
                  loss: sum over sites of the squared Wasserstein-2 distances of the channels, each site divided by its
                  distance without steering
                  one step of Adam, at a rate that falls to 0 as a cosine
                  with sparsity, a proximal step that shrinks coefficients and sites to no change

The loss couples all samples of a step, but they need not fit into memory together: micro-batches run once without a
gradient, then the loss is differentiated by the pooled values, then each runs again and passes that gradient on. They
start as large as those of the walk that fitted the starting map, and are halved where memory runs out.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from typing import Generic

import torch
from torch import Tensor

from ..components import Component
from ..coupling import TargetQuantiles
from ..errors import FitError, NotDifferentiableError
from ..interception import intercepted
from ..settings import FitSettings
from ..sites import Site
from ..transport import Transport, fit_transport
from .checkpoints import checkpointed
from .coefficients import Coefficients
from .differentiable import FLOAT16_SCALE, try_gradient
from .frozen import frozen
from .measured_sites import Measured, MeasuredSites
from .memory import SCRATCH, MemoryMeter
from .samples import FitModel, Progress, Sample

# Of Adam, for offsets in units of a channel's spread.
RATE = 0.05
# Source samples of a step; more take turns, in fixed groups.
STEP_SAMPLES = 64
_SECOND_MOMENT = 0.999  # decay of Adam's mean of squared gradients
_NO_FIT = "no map can be fitted end to end"
_ADVICE = "choose the estimator linear"
_NO_MEMORY = "The model runs out of memory with one prompt at a time; use shorter prompts or smaller pictures."
_OUT_OF_MEMORY = f"The gradients do not fit into memory even for one sample, so {_NO_FIT}", _ADVICE


def start_settings(settings: FitSettings) -> FitSettings:
    """The settings of the map that an end-to-end fit starts from."""
    return replace(settings, estimator="mean", sparsity=0.0)


def fit_end_to_end(
    model: FitModel[Sample],
    components: Sequence[Component],
    start: Mapping[Site, Transport],
    settings: FitSettings,
    progress: Progress,
    sides: tuple[Sequence[Sample], Sequence[Sample]],
) -> tuple[dict[Site, Transport], str]:
    """Fit the transports of all sites at once. The model must be prepared, see `act_core.fitting.prepare`.

    Args:
        model: an adapter.
        components: of the model.
        start: the transports to start from, with their statistics.
        settings: of the fit. Its batches fit into memory, or into the budget, if they run without a gradient.
        progress: called after each step.
        sides: source and target samples.

    Returns:
        The transports of the sites that are left, and a note for the record.

    Raises:
        FitError: the model cannot be differentiated, joins streams of text and picture, or runs out of memory with one
            sample, or a sparsity drops all sites.
    """
    if any(site.segment for site in start):
        raise FitError(
            "The estimator end_to_end cannot steer text and picture tokens of one stream apart; use prompts of one "
            "length, or choose the estimator linear."
        )
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(frozen(model.modules.values()))
        stack.enter_context(torch.enable_grad())
        return _EndToEnd(model, components, start, settings, stack).run(*sides, progress)


class _EndToEnd(Generic[Sample]):
    """One fit: the coefficients of all sites, and the target that they are to reach."""

    def __init__(
        self,
        model: FitModel[Sample],
        components: Sequence[Component],
        start: Mapping[Site, Transport],
        settings: FitSettings,
        stack: ExitStack,
    ) -> None:
        self._model = model
        self._components = components
        self._settings = settings
        self._stack = stack
        self._measured = MeasuredSites(components, start, settings.spatial)
        self._sites = self._measured.sites
        self._parameters = self._measured.parameters
        self._rows = settings.batch_size
        self._is_checkpointed = False
        self._scale = 1.0

    def run(
        self, source: Sequence[Sample], target: Sequence[Sample], progress: Progress
    ) -> tuple[dict[Site, Transport], str]:
        """Take all steps; returns the transports, and a note."""
        self._stack.enter_context(intercepted(self._measured.handlers()))
        goal, unsteered = (self._measure(side, "unsteered") for side in (target, source))
        parts = -(-len(source) // STEP_SAMPLES)
        order = list(source)
        if parts > 1:
            random.Random(self._settings.seed).shuffle(order)
        groups = [order[part::parts] for part in range(parts)]
        self._quantiles = {
            size: [TargetQuantiles(values, size) for values in goal] for size in {len(group) for group in groups}
        }
        distances = [TargetQuantiles(b, len(a)).distances(a).sum() for a, b in zip(unsteered, goal, strict=True)]
        self._weights = [torch.where(distance > 0, 1 / distance, 0.0) / len(goal) for distance in distances]
        self._try_gradient(source)
        first, last = self._follow(groups, progress)
        transports = self._transports(self._measure(source, "before"), goal)
        if not transports:
            raise FitError(f"A sparsity of {self._settings.sparsity:g} drops all sites; choose a lower one.")
        note = (
            f"{self._settings.steps} steps end to end, from {first:.3f} to {last:.3f} of the distance without steering"
        )
        if self._settings.sparsity:
            dropped = len(self._sites) - len(transports)
            note += f"; sparsity {self._settings.sparsity:g} dropped {dropped} of {len(self._sites)} sites"
        return transports, note

    def _follow(self, groups: Sequence[Sequence[Sample]], progress: Progress) -> tuple[float, float]:
        """Take the steps; returns the losses of the first and the last one."""
        steps = self._settings.steps
        optimizer = torch.optim.Adam(self._parameters, RATE, betas=(0.9, _SECOND_MOMENT))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        losses: list[float] = []
        for step in range(steps):
            losses.append(self._gradient(groups[step % len(groups)]))
            if not math.isfinite(losses[-1]):
                raise FitError("The distance or its gradient is not finite; load the model in a wider dtype.")
            optimizer.step()
            with torch.no_grad():
                for one in self._sites:
                    one.gain.clamp_(min=-1)  # the best map of one-dimensional values never falls
                    if self._settings.sparsity:
                        self._shrink(one, optimizer, float(schedule.get_last_lr()[0]), step + 1)
            schedule.step()
            progress(step + 1, steps, f"distance {losses[-1]:.3f}")
        return losses[0], losses[-1]

    def _shrink(self, one: Coefficients, optimizer: torch.optim.Optimizer, rate: float, step: int) -> None:
        """The proximal step of a sparse group lasso, in the metric of Adam."""
        threshold = rate * self._settings.sparsity / (one.site.channels * len(self._sites))
        both = one.gain, one.offset
        metric = [
            (optimizer.state[tensor]["exp_avg_sq"] / (1 - _SECOND_MOMENT**step)).sqrt().clamp(min=1e-12)
            for tensor in both
        ]
        for tensor, curvature in zip(both, metric, strict=True):
            tensor.copy_(tensor.sign() * (tensor.abs() - threshold / curvature).clamp(min=0))
        norm = torch.cat(both).square().sum().sqrt().clamp(min=1e-12)
        group = threshold * math.sqrt(2 * one.site.channels) / torch.cat(metric).mean()
        for tensor in both:
            tensor.mul_((1 - group / norm).clamp(min=0))

    def _try_gradient(self, source: Sequence[Sample]) -> None:
        """Find out whether the model can be differentiated, and how many samples fit into the budget."""
        costly = sorted(source, key=self._model.cost)[-2:]
        self._measure(costly, "after")  # puts the coefficients where the model runs
        if any(one.dtype == torch.float16 for one in self._sites):
            self._scale = FLOAT16_SCALE
        budget = self._settings.memory_budget
        if budget is not None:
            self._checkpoint()
        pulls = [torch.ones(1, one.site.channels, device=one.gain.device) for one in self._sites]
        batch = self._model.batches(costly, 2)[0]

        meter = MemoryMeter()

        def differentiate() -> None:
            with meter if budget is not None else nullcontext():
                values = self._measured.values(batch)
                torch.autograd.grad([own[:1] for own in values], self._parameters, pulls)

        try:
            try_gradient(differentiate, self._stack, _NO_FIT, _ADVICE)
        except torch.cuda.OutOfMemoryError:
            self._halve(batch.rows)
        if budget is not None:
            each = -(-meter.peak // batch.rows)
            self._rows = min(self._rows, (budget - SCRATCH) // each)
            if self._rows < 1:
                raise FitError(
                    f"A memory budget of {budget / 2**20:.0f} MiB is too small for the gradients of one sample; allow "
                    f"at least {math.ceil((SCRATCH + each) / 2**20)} MiB, or {_ADVICE}."
                )

    def _gradient(self, samples: Sequence[Sample]) -> float:
        """Put the gradient of a group into the parameters; returns the loss, which is not finite if they are not."""
        while True:
            try:
                loss, gradients = self._differentiated(samples)
            except torch.cuda.OutOfMemoryError:
                self._halve(min(self._rows, len(samples)))
                continue
            if all(bool(gradient.isfinite().all()) for gradient in gradients):
                for parameter, gradient in zip(self._parameters, gradients, strict=True):
                    parameter.grad = gradient
                return loss
            if self._scale <= 1 or not math.isfinite(loss):
                return math.nan
            self._scale /= 2

    def _halve(self, rows: int) -> None:
        """After running out of memory: checkpoint the model, or else run fewer samples together."""
        if self._is_checkpointed and rows == 1:
            raise NotDifferentiableError(*_OUT_OF_MEMORY)
        if self._is_checkpointed:
            self._rows = rows // 2
        else:
            self._checkpoint()
        torch.cuda.empty_cache()

    def _checkpoint(self) -> None:
        roots = [part.module for part in self._components]
        self._stack.enter_context(checkpointed(roots, self._parameters, self._measured.recorded))
        self._is_checkpointed = True

    def _differentiated(self, samples: Sequence[Sample]) -> tuple[float, list[Tensor]]:
        batches = self._model.batches(samples, self._rows)
        with torch.set_grad_enabled(len(batches) == 1):
            by_batch = [self._measured.values(batch) for batch in batches]
        joined = [torch.cat(values).detach().requires_grad_() for values in zip(*by_batch, strict=True)]
        terms = zip(self._quantiles[len(samples)], joined, self._weights, strict=True)
        loss = torch.stack([weight * goal.distances(values).sum() for goal, values, weight in terms]).sum()
        pulls = torch.autograd.grad(loss * self._scale, joined)
        sums: list[Tensor] = []
        at = 0
        for batch, values in zip(batches, by_batch, strict=True):
            own = values if len(batches) == 1 else self._measured.values(batch)
            rows = [pull[at : at + batch.rows] for pull in pulls]
            found = torch.autograd.grad(own, self._parameters, rows)
            sums = [a + b for a, b in zip(sums, found, strict=True)] if sums else list(found)
            at += batch.rows
        return float(loss.detach()), [gradient / self._scale for gradient in sums]

    @torch.no_grad()
    def _measure(self, samples: Sequence[Sample], measured: Measured) -> list[Tensor]:
        """The pooled values ``[samples, channels]`` of each site."""
        while True:
            try:
                by_batch = [self._measured.values(one, measured) for one in self._model.batches(samples, self._rows)]
                return [torch.cat(values) for values in zip(*by_batch, strict=True)]
            except torch.cuda.OutOfMemoryError as error:
                if self._rows == 1:
                    raise FitError(_NO_MEMORY) from error
            # Outside the clause, since the error holds the activations of its run.
            self._rows = max(1, min(self._rows, len(samples)) // 2)
            torch.cuda.empty_cache()

    def _transports(self, before: Sequence[Tensor], goal: Sequence[Tensor]) -> dict[Site, Transport]:
        """What the coefficients do now, with statistics of the values that each site gets; without idle sites."""
        found: dict[Site, Transport] = {}
        for one, source, target in zip(self._sites, before, goal, strict=True):
            if bool(one.gain.any()) or bool(one.offset.any()):
                fitted = one.transport()
                known = fit_transport(source, target, "mean", activation_dtype=one.dtype)
                found[one.site] = replace(known, omega=fitted.omega, beta=fitted.beta)
        return found
