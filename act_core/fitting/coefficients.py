"""The coefficients of a map while they follow a gradient, see `act_core.fitting.refine`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..components import Component
from ..displacement import displace_at
from ..errors import FitError
from ..interception import output_tensors, submodules, with_output
from ..maps import ActMap
from ..settings import Spatial
from ..sites import Site
from ..transport import Transport

# Every position of a feature map is moved: its mean alone would not follow a texture.
SPATIAL: Spatial = "pointwise"


class Coefficients:
    """Gain and offset of one site: an activation ``a`` moves by ``gain * (a - center) + offset * scale``.

    Offsets are in units of the activation: its root mean square when the site first runs. So one learning rate suits
    sites of every scale.

    Args:
        site: where they act.
        start: the transport that they start from; no change if None.
        spatial: rule for feature maps.
        unit: center and scale of each channel, ``[channels]`` each, in place of 0 and the root mean square.

    Attributes:
        site: where they act.
        gain, offset: float32 ``[channels]``; they require gradients.
        dtype: of the activation; None before the site first runs.
    """

    def __init__(
        self,
        site: Site,
        start: Transport | None,
        spatial: Spatial = SPATIAL,
        unit: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        self.site = site
        self.gain = torch.zeros(site.channels, requires_grad=True)
        self.offset = torch.zeros(site.channels, requires_grad=True)
        self.dtype: torch.dtype | None = None
        self._start = start
        self._spatial: Spatial = spatial
        self._unit = unit
        self._center, self._scale = torch.zeros(()), torch.ones(())

    def __call__(self, x: Tensor) -> Tensor:
        """The displaced activation."""
        if self.dtype is None:
            self._measure(x)
        return displace_at(x, self.site.layout, self._spatial, self.gain, self._offset())

    def _offset(self) -> Tensor:
        """In the scale of the activation."""
        return self.offset * self._scale - self.gain * self._center

    def _measure(self, x: Tensor) -> None:
        """Take scale and device from an activation, and the values from the starting map."""
        self.dtype = x.dtype
        with torch.no_grad():
            if self._unit is None:
                scale = x.float().square().mean().sqrt()
                self._scale = torch.where(scale > 0, scale, 1.0)
            else:
                self._center, self._scale = (values.to(x.device) for values in self._unit)
            for tensor in (self.gain, self.offset):
                tensor.data = tensor.data.to(x.device)
            if self._start is not None:
                self.gain.copy_(self._start.omega - 1)
                self.offset.copy_((self._start.beta.to(x.device) + self.gain * self._center) / self._scale)

    @property
    def is_changed(self) -> bool:
        """Whether they do anything. Sites that the loss does not depend on never do, unless a starting map has them."""
        return self._start is not None or bool(self.gain.any()) or bool(self.offset.any())

    def transport(self) -> Transport:
        """What they do now, in float32 on the CPU."""
        if self.dtype is None and self._start is not None:
            return self._start
        with torch.inference_mode(False), torch.no_grad():
            omega, beta = 1 + self.gain, self._offset()
            return Transport(omega.to("cpu", copy=True), beta.to("cpu", copy=True))


def coefficients(sites: Sequence[Site], start: ActMap | None) -> list[Coefficients]:
    """The coefficients of sites, from no change, or from a map.

    Raises:
        FitError: the map has none of the sites, has them with other channels, or cannot be continued.
    """
    known = {} if start is None else {site.key: (site, transport) for site, transport in start.transports.items()}
    if start is not None:
        _check_start(sites, start, known)
    return [Coefficients(site, known[site.key][1] if site.key in known else None) for site in sites]


def _check_start(sites: Sequence[Site], start: ActMap, known: Mapping[str, tuple[Site, Transport]]) -> None:
    shared = [site for site in sites if site.key in known]
    if not shared:
        raise FitError(f"{start.called} has none of the sites that are refined; start from a map with the same sites.")
    for site in shared:
        channels = known[site.key][0].channels
        if channels != site.channels:
            raise FitError(
                f"{start.called} has {channels} channels at {site.key}, the model {site.channels}; start from a map "
                "for this model."
            )
    if start.levels:
        raise FitError(f"{start.called} has several noise levels, which cannot be refined; start from one of them.")
    if conditions := next((found for site in shared if (found := known[site.key][1].conditions)), None):
        raise FitError(f"{start.called} has {conditions[0]}, which cannot be refined; start from an unbounded map.")
    if start.record.spatial != SPATIAL and any(site.layout == "spatial" for site in shared):
        raise FitError(
            f"{start.called} shifts the mean of feature maps, which cannot be refined; fit it with --spatial {SPATIAL}."
        )


class AtSite(Protocol):
    """Something that replaces the activation of a site, such as `Coefficients`."""

    site: Site

    def __call__(self, x: Tensor, /) -> Tensor: ...


def handlers(components: Sequence[Component], adjusted: Sequence[AtSite]) -> dict[nn.Module, Callable[[Any], Any]]:
    """What adds the displacement to the outputs of each module, for `act_core.interception.intercepted`."""
    named = {part.name: submodules(part.module) for part in components}
    places: dict[nn.Module, list[AtSite]] = {}
    for one in adjusted:
        places.setdefault(named[one.site.component][one.site.name], []).append(one)
    return {module: _handler(own) for module, own in places.items()}


def _handler(adjusted: Sequence[AtSite]) -> Callable[[Any], Any]:
    def adjust(output: Any) -> Any:
        for one in adjusted:
            output = with_output(output, one.site.output, one(output_tensors(output)[one.site.output]))
        return output

    return adjust
