"""The lockstep walk: many micro-batches pass the same sites together, one at a time.

Each micro-batch runs the model in its own thread, and one thread at a time runs each replica of the model::

    Walk.run          the scheduler, in the caller's thread
      for each site:
        Worker.advance     each micro-batch in turn (of each replica, at the same time) runs to the site
          Walk._visit        called by the patched module, in the worker's thread: measures the activation, ...
          Worker.wait_at_site    ... and waits there
        Worker.arrive      the scheduler waits for it
        fit_site           now the values of all samples are known: returns the transport of the site
      the micro-batches continue with the transported activations (`Walk._visit` returns them)

So one forward pass replaces one pass per site. However the walk ends, even by Ctrl-C, all threads end and the modules
are restored.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import nullcontext
from functools import partial
from itertools import zip_longest
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..components import Component
from ..displacement import displace_at, displace_tokens
from ..errors import FitError
from ..gates import mask_of
from ..interception import intercepted, output_tensors, submodules, with_output
from ..settings import Interval, Spatial
from ..sites import Site
from ..transport import Transport
from .parking import Parking
from .pooling import Values, extremes, pool
from .samples import MicroBatch, Side
from .workers import GaugePlace, Worker, started, thread_state

FitSite = Callable[[Site, dict[Side, list[Values]]], Transport]


class _Coefficients(NamedTuple):
    """What a transport gives to `displace_at`."""

    gain: Tensor
    offset: Tensor
    low: Tensor | None
    high: Tensor | None
    gate: Tensor | None
    projection: Tensor | None

    @classmethod
    def of(cls, t: Transport) -> _Coefficients:
        gate, projection = (part and part.packed() for part in (t.gate, t.projection))
        return cls(t.omega - 1, t.beta, t.low, t.high, gate, projection)

    def to(self, device: torch.device) -> _Coefficients:
        return _Coefficients(*(part if part is None else part.to(device) for part in self))  # pyright: ignore


class Walk:
    """Source and target micro-batches that walk past the sites of a model in lockstep.

    Args:
        components: parts of the pipeline that hold the sites.
        sites: in execution order.
        source, target: micro-batches of each side.
        moved: sides that the transports steer during the walk; empty for a simultaneous fit.
        keep: which intervals of the source values to keep, if any.
        gated: whether to keep what gates read.
        spatial: rule for feature maps.
        parks: whether micro-batches are parked while they wait, see `act_core.fitting.parking`. Then only one runs at a
            time, whatever its replica.
        replicas: the components of further copies of the model, by `MicroBatch.replica` - 1.
    """

    def __init__(
        self,
        components: Sequence[Component],
        sites: Sequence[Site],
        source: Sequence[MicroBatch],
        target: Sequence[MicroBatch],
        *,
        moved: Set[Side],
        keep: Interval | None,
        gated: bool,
        spatial: Spatial,
        parks: bool = False,
        replicas: Sequence[Sequence[Component]] = (),
    ) -> None:
        self._components = {component.name: component for component in components}
        self._copies = components, *replicas
        self._sites = sites
        self._index = {site.key: index for index, site in enumerate(sites)}
        sides: dict[Side, Sequence[MicroBatch]] = {"source": source, "target": target}
        self._batches: list[tuple[MicroBatch, Side]] = [(b, side) for side, batches in sides.items() for b in batches]
        self._moved = moved
        self._keep = keep
        self._gated = gated
        self._spatial: Spatial = spatial
        self._parking = Parking() if parks else None
        # By site, on each device that it runs on: what `displace_at` takes.
        self._coefficients: list[dict[torch.device, _Coefficients]] = []
        self._workers: list[Worker] = []

    def run(self, fit_site: FitSite) -> None:
        """Walk past all sites.

        Args:
            fit_site: called in this thread, at each site in turn, with the values of both sides; returns the
                transport of the site.

        Raises:
            FitError: not all samples pass all sites, or in the same order.
            BaseException: whatever `fit_site` or a run of the model raises; it ends all runs.
        """
        state = thread_state()
        parking = self._parking
        workers = self._workers = [
            Worker(batch, side, state, parking and parking.lot()) for batch, side in self._batches
        ]
        with intercepted(self._handlers()), parking or nullcontext(), started(workers):
            for index, site in enumerate(self._sites):
                for group in self._groups():
                    for worker in group:
                        worker.advance()
                    for worker in group:
                        worker.arrive()
                        if worker.values is None or worker.position != index:
                            raise FitError(
                                f"Some {worker.side} prompts never run site {site.key} with one row for each prompt, "
                                "unlike the first prompts; choose other sites, or leave those prompts out."
                            )
                self._coefficients.append(self._fitted(site, fit_site))

    def _groups(self) -> Iterator[list[Worker]]:
        """All workers, those that run at the same time together: at most one of each replica."""
        if self._parking is not None:
            yield from ([worker] for worker in self._workers)
            return
        lanes: defaultdict[int, list[Worker]] = defaultdict(list)
        for worker in self._workers:
            lanes[worker.batch.replica].append(worker)
        for group in zip_longest(*lanes.values()):
            yield [worker for worker in group if worker is not None]

    def _fitted(self, site: Site, fit_site: FitSite) -> dict[torch.device, _Coefficients]:
        """Fit the transport of the site at which all wait, and copy it to the device of each."""
        values: dict[Side, list[Values]] = {"source": [], "target": []}
        devices: dict[torch.device, None] = {}
        for worker in self._workers:
            assert worker.values is not None
            devices[worker.values.pooled.device] = None
            values[worker.side].append(worker.values.to(next(iter(devices))))
        coefficients = _Coefficients.of(fit_site(site, values))
        return {device: coefficients.to(device) for device in devices}

    def _handlers(self) -> dict[nn.Module, Callable[[Any], Any]]:
        sites: defaultdict[nn.Module, list[Site]] = defaultdict(list)
        gauges: defaultdict[nn.Module, set[GaugePlace]] = defaultdict(set)
        for components in self._copies:
            modules = {component.name: submodules(component.module) for component in components}
            for site in self._sites:
                own = sites[modules[site.component][site.name]]
                if site not in own:  # copies may share a module
                    own.append(site)
                if site.segment is not None:
                    module = modules[site.component][site.segment.gauge]
                    gauges[module].add((site.component, site.segment.gauge, site.segment.output))
        return {module: partial(self._pass, sites[module], gauges[module]) for module in {*sites, *gauges}}

    def _current(self) -> Worker | None:
        """The worker whose thread this is; None elsewhere, as in a progress callback that draws a preview."""
        return next((worker for worker in self._workers if worker.is_current_thread()), None)

    def _pass(self, sites: Sequence[Site], gauges: Set[GaugePlace], output: Any) -> Any:
        worker = self._current()
        if gauges and worker is not None:
            tensors = output_tensors(output)
            found = {place: tensors.get(place[2]) for place in gauges}
            worker.gauges.update({place: x.shape[1] for place, x in found.items() if x is not None and x.ndim == 3})
        for site in sites:
            tensor = output_tensors(output).get(site.output)
            if tensor is not None:
                output = with_output(output, site.output, self._visit(site, tensor))
        return output

    def _visit(self, site: Site, x: Tensor) -> Tensor:
        worker, index = self._current(), self._index[site.key]
        if worker is None:
            return x
        if worker.position < index:
            if x.shape[0] == worker.batch.rows:
                worker.passed[site.key] += 1
            if worker.passed[site.key] <= self._components[site.component].passes.get(site.name, 0):
                return x
            if x.shape[0] != worker.batch.rows or index != worker.position + 1:
                due = self._sites[worker.position + 1].key
                raise FitError(
                    f"Some {worker.side} prompts come to site {site.key} before site {due}, or never run that one, "
                    "unlike the first prompts; choose other sites, or leave those prompts out."
                )
            tokens = self._tokens(site, x, worker)
            worker.wait_at_site(self._measure(site, x if tokens is None else x[:, tokens], worker))
        # A later pass of the same site, as in a second denoising step, is steered but not measured.
        if worker.side not in self._moved:
            return x
        on_device = self._coefficients[index][x.device]
        present = self._present(site, x, worker)
        return displace_tokens(
            x,
            self._tokens(site, x, worker),
            lambda part: displace_at(part, site.layout, self._spatial, **on_device._asdict(), present=present),
        )

    def _tokens(self, site: Site, x: Tensor, worker: Worker) -> slice | None:
        """The tokens that the site reads; None for all."""
        if site.segment is None:
            return None
        measured = worker.gauges.get((site.component, site.segment.gauge, site.segment.output))
        if measured is None or not 0 < measured < x.shape[1]:
            raise FitError(
                f"The text and picture tokens at site {site.key} cannot be told apart for some prompts; choose other "
                "sites, or use prompts of one length."
            )
        return site.segment.of(x.shape[1], measured)

    def _measure(self, site: Site, x: Tensor, worker: Worker) -> Values:
        mask = worker.batch.masks.get(site.component)
        if site.layout == "tokens" and mask is not None and mask.shape[1] != x.shape[1]:
            raise FitError(
                f"Site {site.key} has {x.shape[1]} tokens where its prompt has {mask.shape[1]}; choose other sites."
            )
        mask = mask if mask is None else mask.to(x.device)
        pooled = pool(x, site.layout, mask)
        interval = None
        if self._keep is not None and worker.side == "source":
            means = site.layout == "spatial" and self._spatial == "shift"
            if self._keep == "pooled" or means:
                interval = pooled.amin(0), pooled.amax(0)
            else:
                interval = extremes(x, site.layout, mask)
        gated = None
        if self._gated:
            gated = pool(x, site.layout, self._present(site, x, worker))
        return Values(pooled, interval, gated, x.dtype)

    def _present(self, site: Site, x: Tensor, worker: Worker) -> Tensor | None:
        """The mask of the tokens that a gate reads; None for all."""
        return mask_of(x, worker.batch.present.get(site.component)) if site.layout == "tokens" else None
