"""Fits a map: source and target samples in, ActMap out."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, cast

import torch

from ..components import Component
from ..discovery import discover, is_by_rule
from ..errors import FitError
from ..gates import MIN_GATE_SAMPLES, fit_gate
from ..interrupts import raise_deferred
from ..maps import ActMap
from ..settings import ChannelEstimator, FitSettings, changed
from ..sites import Site
from ..transport import Transport, fit_transport
from .end_to_end import fit_end_to_end, start_settings
from .gather import OUT_OF_MEMORY, together
from .groups import groups
from .lockstep import Walk
from .memory import BatchPlan, MemoryMeter, SampleMemory
from .pooling import SiteValues, Values
from .prepare import check_weights, prepared
from .record import record_of
from .room import room_to_park
from .samples import FitModel, Progress, Sample, Side, check_number, no_progress

logger = logging.getLogger(__name__)

_OUT_OF_MEMORY = "The model runs out of memory with few prompts at a time; use shorter prompts or smaller pictures."
_STREAMED_IN_SEVERAL = "Only a single process can stream prompts in groups; allow more memory, or use one process."
_GRADIENT_IN_SEVERAL = "The estimator end_to_end fits in a single process; choose another, or use one process."


def fit(
    model: FitModel[Sample],
    source: Iterable[Sample],
    target: Iterable[Sample],
    settings: FitSettings | None = None,
    *,
    progress: Progress = no_progress,
    **changes: Any,
) -> ActMap:
    """Fit the map that moves the activations of the source samples onto those of the target samples.

    A causal fit computes the transport of each site while those of all sites before it already act (paper,
    section 3.3), in one forward pass: see `act_core.fitting.lockstep`. The model runs in evaluation mode and without
    gradients, and is restored afterwards, also after an error. Invalid input is refused before the model runs. The
    estimator ``end_to_end`` needs gradients, and fits all sites at once: see `act_core.fitting.end_to_end`.

    Where torch.distributed is initialised with several processes, as under `torchrun`, all of them must call this, with
    equal arguments. Each runs its part of the micro-batches, and all return the same map: that of a single process.

    Args:
        model: an adapter, such as `act_core.models.transformers.TransformersModel`.
        source, target: at least two samples each (prompts, for most adapters); their numbers may differ.
        settings: how to fit; the defaults of `FitSettings` if None.
        progress: called as ``progress(done, total, site)`` after each site (or step, with the distance that is left;
            `done` is 0 while the steps are prepared), in the caller's thread, and in each process. An exception it
            raises cancels the fit.
        **changes: individual settings, by their names in `FitSettings`: ``fit(model, a, b, sites="norms")``.

    Raises:
        FitError: samples, sites or settings that cannot be fitted, weights that are not loaded, a budget that is too
            small, activations that are not finite, or a model that another thread is fitting.
        ProcessError: another process failed, ended, or does not answer.

    Example:
        See `FitModel` for a complete adapter.

        >>> fit("a model", ["rain"], ["sun"])
        Traceback (most recent call last):
        ...
        act_core.errors.FitError: The model is a str; give an adapter, such as TransformersModel(module, tokenizer).
    """
    if not isinstance(model, FitModel):
        kind = type(model).__name__
        raise FitError(f"The model is a {kind}; give an adapter, such as TransformersModel(module, tokenizer).")
    settings = changed(settings or FitSettings(), changes)
    sides = _samples(source, "source"), _samples(target, "target")
    if settings.support == "gated" and min(map(len, sides)) < MIN_GATE_SAMPLES:
        raise FitError(
            f"Gated support needs at least {MIN_GATE_SAMPLES} source and {MIN_GATE_SAMPLES} target prompts, not "
            f"{len(sides[0])} and {len(sides[1])}; add prompts, or choose unbounded support."
        )
    model.check(*sides)
    components = list(model.components)
    check_weights(components)
    record = record_of(model, settings, components, *sides)
    modules = [*model.modules.values(), *(part.module for copy in model.replicas for part in copy)]
    with together() as processes, prepared(modules, frees_at_once=settings.memory_budget is not None):
        processes.agree(prompts=record.prompts_sha256, settings=settings, models=record.base)
        if settings.estimator == "end_to_end":
            if processes.count > 1:
                raise FitError(_GRADIENT_IN_SEVERAL)

            def starting(_done: int, _total: int, site: str) -> None:
                progress(0, settings.steps, site)  # which may end the fit

            start = _Fit(model, components, start_settings(settings), starting, processes).run(*sides)
            # As many samples together as memory held in the walk.
            held = replace(settings, batch_size=start.batch)
            transports, note = fit_end_to_end(model, components, start.transports, held, progress, sides)
            walked = _Fitted(transports, 1, start.batch, (*start.notes, note))
        else:
            walked = _Fit(model, components, settings, progress, processes).run(*sides)
    used = {site.component for site in walked.transports}
    record = replace(
        record,
        walk="streamed" if walked.groups > 1 and settings.order == "causal" else "exact",
        base={name: base for name, base in record.base.items() if name in used},
        notes=(*walked.notes, *record.notes),
    )
    return ActMap(walked.transports, record)


def _samples(samples: Iterable[Sample], side: Side) -> list[Sample]:
    if isinstance(samples, (str, bytes)) or not isinstance(samples, Iterable):
        kind = "one text" if isinstance(samples, (str, bytes)) else repr(samples)
        raise FitError(f"The {side} prompts are {kind}; give a list of prompts.")
    listed = list(samples)
    check_number(listed, side)
    return listed


@dataclass(frozen=True)
class _Fitted:
    """The transports of all sites, and how the walk obtained them: in how many groups, and in batches of which size."""

    transports: dict[Site, Transport]
    groups: int
    batch: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Fit(Generic[Sample]):
    """Walks groups of samples through the model and fits the transport of each site on the way."""

    model: FitModel[Sample]
    components: Sequence[Component]
    settings: FitSettings
    progress: Progress
    processes: together

    def run(self, source: list[Sample], target: list[Sample]) -> _Fitted:
        """Find the sites, then walk; if memory runs out, restart with less of it."""
        began = time.monotonic()
        sites, memory = self._dry_run([*source, *target], metered=self.settings.memory_budget is not None)
        count, budget = len(source) + len(target), self.settings.memory_budget
        plan = BatchPlan(count, self.settings.batch_size)
        if budget is not None:
            plan = memory.plan(count, plan.batch, budget, [site.channels for site in sites])
        # Before they compare their plans, which may differ then: free memory decides how many prompts stream together.
        if plan.resident < count and self.processes.count > 1:
            raise FitError(_STREAMED_IN_SEVERAL)
        # The dry run had two samples: all of them, one after the other, take this long.
        self.processes.agree((time.monotonic() - began) * count / 2, sites=sites, batches=plan)
        by_rule = [part.name for part in self.components if is_by_rule(part, self.settings.sites)]
        notes = [f"sites of the {name.replace('_', ' ')} found by rule" for name in by_rule]
        if any(site.segment for site in sites):
            notes.append("text and picture tokens of joined streams steered apart")
        while True:
            # In numbers, since the noise of a sample may depend on its number.
            parts = groups(range(len(source)), range(len(target)), plan.resident, self.settings.seed)
            try:
                return _Fitted(self._walk(sites, (source, target), parts, plan), len(parts), plan.batch, tuple(notes))
            except torch.cuda.OutOfMemoryError as error:
                if self.processes.count > 1:
                    raise FitError(OUT_OF_MEMORY) from error
                logger.debug("Out of memory with %r.", plan)
            # Outside the clause, since the error holds the activations of its run.
            torch.cuda.empty_cache()
            if not memory.waiting:
                _, memory = self._dry_run([*source, *target], metered=True)
            smaller = plan.smaller(memory.parkable)
            if smaller is None:
                raise FitError(_OUT_OF_MEMORY)
            plan = smaller
            notes.append(f"out of memory: restarted with {plan}")
            logger.warning("Fit %s.", notes[-1])

    def _dry_run(self, samples: Sequence[Sample], *, metered: bool) -> tuple[list[Site], SampleMemory]:
        """The sites in execution order, and if metered the memory that a sample needs, from a short run."""
        by_cost = sorted(samples, key=self.model.cost)
        # Samples with conditioning of different shapes come in several batches, which all pass the same sites.
        batch = self.model.batches(by_cost[-2:] if metered else by_cost[:2], 2)[0]
        apart = len({self.model.batch_key(sample) for sample in samples}) > 1
        find = partial(discover, self.components, self.settings.sites, batch.run, batch.rows, apart=apart)
        try:
            if not metered:
                return find(), SampleMemory(0, 0)
            with MemoryMeter() as meter:
                found = find(at_site=meter.sample)
        except torch.cuda.OutOfMemoryError as error:
            raise FitError(_OUT_OF_MEMORY) from error
        running, waiting = (-(-size // batch.rows) for size in (meter.peak, meter.held))
        # A simultaneous fit is exact in groups, too, and nothing needs to be copied.
        room = room_to_park(meter.devices) if self.settings.order == "causal" else 0
        return found, SampleMemory(running, waiting, room)

    def _walk(
        self,
        sites: Sequence[Site],
        sides: tuple[Sequence[Sample], Sequence[Sample]],
        parts: Sequence[tuple[Sequence[int], Sequence[int]]],
        plan: BatchPlan,
    ) -> dict[Site, Transport]:
        """The transports of all sites. Later groups refit each site on all values seen there so far."""
        settings = self.settings
        moved: set[Side] = {"source", "target"} if settings.moved == "both" else {"source"}
        seen = {site: SiteValues() for site in sites}
        transports: dict[Site, Transport] = {}
        done, total = 0, len(parts) * len(sites)
        for part in parts:
            source, target = (
                self.model.some_batches(side, numbers, plan.batch) if numbers else []
                for side, numbers in zip(sides, part, strict=True)
            )
            shares = self.processes.share({"source": source, "target": target})

            def fit_site(site: Site, values: dict[Side, list[Values]], is_last: bool = part is parts[-1]) -> Transport:
                nonlocal done
                values = self.processes.gathered(values)
                seen[site].add(values, to_cpu=len(parts) > 1)
                transports[site] = self._fit_site(site, seen[site], (values["source"] or values["target"])[0])
                if is_last:
                    del seen[site]
                done += 1
                raise_deferred()
                self.progress(done, total, site.key)
                return transports[site]

            Walk(
                self.components,
                sites,
                shares["source"],
                shares["target"],
                moved=moved if settings.order == "causal" else set(),
                keep=settings.interval if settings.support == "observed" else None,
                gated=settings.support == "gated",
                spatial=settings.spatial,
                parks=plan.parked,
                replicas=self.model.replicas,
            ).run(fit_site)
        return transports

    def _fit_site(self, site: Site, seen: SiteValues, like: Values) -> Transport:
        device = like.pooled.device
        source, target = (torch.cat(seen.pooled[side]).to(device) for side in ("source", "target"))
        estimator = cast("ChannelEstimator", self.settings.estimator)
        try:
            transport = fit_transport(source, target, estimator, activation_dtype=like.dtype, interval=seen.interval)
        except FitError as error:
            raise FitError(f"At site {site.key}: {error}") from error
        if self.settings.support != "gated":
            return transport
        sides = [torch.cat(seen.gated[side]).to(device) for side in ("source", "target")]
        return replace(transport, gate=fit_gate(*sides))
