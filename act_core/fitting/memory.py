"""Measures the memory of tensors, and plans how many samples fit into a budget."""

from __future__ import annotations

import ctypes
import math
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, UntypedStorage
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

    It does not see scratch space inside an operator, nor tensors that were created before the block, nor what a
    compiled graph does; during a fit, none runs (see `prepared`).

    Attributes:
        alive: current bytes.
        peak: maximum number of bytes so far.
        held: maximum number of bytes at a call of `sample`.
        devices: types of the devices of these tensors.

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
        self.devices: set[str] = set()
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
        given = {storage_key(storage) for storage in _storages((args, kwargs))}
        for storage in _storages(result):
            key = storage_key(storage)
            if key not in given and key not in self._seen:
                self._count(storage, key)
        return result

    def sample(self) -> None:
        """Record how many bytes are alive at this point."""
        self.held = max(self.held, self.alive)

    def _count(self, storage: UntypedStorage, key: int) -> None:
        size = storage.nbytes()
        self._seen.add(key)
        self.devices.add(storage.device.type)
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.alive -= size


def _storages(tree: object) -> Iterator[UntypedStorage]:
    found = (storage_of(leaf) for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))
    return (storage for storage in found if storage is not None)


def storage_of(tensor: Tensor) -> UntypedStorage | None:
    """The storage of a tensor; None if it has none, like a sparse one."""
    # Weights of some libraries answer no questions of Python's.
    with torch._C.DisableTorchFunctionSubclass():  # pyright: ignore[reportPrivateUsage]
        return tensor.untyped_storage() if tensor.layout is torch.strided else None


def storage_key(storage: UntypedStorage) -> int:
    """Identifies a storage as long as it is alive."""
    return storage._cdata  # pyright: ignore[reportPrivateUsage]


@dataclass(frozen=True)
class BatchPlan:
    """How many samples are in the walk at once, and how many of them run together.

    Attributes:
        resident: samples in the walk; the others follow in further groups.
        batch: samples that run together.
        parked: whether samples that wait are parked, so that only one batch takes memory on the device.

    Example:
        >>> BatchPlan(resident=12, batch=32).smaller(parkable=100)
        BatchPlan(resident=12, batch=6, parked=True)
        >>> BatchPlan(resident=12, batch=32).smaller(parkable=0)
        BatchPlan(resident=6, batch=3, parked=False)
    """

    resident: int
    batch: int
    parked: bool = False

    def __str__(self) -> str:
        count = self.batch if self.parked else self.resident
        return f"{count} prompt{'s' * (count > 1)} at a time{', others parked' * self.parked}"

    def smaller(self, parkable: int) -> BatchPlan | None:
        """The plan to try next if memory runs out; None if there is none.

        Samples that wait are parked if so many can be, and then batches are halved. Otherwise the resident samples
        are, but at least four stay, the fewest that can be fitted.
        """
        batch = min(self.batch, self.resident) // 2
        if self.parked:
            return replace(self, batch=batch) if batch else None
        if parkable >= self.resident:
            return BatchPlan(self.resident, max(1, batch), parked=True)
        if self.resident <= 4:
            return None
        resident = max(4, self.resident // 2)
        return BatchPlan(resident, max(1, min(self.batch, resident // 2)))


@dataclass(frozen=True)
class SampleMemory:
    """Maximum number of bytes per sample, while it runs and while it waits at a site.

    Attributes:
        running, waiting: bytes.
        room: bytes that samples which wait may take elsewhere, see `act_core.fitting.room`.

    Example:
        >>> SampleMemory(running=10_000, waiting=1000).plan(40, 8, 1 << 30, [64])
        BatchPlan(resident=40, batch=8, parked=False)
    """

    running: int
    waiting: int
    room: int = 0

    @property
    def parkable(self) -> int:
        """How many samples may be parked."""
        return self.room // max(1, self.waiting)

    def plan(self, prompts: int, batch: int, budget: int, channels: Sequence[int]) -> BatchPlan:
        """The plan that fits the most samples into the budget, parked if they do not fit otherwise.

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
        # Streamed: the values of all sites are kept until the last group.
        kept = 4 * prompts * sum(channels)
        free = budget - SCRATCH - fitting
        plan = self._largest(prompts, batch, free)
        if plan.resident < prompts:
            plan = self._largest(prompts, batch, free - kept)
        if plan.resident < 4:
            alone = self.parkable >= prompts
            least = SCRATCH + fitting + self.running + (0 if alone else kept + 3 * self.waiting)
            raise FitError(
                f"A memory budget of {budget / 2**20:.0f} MiB is too small for {prompts} prompts and {len(channels)} "
                f"sites; allow at least {math.ceil(least / 2**20)} MiB, or fit fewer prompts or sites."
            )
        return plan

    def _largest(self, prompts: int, batch: int, free: int) -> BatchPlan:
        plans = [self._resident(free, batch), self._parked(free, batch)]
        return max((replace(plan, resident=min(prompts, plan.resident)) for plan in plans), key=attrgetter("resident"))

    def _resident(self, free: int, batch: int) -> BatchPlan:
        running, waiting = max(1, self.running), max(1, self.waiting)
        # The batch gets at most half of the budget; the other half is for samples that wait.
        batch = max(1, min(batch, free // (2 * running)))
        return BatchPlan(batch + (free - batch * running) // waiting, batch)

    def _parked(self, free: int, batch: int) -> BatchPlan:
        batch = min(batch, free // max(1, self.running))
        return BatchPlan(self.parkable, batch, parked=True) if batch >= 1 else BatchPlan(0, 1)
