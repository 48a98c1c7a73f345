"""Parks what waiting micro-batches hold, so that only the one that runs takes memory on the model's device.

    Parking            around the walk: knows all storages that its micro-batches have made
      Lot                around the run of one micro-batch: notes the storages that its operators make
        park               at a site: moves their contents away and resizes them to nothing
        unpark             before it moves on: brings back those that it used since the site before
      an operator that reads a parked storage brings it back first, whoever made it

Tensors, views and Python frames keep their storages and notice nothing. Parameters, buffers, and inputs that several
micro-batches share are made outside their runs and never parked. What a module caches in one micro-batch and another
one reads, such as a table of positions, comes back when it is read, and then stays for good.

Contents of an accelerator are parked in main memory. If the model runs on the CPU, main memory is its device; the
contents then go to an unnamed temporary file, which the system holds in free memory as long as there is some.
"""

from __future__ import annotations

import tempfile
import threading
import weakref
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass

from ..errors import FitError
from ..interrupts import begin, critical, end
from .memory import storage_key, storage_of
from .room import PARKED_DEVICES
from .temporary_file import TemporaryFile


@dataclass(eq=False)
class _Tracked:
    """A storage that a micro-batch has made.

    Attributes:
        storage: the storage.
        lot: of the micro-batch; None once others have read it, and it stays.
        used: whether an operator has made or read it since it was parked last.
        size: in bytes, while it is parked.
        place: where its contents are; None if they are in the storage.
    """

    storage: weakref.ref[UntypedStorage]
    lot: Lot | None
    used: bool = True
    size: int = 0
    place: UntypedStorage | int | None = None


class Parking(TorchDispatchMode):
    """A context manager around a walk whose waiting micro-batches are parked.

    It does not see the tensors that a compiled graph makes; during a fit, none runs (see `prepared`). Operators of the
    thread that enters it may read what is parked. Afterwards nothing is parked.

    Example:
        >>> with Parking() as parking:
        ...     with parking.lot() as lot:
        ...         x = torch.ones(256) + 1
        ...         lot.park()
        ...         size = x.untyped_storage().nbytes()
        ...         lot.unpark()
        >>> size, float(x.sum())
        (0, 512.0)
    """

    def __init__(self) -> None:
        super().__init__()
        self._tracked: dict[int, _Tracked] = {}
        self._file = TemporaryFile()
        self._stream: torch.cuda.Stream | None = None
        # Micro-batches whose walk has ended unwind at the same time, and may read what is parked.
        self._lock = threading.RLock()

    @critical
    def __enter__(self) -> Parking:
        self._began = begin()
        if torch.cuda.is_initialized():
            self._stream = torch.cuda.current_stream()
        super().__enter__()
        return self

    @critical
    def __exit__(self, *error: Any) -> None:
        try:
            super().__exit__(*error)
            # What is still alive was cached in a module, or belongs to an error that the caller may inspect.
            for tracked in self._tracked.values():
                self.bring_back(tracked)
        finally:
            self._tracked.clear()
            self._file.close()
            # PyTorch keeps pinned memory, which others need.
            empty_cache = getattr(getattr(torch, "accelerator", None), "empty_host_cache", None)
            if empty_cache is not None and torch.cuda.is_initialized():
                empty_cache()
            end(self._began)

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        for _ in self.read((*args, *(kwargs or {}).values()), None):
            pass
        return func(*args, **(kwargs or {}))

    def lot(self) -> Lot:
        """The dispatch mode of one micro-batch."""
        return Lot(self)

    def read(self, arguments: Sequence[Any], lot: Lot | None) -> Generator[int, None, None]:
        """The keys of the storages that an operator is about to read, brought back if they are parked."""
        for storage, _ in _storages(arguments):
            key = storage_key(storage)
            tracked = self._tracked.get(key)
            if tracked is not None and tracked.storage() is storage:
                tracked.used = True
                if tracked.lot is not lot:
                    tracked.lot = None
                if tracked.place is not None:
                    self.bring_back(tracked)
            yield key

    def track(self, results: Sequence[Any], given: set[int], lot: Lot) -> Generator[tuple[int, _Tracked], None, None]:
        """Track the storages that an operator has made."""
        for storage, tensor in _storages(results):
            key = storage_key(storage)
            if key in given or type(tensor) is not Tensor or storage.device.type not in PARKED_DEVICES:
                continue
            known = self._tracked.get(key)
            if known is None or known.storage() is not storage:
                if known is not None:
                    self.bring_back(known)  # gone while it was parked: frees its place
                self._tracked[key] = _Tracked(weakref.ref(storage), lot)
                yield key, self._tracked[key]

    def forget(self, key: int, tracked: _Tracked) -> None:
        """No longer track a storage that is gone, or that stays."""
        if self._tracked.get(key) is tracked and tracked.place is None:
            del self._tracked[key]

    def move_away(self, leaving: Iterable[_Tracked]) -> None:
        """Park storages."""
        found = [(tracked, tracked.storage()) for tracked in leaving]
        moved = [(tracked, storage) for tracked, storage in found if storage is not None and storage.resizable()]
        devices = {storage.device for _, storage in moved}
        _synchronise(devices)
        for tracked, storage in moved:
            tracked.size, tracked.used = storage.nbytes(), False
            if tracked.size:
                with self._lock:
                    tracked.place = self._file.write(storage) if storage.device.type == "cpu" else _copied(storage)
        _synchronise(devices)  # now the copies are complete
        for _, storage in moved:
            storage.resize_(0)

    def bring_back(self, tracked: _Tracked, *, waits: bool = True) -> None:
        """Bring back a parked storage, if it is still needed.

        Args:
            tracked: the storage.
            waits: whether it may be read from other streams than that of the walk.
        """
        with self._lock, torch.cuda.stream(self._stream):
            place, storage = tracked.place, tracked.storage()
            if place is None:
                return
            if storage is not None:
                storage.resize_(tracked.size)
                if isinstance(place, int):
                    self._file.read(place, storage)
                else:
                    storage.copy_(place, non_blocking=True)
                    if waits:
                        _synchronise({storage.device})
            tracked.place = None
            if isinstance(place, int):
                self._file.free(place, tracked.size)


