"""One map at one site of a live model."""

from __future__ import annotations

import itertools
import threading
from typing import TYPE_CHECKING

from torch import Tensor

from ..maps import ActMap
from ..sites import Site
from ..transport import Transport
from .rows import BatchRows

if TYPE_CHECKING:
    from .composition import Slot

_numbers = itertools.count()


class Gauge:
    """Measures where a stream of two joined parts is divided, see `act_core.sites.Segment`.

    Attributes:
        tokens: how many tokens its submodule returned last; None before its first run.
    """

    def __init__(self) -> None:
        self.tokens: int | None = None

    def read(self, output: Tensor | None) -> None:
        """Note the number of tokens of an output; None if it is not ``[rows, tokens, channels]``."""
        self.tokens = output.shape[1] if output is not None and output.ndim == 3 else None


class TokenMask(threading.local):
    """Which tokens are not padding in the call of a model that runs, for the gates of its maps.

    Each thread has its own, since the micro-batches of a fit wait for each other inside the model.

    Attributes:
        present: bool ``[rows, tokens]``; None if it is not known.
    """

    present: Tensor | None = None


class Layer:
    """One map at one site.

    Attributes:
        number: unique to each layer.
        act_map, site, rows: what acts, and where.
        level: noise level at which the model runs next.
        bin: number of the bin that acts there.
        strength: 0 switches it off.
        slot: the slot that it acts in; None while it does not act.
        gauge: measures where the tokens that it steers begin or end, once it acts; None if it steers all of them.
        mask: which tokens its gate reads, once it acts; None if it reads all of them.
        is_captured: whether a captured graph runs it, too, which is not counted.
    """

    def __init__(self, act_map: ActMap, site: Site, rows: BatchRows | None) -> None:
        self.number = next(_numbers)
        self.act_map = act_map
        self.site = site
        self.level = 1.0
        self.bin = 0
        self.rows = rows
        self.strength = 0.0
        self.slot: Slot | None = None
        self.gauge: Gauge | None = None
        self.mask: TokenMask | None = None
        self.is_captured = False
        self.counted = 0

    @property
    def transport(self) -> Transport:
        """The transport that acts, without bins."""
        return self.act_map.transports[self.site].bin(self.bin)

    def choose_level(self, level: float, number: int) -> None:
        """Act as at a noise level from now on, with the bin of this number."""
        self.level = level
        if number != self.bin:
            self.bin = number
            if self.slot is not None:
                self.slot.recompose()

    @property
    def fires(self) -> int:
        """How often it has acted; runs of a compiled graph count at least once for each block and strength."""
        if self.slot is not None:
            self.slot.count()
        return self.counted

    def leave(self) -> None:
        """Leave the slot that it acts in, if any."""
        if self.slot is not None:
            self.slot.remove(self)
