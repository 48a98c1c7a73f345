"""A temporary file that holds the contents of storages."""

from __future__ import annotations

import ctypes
import tempfile
from collections import defaultdict
from io import RawIOBase
from typing import cast

from torch import UntypedStorage


class TemporaryFile:
    """An unnamed file with places whose sizes are powers of two; it is created when it is first needed.

    Example:
        >>> file = TemporaryFile()
        >>> kept, other = UntypedStorage(4).fill_(7), UntypedStorage(4)
        >>> place = file.write(kept)
        >>> file.read(place, other)
        >>> list(other)
        [7, 7, 7, 7]
        >>> file.close()
    """

    def __init__(self) -> None:
        self._file: RawIOBase | None = None
        self._end = 0
        self._free: defaultdict[int, list[int]] = defaultdict(list)

    def write(self, storage: UntypedStorage) -> int:
        """Write the contents of a storage; returns their place."""
        if self._file is None:
            # Unbuffered, and closed at the end of the walk.
            self._file = cast("RawIOBase", tempfile.TemporaryFile(buffering=0))  # noqa: SIM115
        room = _rounded(storage.nbytes())
        if self._free[room]:
            place = self._free[room].pop()
        else:
            place, self._end = self._end, self._end + room
        self._file.seek(place)
        left = _bytes_of(storage)
        while left:
            left = left[self._file.write(left) :]
        return place

    def read(self, place: int, storage: UntypedStorage) -> None:
        """Fill a storage with what was written."""
        assert self._file is not None
        self._file.seek(place)
        left = _bytes_of(storage)
        while left:
            left = left[self._file.readinto(left) :]

    def free(self, place: int, size: int) -> None:
        """Give a place of so many bytes to others."""
        self._free[_rounded(size)].append(place)

    def close(self) -> None:
        """Delete the file."""
        if self._file is not None:
            self._file.close()


def _rounded(size: int) -> int:
    return 1 << (size - 1).bit_length()


def _bytes_of(storage: UntypedStorage) -> memoryview:
    # Not through NumPy, after which PyTorch refuses to resize the storage.
    return memoryview((ctypes.c_ubyte * storage.nbytes()).from_address(storage.data_ptr())).cast("B")
