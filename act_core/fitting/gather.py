"""Fits one map in several processes: each walks its part of the micro-batches, and all fit every site.

`together` finds the processes of this fit: those of torch.distributed's default group, such as `torchrun` starts, or
only this one. Then::

    agree     refuses prompts, settings, models or sites that are not the same in all processes
    share     the micro-batches of this process
    gathered  at each site, before it is fitted: the values of all processes, in the order of a single process

So every process fits every site from the same values, and all hold the map of a single process, bit for bit. Whether
all have arrived and none has failed is exchanged over gloo, the values over the backend of their device.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from itertools import count as counter
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import FitError, MapError, ProcessError, first_line
from ..interrupts import deferred
from .pooling import Values
from .samples import MicroBatch, Side

Item = TypeVar("Item")
SidesValues = dict[Side, list[Values]]

OUT_OF_MEMORY = "A process runs out of memory; use shorter prompts, a smaller batch size, or more processes."
# Seconds. Until all have loaded the model, and until all have reached a site, in addition to what its run may take.
LOADING = 300.0
PATIENCE = 15.0


def owner(position: int, count: int) -> int:
    """The rank that walks a micro-batch: back and forth, since adapters sort batches by length.

    Example:
        >>> [owner(position, 3) for position in range(8)]
        [0, 1, 2, 2, 1, 0, 0, 1]
    """
    lap, place = divmod(position, count)
    return count - 1 - place if lap % 2 else place


class together:  # noqa: N801  (used like a function)
    """A context manager around a fit, in all processes that take part in it.

    If its block raises an error, the other processes raise a `ProcessError` at the next site. With one process, its
    methods return what they are given.

    Attributes:
        count: number of processes.
        rank: of this one, from 0.

    Raises:
        ProcessError: another process failed, ended, or does not answer.

    Example:
        >>> with together() as processes:
        ...     processes.count, processes.share({"source": [], "target": []})
        (1, {'source': [], 'target': []})
    """

    def __init__(self) -> None:
        self.count, self.rank = 1, 0
        if dist.is_available() and dist.is_initialized():
            self.count, self.rank = dist.get_world_size(), dist.get_rank()
        self._patience = LOADING
        self._group: Any = None

    def __enter__(self) -> together:
        if self.count > 1:
            try:
                self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=LOADING))
            except RuntimeError as error:
                raise ProcessError("Another process of this fit has ended before the fit began.") from error
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if self._group is None:
            return
        if error is not None and not isinstance(error, ProcessError):
            # What fails here is of no interest beside the error itself.
            with contextlib.suppress(ProcessError):
                self._exchange([], _reason(error))
        group, self._group = self._group, None
        dist.destroy_process_group(group)

    def agree(self, seconds: float = LOADING, **facts: object) -> None:
        """Refuse what is not the same in all processes.

        Args:
            seconds: how long a process may take until the next meeting, by its own estimate. By default as long as
                loading: the first run of a model may be slow, too.
            **facts: what must be the same, by its name in the error; compared by its ``repr``.

        Raises:
            FitError: something differs.
        """
        if self.count == 1:
            return
        mine = {name: hashlib.sha256(repr(fact).encode()).hexdigest() for name, fact in facts.items()}
        found = self._exchange((mine, seconds))
        for name in mine:
            if len({hashes[name] for hashes, _ in found}) > 1:
                raise FitError(f"The processes of this fit differ in their {name}; start all of them alike.")
        self._patience = PATIENCE + max(seconds for _, seconds in found)

    def share(self, batches: dict[Side, Sequence[MicroBatch]]) -> dict[Side, Sequence[MicroBatch]]:
        """The part of the micro-batches that this process walks; it may be none."""
        positions = counter()
        return {
            side: [batch for batch in whole if owner(next(positions), self.count) == self.rank]
            for side, whole in batches.items()
        }

    def gathered(self, values: SidesValues) -> SidesValues:
        """The values of all processes at a site, in the order in which a single process would have measured them.

        Args:
            values: of the micro-batches of this process, in the order of `share`.
        """
        if self.count == 1:
            return values
        parts = self._gather_values(values)
        positions = counter()
        found: SidesValues = {"source": [], "target": []}
        for side, listed in found.items():
            waiting = [iter(part[side]) for part in parts]
            for _ in range(sum(len(part[side]) for part in parts)):
                listed.append(next(waiting[owner(next(positions), self.count)]))
        return found

    def _gather_values(self, values: SidesValues) -> list[SidesValues]:
        tensors: list[Tensor] = []

        def outline(tensor: Tensor) -> Tensor:
            tensors.append(tensor)
            return tensor.to("meta")

        mine = _mapped(values, outline)
        own = tensors[0].device if tensors else None
        found = self._exchange((mine, own and own.type, sum(map(_size, tensors))))
        on_gpus = {kind for _, kind, _ in found} - {None} == {"cuda"}
        device = (own or torch.device("cuda")) if on_gpus else torch.device("cpu")
        sizes = [size for _, _, size in found]
        packed = torch.zeros(max(sizes), dtype=torch.uint8, device=device)  # a collective takes one size from all
        start = 0
        for tensor in tensors:
            packed[start : start + _size(tensor)] = tensor.contiguous().flatten().view(torch.uint8)
            start += _size(tensor)
        received = [torch.empty_like(packed) for _ in sizes]
        try:
            # The default group has the backend of the GPUs, and may have no other.
            dist.all_gather(received, packed, group=None if on_gpus else self._group)
        except RuntimeError as error:
            raise _lost("Another process", error) from error
        return [
            _mapped(part, _Unpacker(data.to(own or device))) for (part, _, _), data in zip(found, received, strict=True)
        ]

    def _exchange(self, mine: Item, failure: str = "") -> list[Item]:
        """What each process gives, by rank, once all have arrived.

        Raises:
            ProcessError: another one failed, ended, or did not arrive in time.
        """
        with deferred():  # an interrupt must not leave the others in the middle of it
            self._meet()
            found: list[Any] = [None] * self.count
            try:
                dist.all_gather_object(found, (mine, failure), group=self._group)
            except RuntimeError as error:
                raise _lost("Another process", error) from error
        for rank, (_, reason) in enumerate(found):
            if reason and not failure:
                raise ProcessError(f"Rank {rank} of {self.count} {reason}")
        return [given for given, _ in found]

    def _meet(self) -> None:
        """Wait for all others. torch's own barriers do not name who is missing, or wait too long if it is rank 0."""
        others = [rank for rank in range(self.count) if rank != self.rank]
        tokens = torch.zeros(self.count)
        missing = others[0]
        try:
            works = [(rank, dist.irecv(tokens[rank : rank + 1], rank, self._group)) for rank in others]
            works += [(rank, dist.isend(tokens[self.rank : self.rank + 1], rank, self._group)) for rank in others]
            for missing, work in works:  # noqa: B007  (named in the error)
                if work is not None:
                    work.wait(timedelta(seconds=self._patience))
        except RuntimeError as error:
            raise _lost(f"Rank {missing} of {self.count}", error, self._patience) from error


