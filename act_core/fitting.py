"""Fitting a map: prompts in, ActMap out."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise, zip_longest
from typing import Protocol, get_args

import torch
from torch import Tensor

from .causal import MicroBatch, Side, Values, Walk
from .errors import MapError
from .fingerprints import fingerprint
from .maps import ActMap, FitRecord, Interval, Moved, Order, Site, Spatial, Support
from .memory import MemoryMeter, Need, Plan, freed_at_once
from .sites import Component, discover
from .steering import active_maps
from .transport import Estimator, Transport, fit_transport

logger = logging.getLogger(__name__)

Progress = Callable[[int, int, str], object]


def _no_progress(done: int, total: int, site: str) -> None:
    pass


_OUT_OF_MEMORY = "The model runs out of memory even with two prompts a side; use shorter prompts or smaller pictures."
_VERSIONED = ("torch", "transformers", "diffusers")


class FitModel(Protocol):
    """A model that can be fitted: what an adapter in `act_core.models` provides."""

    @property
    def components(self) -> Sequence[Component]:
        """The parts that may hold sites, in the order in which they run."""
        ...

    def batches(self, prompts: Sequence[str], size: int) -> list[MicroBatch]:
        """All prompts, in micro-batches of at most `size`, ready to run."""
        ...


def fit(
    model: FitModel,
    source: Sequence[str],
    target: Sequence[str],
    *,
    sites: str = "auto",
    estimator: Estimator = "linear",
    order: Order = "causal",
    support: Support = "unbounded",
    interval: Interval = "token",
    moved: Moved = "source",
    spatial: Spatial = "shift",
    batch_size: int = 32,
    memory_budget: int | None = None,
    seed: int = 0,
    progress: Progress = _no_progress,
) -> ActMap:
    """Fit the map that moves the activations of the source prompts onto those of the target prompts.

    A causal fit computes the transport of each site while those of all sites before it already act (paper,
    section 3.3), in one forward pass: see `act_core.causal`. The model is left as it was, whatever happens.

    Args:
        model: an adapter, such as `act_core.models.transformers.TransformersModel`.
        source, target: at least two prompts each; their numbers may differ.
        sites: preset (``norms``, ``attention``, ``mlp``, ``blocks``, ``all``, ``auto``) or comma-separated
            fnmatch patterns on ``component/name``.
        estimator: ``linear``, ``mean`` or ``gaussian``, see `fit_transport`.
        order: ``causal``, or ``simultaneous`` (every site on the untouched model).
        support: ``unbounded`` (to induce something) or ``observed`` (to remove something: the map acts only
            where the activation lies inside the interval seen in the source).
        interval: what that interval spans, single values (``token``) or pooled ones (``pooled``).
        moved: which prompts the maps before a site move in a causal fit: ``source``, or ``both`` as in the
            reference implementation.
        spatial: rule for feature maps, ``shift`` or ``pointwise``.
        batch_size: prompts that run together.
        memory_budget: bytes that the fit may take besides the model; None sets no bound. Prompts that do not fit are
            streamed in groups, and the record of the map says so; such a map is a coarse approximation of the
            exact one. The fit is slower for it on a CPU: see `freed_at_once`.
        seed: orders the prompts of a streamed fit.
        progress: called as ``progress(done, total, site)`` after each site, in the caller's thread. An exception
            it raises cancels the fit.

    Raises:
        MapError: prompts, sites or settings that cannot be fitted, a budget that is too small, or activations
            that are not finite.
    """
    source, target = _checked(source, "source"), _checked(target, "target")
    if sorted(source) == sorted(target):
        raise MapError("Source and target prompts are the same, so there is nothing to fit; change one list.")
    settings = FitRecord(
        estimator, order, support, interval, moved, spatial, "exact", seed, tuple(source), tuple(target)
    )
    _check_settings(settings)
    if batch_size < 1:
        raise MapError(f"The batch size is {batch_size}; it must be at least 1.")

    components = list(model.components)
    with torch.no_grad(), nullcontext() if memory_budget is None else freed_at_once():
        try:
            found, need = _dry_run(model, components, [*source, *target], sites, metered=memory_budget is not None)
        except torch.cuda.OutOfMemoryError as error:
            raise MapError(_OUT_OF_MEMORY) from error
        count = len(source) + len(target)
        if memory_budget is None:
            plan = Plan(count, batch_size)
        else:
            plan = need.plan(count, batch_size, memory_budget, [site.channels for site in found])
        notes: list[str] = []
        while True:
            groups = _groups(source, target, plan.resident, seed)
            try:
                transports = _Fitter(model, components, found, settings, progress).run(groups, plan.batch)
                break
            except torch.cuda.OutOfMemoryError as error:
                plan = plan.halved()
                if plan.resident < 4:
                    raise MapError(_OUT_OF_MEMORY) from error
                torch.cuda.empty_cache()
                notes.append(f"out of memory: started again with {plan.resident} prompts at a time")
                logger.warning("Fit %s.", notes[-1])

    by_component = {c: [s for s in found if s.component == c.name] for c in components}
    record = replace(
        settings,
        source_count=len(source),
        target_count=len(target),
        prompts_sha256=hashlib.sha256(json.dumps([source, target]).encode()).hexdigest(),
        walk="streamed" if len(groups) > 1 and order == "causal" else "exact",
        base={c.name: fingerprint(c.module, c.architecture, own) for c, own in by_component.items() if own},
        versions={name: importlib.metadata.version(name) for name in _VERSIONED if name in sys.modules},
        patches=tuple(title for c in components for title in active_maps(c.module)),
        notes=tuple(notes),
    )
    return ActMap(transports, record)


def _checked(prompts: Sequence[str], side: Side) -> list[str]:
    if isinstance(prompts, str):
        raise MapError(f"The {side} prompts are one string; give a list of prompts.")
    if len(prompts) < 2:
        raise MapError(f"There are {len(prompts)} {side} prompts; a fit needs at least two on each side.")
    for number, prompt in enumerate(prompts, start=1):
        if not prompt.strip():
            raise MapError(f"Number {number} of the {side} prompts is empty; fill it in or take it out.")
    return list(prompts)


def _check_settings(settings: FitRecord) -> None:
    choices = {"estimator": Estimator, "order": Order, "support": Support}
    choices |= {"interval": Interval, "moved": Moved, "spatial": Spatial}
    for name, choice in choices.items():
        if getattr(settings, name) not in get_args(choice):
            raise MapError(
                f"There is no {name} {getattr(settings, name)!r}; choose one of {', '.join(get_args(choice))}."
            )


def _dry_run(
    model: FitModel, components: Sequence[Component], prompts: Sequence[str], sites: str, *, metered: bool
) -> tuple[list[Site], Need]:
    """The sites in execution order, from a run of two prompts, and what a prompt takes at most, if metered."""
    by_length = sorted(prompts, key=len)
    # Prompts whose conditioning differs in shape come in several batches: the first shows all there is to see.
    batch = model.batches(by_length[-2:] if metered else by_length[:2], 2)[0]
    if not metered:
        return discover(components, sites, batch.run, batch.rows), Need(0, 0)
    with MemoryMeter() as meter:
        found = discover(components, sites, batch.run, batch.rows, at_site=meter.sample)
    return found, Need(-(-meter.peak // batch.rows), -(-meter.held // batch.rows))


def _groups(
    source: Sequence[str], target: Sequence[str], resident: int, seed: int
) -> list[tuple[Sequence[str], Sequence[str]]]:
    """Source and target prompts in groups of at most `resident` (four or more), shuffled if there are several."""
    total = len(source) + len(target)
    if resident >= total:
        return [(source, target)]
    generator = torch.Generator().manual_seed(seed)
    shuffled: list[list[str]] = []
    for side in (source, target):
        order = torch.randperm(len(side), generator=generator)
        shuffled.append([side[int(i)] for i in order])
    for count in range(-(-total // resident), total):
        # The first part of a side is the largest, and must be two prompts at least.
        parts = [_split(side, min(count, len(side) - 1)) for side in shuffled]
        empty: Sequence[str] = ()
        groups = [(a, b) for a, b in zip_longest(*parts, fillvalue=empty)]
        if max(len(a) + len(b) for a, b in groups) <= resident:
            return groups
    raise AssertionError("four prompts always make a group")


def _split(items: Sequence[str], parts: int) -> list[Sequence[str]]:
    """Consecutive parts whose sizes differ by at most one, the larger ones first."""
    size, larger = divmod(len(items), parts)
    starts = [size * i + min(i, larger) for i in range(parts + 1)]
    return [items[a:b] for a, b in pairwise(starts)]


class _Seen:
    """The values of one site, from all groups so far; those of several groups wait in main memory."""

    def __init__(self) -> None:
        self.pooled: dict[Side, list[Tensor]] = {"source": [], "target": []}
        self.interval: tuple[Tensor, Tensor] | None = None

    def add(self, values: Mapping[Side, Sequence[Values]], *, to_cpu: bool) -> None:
        for side, batches in values.items():
            for v in batches:
                self.pooled[side].append(v.pooled.cpu() if to_cpu else v.pooled)
                if v.interval is not None:
                    low, high = self.interval or v.interval
                    self.interval = torch.minimum(low, v.interval[0]), torch.maximum(high, v.interval[1])


@dataclass(frozen=True)
class _Fitter:
    """Walks groups of prompts through the model and fits the transport of each site on the way."""

    model: FitModel
    components: Sequence[Component]
    sites: Sequence[Site]
    settings: FitRecord
    progress: Progress

    def run(self, groups: Sequence[tuple[Sequence[str], Sequence[str]]], batch_size: int) -> dict[Site, Transport]:
        """The transports of all sites. Later groups refit each site on all values seen there so far."""
        settings = self.settings
        moved: set[Side] = {"source", "target"} if settings.moved == "both" else {"source"}
        seen = {site: _Seen() for site in self.sites}
        transports: dict[Site, Transport] = {}
        done, total = 0, len(groups) * len(self.sites)
        for group in groups:
            source, target = (self.model.batches(side, batch_size) if side else [] for side in group)
            walk = Walk(
                self.components,
                self.sites,
                source,
                target,
                moved=moved if settings.order == "causal" else set(),
                keep=settings.interval if settings.support == "observed" else None,
                spatial=settings.spatial,
            )
            with closing(walk.steps()) as steps:
                for site, values, move_on in steps:
                    seen[site].add(values, to_cpu=len(groups) > 1)
                    transports[site] = self._fit_site(site, seen[site], (values["source"] or values["target"])[0])
                    if group is groups[-1]:
                        del seen[site]
                    move_on(transports[site])
                    done += 1
                    self.progress(done, total, site.key)
        return transports

    def _fit_site(self, site: Site, seen: _Seen, like: Values) -> Transport:
        device = like.pooled.device
        source, target = (torch.cat(seen.pooled[side]).to(device) for side in ("source", "target"))
        try:
            return fit_transport(
                source, target, self.settings.estimator, activation_dtype=like.dtype, interval=seen.interval
            )
        except MapError as error:
            raise MapError(f"At site {site.key}: {error}") from error
