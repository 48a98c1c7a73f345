"""One affine displacement of one activation of a live model."""

from __future__ import annotations

import torch
from torch import Tensor

from ..displacement import displace_alike, displace_at, displace_tokens, has_layout
from ..errors import MapMismatchError
from ..gates import mask_of
from ..settings import Spatial
from .layer import Layer

# Gain, offset, low and high.
_Multipliers = tuple[Tensor, Tensor, Tensor | None, Tensor | None]
# The offset that leaves every finite value as it is, bit for bit: 0 would turn -0 into 0.
NOTHING = -0.0


class Step:
    """One affine displacement of one activation, as tensors that a compiled or captured graph reads at each call.

    The coefficients are float32. Where they multiply the activation itself, calls outside compiled graphs read a copy
    in its dtype, which is made once.

    Attributes:
        members: which layers of the slot it is composed of, as indices, without those at strength 0. If there are
            none, the step changes nothing.
        fires: calls outside compiled graphs since they were last counted.
        fired_compiled: whether it was called in a compiled graph since then.
    """

    def __init__(self, layer: Layer, members: list[int], gain: Tensor, offset: Tensor) -> None:
        self.site = layer.site
        self.spatial: Spatial = layer.act_map.record.spatial
        self.rows = layer.rows
        self.gauge = layer.gauge
        self.mask = layer.mask
        self.members = members
        self.fires = 0
        self.fired_compiled = False
        self.gain = gain
        self.offset = offset
        # Of a layer that is not affine, which is the only member then.
        transport = layer.transport
        self.low, self.high = transport.low, transport.high
        self.gate, self.projection = (part and part.packed() for part in (transport.gate, transport.projection))
        # Whether the coefficients have the dtype of the activation, rather than that of a mean or an opening.
        self._is_cast = self.site.layout != "spatial" and self.gate is None and self.projection is None
        self._casts: dict[torch.dtype, _Multipliers] = {}

    def __call__(self, x: Tensor) -> Tensor:
        rows = self.rows
        if rows is not None and rows.parts == ():
            return x
        if not has_layout(x, self.site.layout, self.site.channels):
            raise MapMismatchError(
                f"Site {self.site.key} returns an activation of shape {list(x.shape)}, but the map steers "
                f"{self.site.channels} channels there; fit a map for this model."
            )
        if self.gain.device != x.device:
            self._move_to(x.device)
        mask = None if self.mask is None else mask_of(x, self.mask.present)
        x = self._displaced(x, mask) if rows is None else rows.apply(x, self._displaced, self.site.key, mask)
        if torch.compiler.is_compiling():
            # The graph sets this at each run but never reads it: a counter would cause a recompilation at each call.
            self.fired_compiled = True
        else:
            self.fires += 1
        return x

    def place(self, x: Tensor) -> None:
        """Prepare the coefficients for an activation like this: during a capture they could not be copied."""
        if has_layout(x, self.site.layout, self.site.channels):
            if self.gain.device != x.device:
                self._move_to(x.device)
            if self._is_cast:
                self._cast_to(x.dtype)

    def _displaced(self, x: Tensor, mask: Tensor | None) -> Tensor:
        if self.site.segment is None:
            return self._displaced_part(x, mask)
        return displace_tokens(x, self._tokens(x), self._displaced_part)

    def _displaced_part(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if self._is_cast and not torch.compiler.is_compiling():
            return displace_alike(x, *(self._casts.get(x.dtype) or self._cast_to(x.dtype)))
        conditions = self.low, self.high, self.gate, mask, self.projection
        return displace_at(x, self.site.layout, self.spatial, self.gain, self.offset, *conditions)

    def _tokens(self, x: Tensor) -> slice:
        """The tokens to steer, of a site with a segment."""
        measured = None if self.gauge is None else self.gauge.tokens
        if self.site.segment is None or measured is None or measured > x.shape[1]:
            raise MapMismatchError(
                f"The map steers a part of the tokens at site {self.site.key}, but where it ends was not measured in "
                "this run; fit a map for this model."
            )
        return self.site.segment.of(x.shape[1], measured)

    def _cast_to(self, dtype: torch.dtype) -> _Multipliers:
        if dtype not in self._casts:
            with torch.inference_mode(False):
                low, high = (edge if edge is None else edge.to(dtype) for edge in (self.low, self.high))
                self._casts[dtype] = self.gain.to(dtype), self.offset.to(dtype), low, high
        return self._casts[dtype]

    def _move_to(self, device: torch.device) -> None:
        with torch.inference_mode(False):
            self.gain, self.offset = self.gain.to(device), self.offset.to(device)
            self.low, self.high, self.gate, self.projection = (
                None if tensor is None else tensor.to(device) for tensor in self._conditions
            )
        self._casts.clear()

    def update_from(self, other: Step) -> bool:
        """Copy the values of `other` in place, if it acts on the same activation in the same way."""
        if (self.site, self.spatial) != (other.site, other.spatial):
            return False
        if [tensor is None for tensor in self._conditions] != [tensor is None for tensor in other._conditions]:
            return False
        if self.rows is not other.rows or self.gauge is not other.gauge or self.mask is not other.mask:
            return False
        with torch.inference_mode():
            _copy((self.gain, self.offset, *self._conditions), (other.gain, other.offset, *other._conditions))
            self._update_casts()
        self.members = other.members
        return True

    def empty(self) -> None:
        """Change nothing from now on, in place."""
        with torch.inference_mode():
            self.gain.zero_()
            self.offset.fill_(NOTHING)
            self._update_casts()
        self.members = []

    def _update_casts(self) -> None:
        for dtype, cast in self._casts.items():
            if dtype != self.gain.dtype:  # those in float32 are the coefficients themselves
                _copy(cast, (self.gain, self.offset, self.low, self.high))

    @property
    def _conditions(self) -> tuple[Tensor | None, ...]:
        return self.low, self.high, self.gate, self.projection


def _copy(to: tuple[Tensor | None, ...], values: tuple[Tensor | None, ...]) -> None:
    for mine, theirs in zip(to, values, strict=True):
        if mine is not None and theirs is not None:
            mine.copy_(theirs)
