"""Measures the memory of tensors, and plans how many samples fit into a budget."""

from __future__ import annotations

import ctypes
import math
import os
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..errors import FitError
from ..interrupts import begin, critical, end

# Memory that the meter does not see: the packing buffers of matrix products, the stacks of threads. On two cores it
# varies by tens of MiB (`benchmarks/fit_memory.py`).
SCRATCH = 72 << 20
# An interrupt that is raised in a weak reference's callback is lost; this is where the meter's callbacks begin.
critical(weakref.finalize.__call__)  # pyright: ignore[reportUnknownArgumentType]
_M_MMAP_THRESHOLD = -3  # in glibc's malloc.h


def free_at_once() -> None:
    """Return memory to the system as soon as a tensor of 64 KiB or more is freed, until `free_as_usual`.

    glibc maps large blocks one by one, but raises its threshold for large blocks whenever one is freed. Smaller blocks
    come from a heap per thread, whose gaps stay resident: several times the size of the tensors. A fixed threshold
    costs time, so only fits with a budget use it. Without glibc, this does nothing.
    """
    _set_mmap_threshold(64 << 10)


def free_as_usual() -> None:
    """Set the threshold to 32 MiB, where glibc itself stops raising it."""
    _set_mmap_threshold(32 << 20)


def _set_mmap_threshold(size: int) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, size)


class MemoryMeter(TorchDispatchMode):
    """A context manager that counts the bytes of the tensors that operators create in its block and that are alive.

    It does not see scratch space inside an operator, nor tensors that were created before the block.

    Attributes:
        alive: current bytes.
        peak: maximum number of bytes so far.
        held: maximum number of bytes at a call of `sample`.

    Example:
        >>> import torch
        >>> with MemoryMeter() as meter:
        ...     kept = torch.ones(256) + 1
        >>> meter.alive, meter.peak
        (1024, 2048)
    """

    def __init__(self) -> None:
        super().__init__()
        self.alive = 0
        self.peak = 0
        self.held = 0
        self._seen: set[int] = set()

    @critical
    def __enter__(self) -> MemoryMeter:
        self._began = begin()
        super().__enter__()
        return self

    @critical
    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        end(self._began)

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {_storage_key(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                key = _storage_key(tensor)
                if key not in given and key not in self._seen:
                    self._count(tensor, key)
        return result

    def sample(self) -> None:
        """Record how many bytes are alive at this point."""
        self.held = max(self.held, self.alive)

    def _count(self, tensor: Tensor, key: int) -> None:
        storage = tensor.untyped_storage()
        size = storage.nbytes()
        self._seen.add(key)
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.alive -= size


def _storage_key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage]


@dataclass(frozen=True)
class BatchPlan:
    """How many samples are in the walk at once, and how many of them run together.

    Example:
        >>> BatchPlan(resident=12, batch=32).halved()
        BatchPlan(resident=6, batch=3)
    """

    resident: int
    batch: int

    def halved(self) -> BatchPlan:
        """Half of the resident samples, but at least four, the fewest that can be fitted, unless four failed."""
        resident = self.resident // 2
        if self.resident > 4:
            resident = max(4, resident)
        return BatchPlan(resident, max(1, min(self.batch, resident // 2)))


@dataclass(frozen=True)
class SampleMemory:
    """Maximum number of bytes per sample, while it runs and while it waits at a site.

    Example:
        >>> SampleMemory(running=10_000, waiting=1000).plan(40, 8, 1 << 30, [64])
        BatchPlan(resident=40, batch=8)
    """

    running: int
    waiting: int

    def plan(self, prompts: int, batch: int, budget: int, channels: Sequence[int]) -> BatchPlan:
        """The plan that fits the most samples into the budget.

        Args:
            prompts: how many samples there are.
            batch: how many may run together.
            budget: bytes.
            channels: number of channels of each site.

        Raises:
            FitError: the budget is too small for two samples per side.
        """
        # Sorting and coupling one site's values takes about eight float64 copies of them.
        fitting = 8 * 8 * prompts * max(channels)
        free = budget - SCRATCH - fitting
        plan = self._within(free, batch)
        if plan.resident >= prompts:
            return BatchPlan(prompts, plan.batch)
        # Streamed: the values of all sites are kept until the last group.
        kept = 4 * prompts * sum(channels)
        plan = self._within(free - kept, batch)
        if plan.resident < 4:
            least = SCRATCH + fitting + kept + self.running + 3 * self.waiting
            raise FitError(
                f"A memory budget of {budget / 2**20:.0f} MiB is too small for {prompts} prompts and {len(channels)} "
                f"sites; allow at least {math.ceil(least / 2**20)} MiB, or fit fewer prompts or sites."
            )
        return plan

    def _within(self, free: int, batch: int) -> BatchPlan:
        running, waiting = max(1, self.running), max(1, self.waiting)
        # The batch gets at most half of the budget; the other half is for samples that wait.
        batch = max(1, min(batch, free // (2 * running)))
        return BatchPlan(batch + (free - batch * running) // waiting, batch)
