"""Reads and writes GGUF files, of which control vectors need little: no package, and bounds for files of strangers.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian. Nothing is allocated
for a length that the file merely declares: it is compared with the bytes that are left first.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from ..errors import AGAIN, MapFileError

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_VERSION = 3
_ALIGNMENT = 32
_MAX_KEYS = 10_000
_MAX_TENSORS = 100_000
_MAX_TEXT = 1 << 16
# Vocabularies of language models have some hundred thousand texts.
_MAX_ARRAY = 2_000_000
_MAX_DIMENSIONS = 4
_F32 = 0
_U32, _TEXT, _ARRAY = 4, 8, 9
# The formats of plain values by their type, for `struct`.
_VALUES = {
    0: "B", 1: "b", 2: "H", 3: "h", _U32: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip

Value = int | float | str


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of a file: its shape, its type (0 is float32) and where its data begins."""

    shape: tuple[int, ...]
    kind: int
    start: int


@dataclass(frozen=True)
class Gguf:
    """The header of a GGUF file: its values by name, without arrays, and where its tensors are."""

    values: Mapping[str, Value]
    tensors: Mapping[str, GgufTensor]

    def text(self, name: str) -> str:
        """A text among the values; empty if there is none of that name."""
        value = self.values.get(name, "")
        return value if isinstance(value, str) else ""

    def number(self, name: str) -> int | None:
        """A whole number among the values; None if there is none of that name."""
        value = self.values.get(name)
        return value if isinstance(value, int) else None


def read_header(path: Path) -> Gguf:
    """Read the header of a file, not its tensors.

    Raises:
        MapFileError: it is damaged, or of another version, or its tensors overlap.
        OSError: it cannot be opened.
    """
    with path.open("rb") as file:
        return _Reader(file).read()


def read_vector(path: Path, tensor: GgufTensor) -> Tensor:
    """The values of a tensor with one axis, float32 ``[channels]``.

    Raises:
        MapFileError: it is not float32, or has more axes.
        OSError: the file cannot be opened.
    """
    sizes = [size for size in tensor.shape if size != 1]
    if tensor.kind != _F32 or len(sizes) > 1:
        raise MapFileError(f"a tensor has shape {list(tensor.shape)} and type {tensor.kind}, not one axis of float32.")
    with path.open("rb") as file:
        file.seek(tensor.start)
        data = file.read(4 * math.prod(tensor.shape))
    return torch.frombuffer(bytearray(data), dtype=torch.float32)


def packed(values: Mapping[str, str | int], vectors: Mapping[str, Tensor]) -> bytes:
    """A file of texts and whole numbers, and of float32 vectors ``[channels]``.

    Example:
        >>> packed({"general.architecture": "toy"}, {"a": torch.ones(2)})[:4]
        b'GGUF'
    """
    head = [MAGIC, struct.pack("<IQQ", _VERSION, len(vectors), len(values))]
    for name, value in values.items():
        kind, data = (_TEXT, _text(value)) if isinstance(value, str) else (_U32, struct.pack("<I", value))
        head += [_text(name), struct.pack("<I", kind), data]
    body: list[bytes] = []
    offset = 0
    for name, vector in vectors.items():
        data = vector.detach().to("cpu", torch.float32).contiguous().numpy().astype("<f4").tobytes()
        head += [_text(name), struct.pack("<IQIQ", 1, len(vector), _F32, offset)]
        body.append(data + bytes(-len(data) % _ALIGNMENT))
        offset += len(body[-1])
    header = b"".join(head)
    return header + bytes(-len(header) % _ALIGNMENT) + b"".join(body)


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _bytes(shape: tuple[int, ...], kind: int) -> int:
    """The size of a tensor; 0 for types other than float32, whose sizes are not known here and which are not read."""
    return 4 * math.prod(shape) if kind == _F32 else 0