class Lot(TorchDispatchMode):
    """The storages of one micro-batch; a context manager around its run, in its own thread.

    See `Parking` for an example.
    """

    def __init__(self, parking: Parking) -> None:
        super().__init__()
        self._parking = parking
        self._made: dict[int, _Tracked] = {}
        self._left: list[_Tracked] = []
        self._moving = False

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if self._moving:
            return func(*args, **kwargs)
        given = set(self._parking.read((*args, *kwargs.values()), self))
        result = func(*args, **kwargs)
        self._made.update(self._parking.track((result,), given, self))
        return result

    def park(self, keep: Iterable[Tensor] = ()) -> None:
        """Park what the micro-batch has made and still holds.

        Args:
            keep: tensors that others read while it waits; they are never parked.

        Raises:
            FitError: the folder for temporary files cannot be written to.
        """
        kept = {storage_key(storage) for storage, _ in _storages(keep)}
        resident: list[_Tracked] = []
        for key, tracked in list(self._made.items()):
            if tracked.storage() is None:
                self._parking.bring_back(tracked)  # frees its place
            if tracked.storage() is None or tracked.lot is None or key in kept:
                del self._made[key]
                self._parking.forget(key, tracked)
            elif tracked.place is None:
                resident.append(tracked)
        # What no operator used between two sites, such as the skip connections of a UNet, stays away until it is read.
        self._left = [tracked for tracked in resident if tracked.used]
        self._moving = True
        try:
            self._parking.move_away(resident)
        except OSError as error:
            raise FitError(
                f"Cannot write to the folder for temporary files, {tempfile.gettempdir()} ({error.strerror}); free "
                "some space there, set TMPDIR to another folder, or give a larger memory budget."
            ) from error
        finally:
            self._moving = False

    def unpark(self) -> None:
        """Bring back what the micro-batch is likely to use before the next site."""
        self._moving = True
        try:
            for tracked in self._left:
                self._parking.bring_back(tracked, waits=False)
            self._left.clear()
        finally:
            self._moving = False


def _copied(storage: UntypedStorage) -> UntypedStorage:
    """A copy in main memory, which is complete once the device is synchronised."""
    size = storage.nbytes()
    try:
        copy = torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=True)
    except RuntimeError:  # the system pins no more memory
        copy = torch.empty(size, dtype=torch.uint8, device="cpu")
    return copy.untyped_storage().copy_(storage, non_blocking=True)


def _synchronise(devices: Iterable[torch.device]) -> None:
    for device in devices:
        if device.type == "cuda":
            torch.cuda.synchronize(device)


def _storages(values: Iterable[Any]) -> Generator[tuple[UntypedStorage, Tensor], None, None]:
    """The storages of the tensors among the arguments or the results of an operator."""
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from _storages(cast("Sequence[Any]", value))
        elif isinstance(value, Tensor):
            if is_traceable_wrapper_subclass(value):
                names, _ = value.__tensor_flatten__()
                yield from _storages([getattr(value, name) for name in names])
            elif (storage := storage_of(value)) is not None:
                yield storage, value
