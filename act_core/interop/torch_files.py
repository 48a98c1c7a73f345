"""Reads files of `torch.save` that hold tensors alone, in bounded memory.

`torch.load` with ``weights_only=True`` runs no code, but unpacks compressed entries to any size, and a small pickle can
make it crash or allocate gigabytes. So the container is checked first, and the pickle, see `act_core.interop.pickles`.
"""

from __future__ import annotations

import io
import pickle
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from ..errors import AGAIN, MapFileError, first_line
from ..mapfile.format import MAX_CHANNELS
from .pickles import check_pickle

# Far above the vectors of the largest language models, which have a few megabytes.
MAX_FILE_BYTES = 1 << 26
_MAX_ENTRIES = 10_000
_ZIP = b"PK\x03\x04"
_ENTRY = re.compile(r"[^/]*/(data\.pkl|version|byteorder|data/[0-9]{1,6})")

# What the unpickler raises for damaged files; not MemoryError, which the checks prevent.
_DAMAGE = (
    pickle.UnpicklingError, RuntimeError, ValueError, KeyError, IndexError, AttributeError, TypeError, EOFError,
    OverflowError, AssertionError, struct.error,
)  # fmt: skip


def read_bytes(path: Path) -> bytes:
    """The content of a file of vectors.

    Raises:
        MapFileError: it is too large to be one.
        OSError: it cannot be opened.
    """
    with path.open("rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise MapFileError(
            f"it is larger than {MAX_FILE_BYTES >> 20} MiB, so it is a checkpoint rather than a steering vector."
        )
    return data


def read_torch(path: Path) -> object:
    """What a file of `torch.save` holds: tensors, in lists and dictionaries.

    Raises:
        MapFileError: it is damaged, compressed, too large, or holds more than tensors.
        OSError: it cannot be opened.
    """
    data = read_bytes(path)
    if not data.startswith(_ZIP):
        raise MapFileError(
            "it is a pickle or another kind of file, which could run code; save its tensors with torch.save."
        )
    try:
        content: object = torch.load(io.BytesIO(_checked(data)), map_location="cpu", weights_only=True)
    except _DAMAGE as error:
        if isinstance(error, MapFileError):
            raise
        raise MapFileError(f"it is damaged ({first_line(error)[:200].rstrip('.')}); {AGAIN}") from error
    tensors = [*_tensors(content)]
    # Older versions of torch do not compare what a pickle declares with the size of the entry.
    if any(tensor.layout != torch.strided or tensor.untyped_storage().nbytes() > len(data) for tensor in tensors):
        raise MapFileError(f"it declares a tensor that is larger than the file; {AGAIN}")
    # Tensors may overlap, or repeat one value by a stride of 0; whoever copies them would need far more memory.
    if sum(tensor.numel() * tensor.element_size() for tensor in tensors) > len(data):
        raise MapFileError("its tensors have more values than the file holds; save a copy (clone) of each.")
    return content


def vector_of(name: str, value: object) -> Tensor:
    """A tensor with one axis that is not of length 1, as float32 ``[channels]``.

    Raises:
        MapFileError: it is something else, or not finite.

    Example:
        >>> vector_of("a", torch.ones(1, 2))
        tensor([1., 1.])
    """
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise MapFileError(f"{name} is not a tensor of floating-point numbers, so this is not a steering vector.")
    sizes = [size for size in value.shape if size != 1]
    # Checked before it is copied: a tensor of stride 0 has any size without any memory.
    if len(sizes) > 1 or not 0 < value.numel() <= MAX_CHANNELS:
        raise MapFileError(f"{name} has shape {list(value.shape)[:4]}, not that of a vector.")
    vector = value.detach().reshape(-1).to(torch.float32, copy=True)
    if not bool(vector.isfinite().all()):
        raise MapFileError(f"{name} has values that are not finite.")
    return vector


def _checked(data: bytes) -> bytes:
    """The same archive written anew with the entries that were checked, so that torch can find no others in it."""
    checked = io.BytesIO()
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(checked, "w") as clean:
            entries = archive.infolist()
            if len(entries) > _MAX_ENTRIES or sum(entry.file_size for entry in entries) > len(data):
                raise MapFileError("its entries unpack to more than the file holds, which no steering vector needs.")
            if any(entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 for entry in entries):
                raise MapFileError("it is a compressed or encrypted archive, not a file of torch.save.")
            names = {match[1]: entry for entry in entries if (match := _ENTRY.fullmatch(entry.filename))}
            if "data.pkl" not in names or "version" not in names:
                raise MapFileError("it is an archive, but not one of torch.save.")
            for name, entry in names.items():
                clean.writestr(f"archive/{name}", archive.read(entry))
            check_pickle(archive.read(names["data.pkl"]))
            if "byteorder" in names and archive.read(names["byteorder"]) != b"little":
                raise MapFileError("it was written on a big-endian machine; convert it there.")
    except (zipfile.BadZipFile, NotImplementedError, OSError, *_DAMAGE) as error:
        if isinstance(error, MapFileError):
            raise
        raise MapFileError(f"it is a damaged archive; {AGAIN}") from error
    return checked.getvalue()


def _tensors(content: object) -> Iterator[Tensor]:
    """All tensors in nested lists and dictionaries, once each."""
    seen: set[int] = set()
    waiting = [content]
    while waiting:
        item = waiting.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, Tensor):
            yield item
        elif isinstance(item, Mapping):
            waiting += [*cast("Mapping[object, object]", item).values()]
        elif isinstance(item, Sequence) and not isinstance(item, (str, bytes)):
            waiting += [*cast("Sequence[object]", item)]
