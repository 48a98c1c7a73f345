"""Sites that follow a gradient and whose pooled values are measured, see `act_core.fitting.end_to_end`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..components import Component
from ..settings import Spatial
from ..sites import Site
from ..transport import MIN_DEVIATION, Transport
from .coefficients import Coefficients, handlers
from .pooling import pool
from .samples import MicroBatch

# What is measured: values without steering, those that a steered site returns, or those that it gets.
Measured = Literal["unsteered", "after", "before"]


class MeasuredSites:
    """The sites of a model with their coefficients, which start from a map.

    Offsets are in units of the spread of their channel: the root of the sum of its squared shift and deviation. So one
    learning rate suits channels of every scale.

    Args:
        components: of the model.
        start: transports with statistics, by site in the order in which they run.
        spatial: rule for feature maps.

    Attributes:
        sites: their coefficients.
        parameters: gain and offset of each.
        recorded: pooled values of the sites that a batch has passed so far, see `act_core.fitting.checkpoints`.
    """

    def __init__(self, components: Sequence[Component], start: Mapping[Site, Transport], spatial: Spatial) -> None:
        self.sites = [_coefficients(site, transport, spatial) for site, transport in start.items()]
        self.parameters = [tensor for one in self.sites for tensor in (one.gain, one.offset)]
        self.recorded: list[Tensor] = []
        self._components = components
        self._passed: list[Site] = []
        self._places: list[int] = []
        self._batch: MicroBatch | None = None
        self._measured: Measured = "unsteered"

    def handlers(self) -> dict[nn.Module, Callable[[Any], Any]]:
        """What steers and measures the outputs of each module, for `act_core.interception.intercepted`."""
        return handlers(self._components, [_Visit(one, self._visit) for one in self.sites])

    def values(self, batch: MicroBatch, measured: Measured = "after") -> list[Tensor]:
        """Run a batch; returns the pooled values ``[rows, channels]`` of each site, for gradients, too."""
        self._batch, self._measured = batch, measured
        self.recorded.clear()
        if not self._places:  # an earlier run may have failed half way
            self._passed.clear()
        batch.run()
        values = list(self.recorded)
        self.recorded.clear()
        if not self._places:
            self._places = [self._place(one.site) for one in self.sites]
        return [values[place] for place in self._places]

    def _visit(self, one: Coefficients, x: Tensor) -> Tensor:
        returned = x if self._measured == "unsteered" else one(x)
        batch = self._batch
        if batch is not None and x.shape[0] == batch.rows:
            mask = batch.masks.get(one.site.component) if one.site.layout == "tokens" else None
            read = x if self._measured == "before" else returned
            self.recorded.append(pool(read, one.site.layout, mask if mask is None else mask.to(x.device)))
            if not self._places:
                self._passed.append(one.site)
        return returned

    def _place(self, site: Site) -> int:
        """Which of the recorded values are those of a site: of its first pass that counts."""
        passes = {part.name: part.passes.get(site.name, 0) for part in self._components}
        places = [place for place, passed in enumerate(self._passed) if passed == site]
        return places[passes[site.component]]


class _Visit:
    """Stands in for coefficients where a module calls them."""

    def __init__(self, one: Coefficients, visit: Callable[[Coefficients, Tensor], Tensor]) -> None:
        self.site = one.site
        self._one = one
        self._visit = visit

    def __call__(self, x: Tensor) -> Tensor:
        return self._visit(self._one, x)


def _coefficients(site: Site, start: Transport, spatial: Spatial) -> Coefficients:
    assert start.statistics is not None
    source_mean, source_std, target_mean, _ = start.statistics
    spread = torch.hypot(source_std, target_mean - source_mean).clamp(min=MIN_DEVIATION)
    return Coefficients(site, start, spatial, (source_mean, spread))
