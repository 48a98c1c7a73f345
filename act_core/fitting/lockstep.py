"""The lockstep walk: many micro-batches pass the same sites together, one at a time.

Each micro-batch runs the model in its own thread, and only one thread runs at a time::

    Walk.run          the scheduler, in the caller's thread
      for each site:
        Worker.advance     each micro-batch in turn runs until it reaches the site
          Walk._visit        called by the patched module, in the worker's thread: measures the activation, ...
          Worker.wait_at_site    ... and waits there
        fit_site           now the values of all samples are known: returns the transport of the site
      the micro-batches continue with the transported activations (`Walk._visit` returns them)

So one forward pass replaces one pass per site. However the walk ends, even by Ctrl-C, all threads end and the modules
are restored.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence, Set
from contextlib import nullcontext
from functools import partial
from typing import Any

from torch import Tensor, nn

from ..components import Component
from ..displacement import displace_at, displace_tokens
from ..errors import FitError
from ..interception import intercepted, output_tensors, submodules, with_output
from ..settings import Interval, Spatial
from ..sites import Site
from ..transport import Transport
from .parking import Parking
from .pooling import Values, extremes, pool
from .samples import MicroBatch, Side
from .workers import GaugePlace, Worker, started, thread_state

FitSite = Callable[[Site, dict[Side, list[Values]]], Transport]


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
        parks: whether micro-batches are parked while they wait, see `act_core.fitting.parking`.
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
    ) -> None:
        self._components = {component.name: component for component in components}
        self._sites = sites
        self._index = {site.key: index for index, site in enumerate(sites)}
        sides: dict[Side, Sequence[MicroBatch]] = {"source": source, "target": target}
        self._batches: list[tuple[MicroBatch, Side]] = [(b, side) for side, batches in sides.items() for b in batches]
        self._moved = moved
        self._keep = keep
        self._gated = gated
        self._spatial: Spatial = spatial
        self._parking = Parking() if parks else None
        self._transports: list[Transport] = []
        self._running: Worker | None = None

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
        workers = [Worker(batch, side, state, parking and parking.lot()) for batch, side in self._batches]
        with intercepted(self._handlers()), parking or nullcontext(), started(workers):
            for index, site in enumerate(self._sites):
                values: dict[Side, list[Values]] = {"source": [], "target": []}
                for worker in workers:
                    self._running = worker
                    worker.advance()
                    if worker.values is None or worker.position != index:
                        raise FitError(
                            f"Some {worker.side} prompts never run site {site.key} with one row for each prompt, "
                            "unlike the first prompts; choose other sites, or leave those prompts out."
                        )
                    values[worker.side].append(worker.values)
                self._transports.append(fit_site(site, values))

    def _handlers(self) -> dict[nn.Module, Callable[[Any], Any]]:
        sites: defaultdict[nn.Module, list[Site]] = defaultdict(list)
        gauges: defaultdict[nn.Module, set[GaugePlace]] = defaultdict(set)
        modules = {name: submodules(component.module) for name, component in self._components.items()}
        for site in self._sites:
            sites[modules[site.component][site.name]].append(site)
            if site.segment is not None:
                module = modules[site.component][site.segment.gauge]
                gauges[module].add((site.component, site.segment.gauge, site.segment.output))
        return {module: partial(self._pass, sites[module], gauges[module]) for module in {*sites, *gauges}}

    def _pass(self, sites: Sequence[Site], gauges: Set[GaugePlace], output: Any) -> Any:
        worker = self._running
        if gauges and worker is not None and worker.is_current_thread():
            tensors = output_tensors(output)
            found = {place: tensors.get(place[2]) for place in gauges}
            worker.gauges.update({place: x.shape[1] for place, x in found.items() if x is not None and x.ndim == 3})
        for site in sites:
            tensor = output_tensors(output).get(site.output)
            if tensor is not None:
                output = with_output(output, site.output, self._visit(site, tensor))
        return output

    def _visit(self, site: Site, x: Tensor) -> Tensor:
        worker, index = self._running, self._index[site.key]
        if worker is None or not worker.is_current_thread():
            return x  # not a worker: for example a progress callback that draws a preview
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
        t = self._transports[index]
        gate, projection = (part and part.packed() for part in (t.gate, t.projection))
        present = self._present(site, x, worker)
        return displace_tokens(
            x,
            self._tokens(site, x, worker),
            lambda part: displace_at(
                part, site.layout, self._spatial, t.omega - 1, t.beta, t.low, t.high, gate, present, projection
            ),
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
        present = worker.batch.present.get(site.component)
        return None if present is None or site.layout != "tokens" else present.to(x.device)