class _Reader:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = os.fstat(file.fileno()).st_size

    def read(self) -> Gguf:
        if self._take(4) != MAGIC:
            raise MapFileError(f"it is not a GGUF file; {AGAIN}")
        version = self._number("I")
        if version not in _VERSIONS:
            raise MapFileError(
                f"it has GGUF version {version}, and this version reads 2 and 3; it is older, newer or big-endian, so "
                "save it again with a current version of the program that made it."
            )
        tensors, keys = self._number("Q"), self._number("Q")
        if keys > _MAX_KEYS or tensors > _MAX_TENSORS:
            raise MapFileError(f"it declares {keys} values and {tensors} tensors, more than any model has; {AGAIN}")
        values: dict[str, Value] = {}
        for _ in range(keys):
            name, value = self._text(), self._value(self._number("I"))
            if value is not None:
                values[name] = value
        described: dict[str, tuple[tuple[int, ...], int, int]] = {}
        for _ in range(tensors):
            name = self._text()
            if name in described:
                raise MapFileError(f"it has two tensors of one name; {AGAIN}")
            described[name] = (self._shape(), self._number("I"), self._number("Q"))
        alignment = values.get("general.alignment", _ALIGNMENT)
        if not isinstance(alignment, int) or not 0 < alignment <= 1 << 16:
            raise MapFileError(f"its alignment is not a number of bytes; {AGAIN}")
        start = -(-self._file.tell() // alignment) * alignment
        found = {name: self._tensor(start, *rest) for name, rest in described.items()}
        # Each is inside the file, but they may overlap.
        if sum(_bytes(tensor.shape, tensor.kind) for tensor in found.values()) > self._size:
            raise MapFileError(f"its tensors have more values than the file holds; {AGAIN}")
        return Gguf(values, found)

    def _tensor(self, start: int, shape: tuple[int, ...], kind: int, offset: int) -> GgufTensor:
        if start + offset + _bytes(shape, kind) > self._size:
            raise MapFileError(f"a tensor of shape {list(shape)} is not inside the file; {AGAIN}")
        return GgufTensor(shape, kind, start + offset)

    def _shape(self) -> tuple[int, ...]:
        count = self._number("I")
        if not 0 < count <= _MAX_DIMENSIONS:
            raise MapFileError(f"a tensor has {count} axes; {AGAIN}")
        return tuple(self._number("Q") for _ in range(count))

    def _value(self, kind: int) -> Value | None:
        """One value; None for an array, which is skipped."""
        if kind == _TEXT:
            return self._text()
        if kind == _ARRAY:
            self._skip_array()
            return None
        if kind not in _VALUES:
            raise MapFileError(f"a value has the unknown type {kind}; {AGAIN}")
        return self._number(_VALUES[kind])

    def _skip_array(self) -> None:
        kind, count = self._number("I"), self._number("Q")
        if count > _MAX_ARRAY or (kind not in _VALUES and kind != _TEXT):
            raise MapFileError(f"it has an array of {count} values of type {kind}; {AGAIN}")
        if kind == _TEXT:
            for _ in range(count):
                self._skip(self._number("Q"))
        else:
            self._skip(count * struct.calcsize(_VALUES[kind]))

    def _text(self) -> str:
        length = self._number("Q")
        if length > _MAX_TEXT:
            # A chat template may be longer; it is not needed.
            self._skip(length)
            return ""
        return self._take(length).decode("utf-8", "replace")

    def _number(self, form: str) -> int:
        return struct.unpack(f"<{form}", self._take(struct.calcsize(form)))[0]

    def _take(self, length: int) -> bytes:
        self._check_left(length)
        return self._file.read(length)

    def _skip(self, length: int) -> None:
        self._check_left(length)
        self._file.seek(length, os.SEEK_CUR)

    def _check_left(self, length: int) -> None:
        if length > self._size - self._file.tell():
            raise MapFileError(f"it is cut short; {AGAIN}")
