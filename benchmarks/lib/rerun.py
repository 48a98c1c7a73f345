"""The baseline of the lockstep fit: the model is rerun for each site, as the paper describes it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from act_core import ActMap, MapError
from act_core.discovery import discover
from act_core.displacement import displace_at
from act_core.fitting import FitModel, MicroBatch
from act_core.fitting.pooling import pool
from act_core.fitting.samples import Sample, Side
from act_core.interception import intercepted, output_tensors, submodules, with_output
from act_core.records import FitRecord
from act_core.settings import ChannelEstimator, Moved
from act_core.sites import Site
from act_core.transport import Transport, fit_transport


class _SiteReached(BaseException):
    """Ends a run right after the site. Not an Exception, so that no model code swallows it."""

    def __init__(self, activation: Tensor) -> None:
        super().__init__()
        self.activation = activation


def fit_by_rerunning(
    model: FitModel[Sample],
    source: Sequence[Sample],
    target: Sequence[Sample],
    sites: str,
    estimator: ChannelEstimator = "linear",
    moved: Moved = "source",
    batch_size: int = 32,
) -> ActMap:
    """Fit the map that `act_core.fit` computes, with one pass of all prompts per site.

    For each site every micro-batch runs from the beginning, steered by the transports of the sites before it, and
    stops there. Everything stays in memory, and the model runs no further than necessary.

    Args:
        model: an adapter.
        source, target: samples of the two sides.
        sites: preset or patterns.
        estimator, moved, batch_size: as in `act_core.settings.FitSettings`.

    Raises:
        MapError: a micro-batch never reaches a site.
    """
    components = list(model.components)
    names = {component.name: submodules(component.module) for component in components}
    sides: dict[Side, list[MicroBatch]] = {
        "source": model.batches(source, batch_size),
        "target": model.batches(target, batch_size),
    }
    transports: dict[Site, Transport] = {}
    with torch.no_grad():
        dry = model.batches(sorted([*source, *target], key=model.cost)[:2], 2)[0]
        for site in discover(components, sites, dry.run, dry.rows):
            modules = {site: names[site.component][site.name] for site in (*transports, site)}
            pooled: dict[Side, Tensor] = {}
            dtype = torch.float32
            for side, batches in sides.items():
                acting = transports if side == "source" or moved == "both" else {}
                values, dtype = _run_up_to(site, modules, acting, batches)
                pooled[side] = torch.cat(values)
            transports[site] = fit_transport(pooled["source"], pooled["target"], estimator, activation_dtype=dtype)
    return ActMap(transports, FitRecord(estimator, moved=moved))


def _run_up_to(
    last: Site, modules: dict[Site, nn.Module], acting: dict[Site, Transport], batches: Sequence[MicroBatch]
) -> tuple[list[Tensor], torch.dtype]:
    """Pooled activations of each batch at a site, and their dtype, while the transports of other sites act."""

    def handle(sites: Sequence[Site], output: Any) -> Any:
        for site in sites:
            tensor = output_tensors(output).get(site.output)
            if tensor is None:
                continue
            if site == last:
                raise _SiteReached(tensor)
            t = acting[site]
            steered = displace_at(tensor, site.layout, "shift", t.omega - 1, t.beta, t.low, t.high)
            output = with_output(output, site.output, steered)
        return output

    by_module: dict[nn.Module, list[Site]] = {}
    for site in (*acting, last):
        by_module.setdefault(modules[site], []).append(site)
    pooled: list[Tensor] = []
    dtype = torch.float32
    with intercepted({module: partial(handle, sites) for module, sites in by_module.items()}):
        for batch in batches:
            try:
                batch.run()
            except _SiteReached as reached:
                pooled.append(pool(reached.activation, last.layout, batch.masks.get(last.component)))
                dtype = reached.activation.dtype
            else:
                raise MapError(f"Some prompts never pass site {last.key}; leave that site out.")
    return pooled, dtype
