"""Fitting a map: samples of two sides in, ActMap out."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, fields, replace
from typing import Any, Generic

import torch

from ..components import Component
from ..discovery import discover
from ..errors import FitError
from ..fingerprints import fingerprint
from ..maps import ActMap, FitRecord
from ..settings import FitMethod, FitSettings
from ..sites import Site
from ..steering import active_maps
from ..transport import Transport, fit_transport
from .groups import groups
from .lockstep import Walk
from .memory import BatchPlan, MemoryMeter, SampleMemory, freed_at_once
from .pooling import SiteValues, Values
from .samples import FitModel, Sample, Side

logger = logging.getLogger(__name__)

Progress = Callable[[int, int, str], object]

_OUT_OF_MEMORY = "The model runs out of memory even with two prompts a side; use shorter prompts or smaller pictures."
_VERSIONED = ("torch", "transformers", "diffusers")


def _no_progress(done: int, total: int, site: str) -> None:
    pass


def fit(
    model: FitModel[Sample],
    source: Iterable[Sample],
    target: Iterable[Sample],
    settings: FitSettings | None = None,
    *,
    progress: Progress = _no_progress,
    **changes: Any,
) -> ActMap:
    """Fit the map that moves the activations of the source samples onto those of the target samples.

    A causal fit computes the transport of each site while those of all sites before it already act (paper,
    section 3.3), in one forward pass: see `act_core.fitting.lockstep`. The model is left as it was, whatever happens.

    Args:
        model: an adapter, such as `act_core.models.transformers.TransformersModel`.
        source, target: at least two samples each, for most adapters prompts; their numbers may differ.
        settings: how to fit; the defaults of `FitSettings` if None.
        progress: called as ``progress(done, total, site)`` after each site, in the caller's thread. An exception
            it raises cancels the fit.
        **changes: single settings, by their names in `FitSettings`: ``fit(model, a, b, sites="norms")``.

    Raises:
        FitError: samples, sites or settings that cannot be fitted, a budget that is too small, or activations
            that are not finite.
    """
    settings = _settings(settings or FitSettings(), changes)
    sides = {side: _samples(samples, side) for side, samples in (("source", source), ("target", target))}
    model.check(*sides.values())
    described = [[model.describe(sample) for sample in samples] for samples in sides.values()]
    components = list(model.components)
    with torch.no_grad(), nullcontext() if settings.memory_budget is None else freed_at_once():
        walked = _Fit(model, components, settings, progress).run(*sides.values())

    used = {site.component for site in walked.transports}
    record = FitRecord(
        **{f.name: getattr(settings, f.name) for f in fields(FitMethod)},
        source_prompts=tuple(described[0]),
        target_prompts=tuple(described[1]),
        source_count=len(described[0]),
        target_count=len(described[1]),
        prompts_sha256=hashlib.sha256(json.dumps(described).encode()).hexdigest(),
        walk="streamed" if walked.groups > 1 and settings.order == "causal" else "exact",
        base={c.name: fingerprint(c) for c in components if c.name in used},
        versions={name: importlib.metadata.version(name) for name in _VERSIONED if name in sys.modules},
        patches=(*model.patches, *(title for c in components for title in active_maps(c.module))),
        notes=(*walked.notes, *model.notes),
    )
    return ActMap(walked.transports, record)


def _settings(settings: FitSettings, changes: dict[str, Any]) -> FitSettings:
    known = {f.name for f in fields(FitSettings)}
    for name in changes:
        if name not in known:
            raise FitError(f"There is no setting {name!r} of a fit; choose from {', '.join(sorted(known))}.")
    return replace(settings, **changes)


def _samples(samples: Iterable[Sample], side: str) -> list[Sample]:
    if isinstance(samples, (str, bytes)) or not isinstance(samples, Iterable):
        kind = "one text" if isinstance(samples, (str, bytes)) else repr(samples)
        raise FitError(f"The {side} prompts are {kind}; give a list of prompts.")
    listed = list(samples)
    if len(listed) < 2:
        raise FitError(f"There are {len(listed)} {side} prompts; a fit needs at least two on each side.")
    return listed


@dataclass(frozen=True)
class _Fitted:
    """The transports of all sites, and what the walk had to do for them."""

    transports: dict[Site, Transport]
    groups: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Fit(Generic[Sample]):
    """Walks groups of samples through the model and fits the transport of each site on the way."""

    model: FitModel[Sample]
    components: Sequence[Component]
    settings: FitSettings
    progress: Progress

    def run(self, source: list[Sample], target: list[Sample]) -> _Fitted:
        """Find the sites, then walk; out of memory halves what is resident and starts again."""
        try:
            sites, memory = self._dry_run([*source, *target])
        except torch.cuda.OutOfMemoryError as error:
            raise FitError(_OUT_OF_MEMORY) from error
        count, budget = len(source) + len(target), self.settings.memory_budget
        plan = BatchPlan(count, self.settings.batch_size)
        if budget is not None:
            plan = memory.plan(count, plan.batch, budget, [site.channels for site in sites])
        notes: list[str] = []
        while True:
            parts = groups(source, target, plan.resident, self.settings.seed)
            try:
                return _Fitted(self._walk(sites, parts, plan.batch), len(parts), tuple(notes))
            except torch.cuda.OutOfMemoryError as error:
                plan = plan.halved()
                if plan.resident < 4:
                    raise FitError(_OUT_OF_MEMORY) from error
                torch.cuda.empty_cache()
                notes.append(f"out of memory: started again with {plan.resident} prompts at a time")
                logger.warning("Fit %s.", notes[-1])

    def _dry_run(self, samples: Sequence[Sample]) -> tuple[list[Site], SampleMemory]:
        """The sites in execution order, from a run of two samples, and what a sample takes at most, if there is a
        budget."""
        metered = self.settings.memory_budget is not None
        by_cost = sorted(samples, key=self.model.cost)
        # Samples whose conditioning differs in shape come in several batches: the first shows all there is to see.
        batch = self.model.batches(by_cost[-2:] if metered else by_cost[:2], 2)[0]
        if not metered:
            return discover(self.components, self.settings.sites, batch.run, batch.rows), SampleMemory(0, 0)
        with MemoryMeter() as meter:
            found = discover(self.components, self.settings.sites, batch.run, batch.rows, at_site=meter.sample)
        return found, SampleMemory(-(-meter.peak // batch.rows), -(-meter.held // batch.rows))

    def _walk(
        self, sites: Sequence[Site], parts: Sequence[tuple[Sequence[Sample], Sequence[Sample]]], batch_size: int
    ) -> dict[Site, Transport]:
        """The transports of all sites. Later groups refit each site on all values seen there so far."""
        settings = self.settings
        moved: set[Side] = {"source", "target"} if settings.moved == "both" else {"source"}
        seen = {site: SiteValues() for site in sites}
        transports: dict[Site, Transport] = {}
        done, total = 0, len(parts) * len(sites)
        for part in parts:
            source, target = (self.model.batches(side, batch_size) if side else [] for side in part)
            walk = Walk(
                self.components,
                sites,
                source,
                target,
                moved=moved if settings.order == "causal" else set(),
                keep=settings.interval if settings.support == "observed" else None,
                spatial=settings.spatial,
            )
            with closing(walk.steps()) as steps:
                for site, values, move_on in steps:
                    seen[site].add(values, to_cpu=len(parts) > 1)
                    transports[site] = self._fit_site(site, seen[site], (values["source"] or values["target"])[0])
                    if part is parts[-1]:
                        del seen[site]
                    move_on(transports[site])
                    done += 1
                    self.progress(done, total, site.key)
        return transports

    def _fit_site(self, site: Site, seen: SiteValues, like: Values) -> Transport:
        device = like.pooled.device
        source, target = (torch.cat(seen.pooled[side]).to(device) for side in ("source", "target"))
        try:
            return fit_transport(
                source, target, self.settings.estimator, activation_dtype=like.dtype, interval=seen.interval
            )
        except FitError as error:
            raise FitError(f"At site {site.key}: {error}") from error