class _Unpacker:
    """Takes tensors from the bytes that hold them one after the other."""

    def __init__(self, data: Tensor) -> None:
        self._data = data
        self._start = 0

    def __call__(self, outline: Tensor) -> Tensor:
        end = self._start + _size(outline)
        # A copy begins at an address that any dtype can have.
        taken = self._data[self._start : end].clone().view(outline.dtype).view(outline.shape)
        self._start = end
        return taken


def _mapped(values: SidesValues, change: Callable[[Tensor], Tensor]) -> SidesValues:
    """The same values with other tensors, which are changed in a fixed order."""

    def one(v: Values) -> Values:
        interval = None if v.interval is None else (change(v.interval[0]), change(v.interval[1]))
        gated = None if v.gated is None else change(v.gated)
        return replace(v, pooled=change(v.pooled), interval=interval, gated=gated)

    return {side: [one(v) for v in listed] for side, listed in values.items()}


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _reason(error: BaseException) -> str:
    """What the other processes report, after the rank."""
    if isinstance(error, MapError):
        return f"failed: {error}"
    if isinstance(error, KeyboardInterrupt):
        return "was interrupted."
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return f"failed: {OUT_OF_MEMORY}"
    return f"failed: {type(error).__name__}: {first_line(error) if isinstance(error, Exception) else error}"


def _lost(who: str, error: RuntimeError, seconds: float = 0.0) -> ProcessError:
    late = f" does not answer ({seconds:.0f} s)" if "imed out" in str(error) else " has ended"
    return ProcessError(f"{who}{late}, so the fit has ended in all processes.")
