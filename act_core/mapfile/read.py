"""Reads a map file. Nothing in it is trusted: each part is checked before it is used."""

from __future__ import annotations

import hashlib
import os
import reprlib
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import AGAIN, MapError, MapFileError
from ..gates import Gate
from ..maps import ActMap
from ..projections import Projection
from ..sites import Site
from ..transport import Statistics, Transport
from .format import BOUNDS, GATE, MAX_HEADER_BYTES, PROJECTION, STATISTICS
from .header import MapHeader, parse_header


def load_map(path: str | os.PathLike[str]) -> ActMap:
    """Read a map file.

    Raises:
        MapFileError: the file is missing, is not an ACT map, is damaged, or is of a later format.

    Example:
        >>> load_map("nowhere.safetensors")
        Traceback (most recent call last):
        ...
        act_core.errors.MapFileError: nowhere.safetensors cannot be read: No such file or directory.
    """
    path = Path(path)
    try:
        return read_map(path)
    except MapError as error:
        raise MapFileError(f"{path.name or path} is not a usable map: {error}") from error
    except (OSError, ValueError) as error:  # a name with a null character is a ValueError
        raise MapFileError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from error


def read_map(path: Path) -> ActMap:
    """As `load_map`, with errors that leave out the name of the file.

    Raises:
        MapError: as `load_map`.
        OSError: the file cannot be opened.
    """
    _check_container(path)
    with _opened(path) as file:
        reader = _Reader(file)
        act_map = reader.read()
        # Last, since the other checks say what is wrong.
        reader.check_hash()
        return act_map


def read_header(path: Path) -> MapHeader:
    """Read only the header of a map file, with errors that leave out the name of the file.

    Raises:
        MapError: as `load_map`.
        OSError: the file cannot be opened.
    """
    _check_container(path)
    with _opened(path) as file:
        return parse_header(file.metadata() or {}, file.keys)


@contextmanager
def _opened(path: Path) -> Generator[Any]:
    """The file as the safetensors library opens it, after it has checked the header and the size of the file."""
    try:
        # Of numpy: a tensor of its own for each of hundreds of small parts takes four times as long.
        with safe_open(path, framework="np") as file:  # pyright: ignore[reportUnknownVariableType]
            yield file
    except SafetensorError as error:
        raise MapFileError(f"it is damaged or not a safetensors file; {AGAIN}") from error


def _check_container(path: Path) -> None:
    """Check what the safetensors library does not check, or reports unhelpfully."""
    if path.is_dir():
        raise MapFileError("it is a folder; choose a .safetensors file in it.")
    if path.exists() and not path.is_file():  # reading a device or a pipe may never end
        raise MapFileError("it is not a file; choose a .safetensors file.")
    with path.open("rb") as file:
        size, head = os.fstat(file.fileno()).st_size, file.read(8)
    length = int.from_bytes(head, "little")
    if len(head) < 8 or 8 + length > size:
        # Checked only here, since the length of a valid header may start with the same byte as a pickle.
        if head[:1] == b"\x80" or head[:4] == b"PK\x03\x04":
            raise MapFileError("it is a pickle under another name, which could run code; ask for a safetensors file.")
        raise MapFileError(f"it is cut short or not a safetensors file; {AGAIN}")
    if length > MAX_HEADER_BYTES:
        raise MapFileError(
            f"its header of {length} bytes is larger than that of any map; it is a LoRA or a checkpoint, not a map."
        )


class _Reader:
    """Reads one open file; `names` holds the tensors that no site has claimed yet."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self.names = set(cast("list[str]", file.keys()))
        self.header = parse_header(file.metadata() or {}, file.keys)
        self.values: dict[str, Tensor] = {}

    def read(self) -> ActMap:
        rows = zip(self.header.sites, self.header.fallbacks, self.header.effects, strict=True)
        transports = {site: self._transport(site, fallbacks, effect) for site, fallbacks, effect in rows}
        if self.names:
            raise MapFileError(f"it has a tensor that belongs to no site, {reprlib.repr(min(self.names))}; {AGAIN}")
        self._check_values(transports)
        return ActMap(
            transports,
            self.header.record,
            self.header.card,
            self.header.calibration,
            levels=self.header.levels,
            evidence=self.header.evidence,
        )

    def _transport(self, site: Site, fallbacks: int, effect: float | None) -> Transport:
        omega = self._tensor(site, "omega")
        beta = self._tensor(site, "beta", like=omega)
        low, high = self._group(site, BOUNDS, like=omega) or (None, None)
        known = self._group(site, STATISTICS, like=omega)
        statistics = Statistics(*known) if known else None
        packed = omega.new_empty(site.channels + 1)
        gate, projection = (
            self._tensor(site, part, like=packed) if f"{site.key}.{part}" in self.names else None
            for part in (GATE, PROJECTION)
        )
        return Transport(
            omega,
            beta,
            low,
            high,
            statistics,
            fallbacks,
            effect,
            None if gate is None else Gate.unpacked(gate),
            None if projection is None else Projection.unpacked(projection),
        )

    def _check_values(self, transports: Mapping[Site, Transport]) -> None:
        """Check the numbers, all at once: a check of each tensor takes longer than reading it."""
        if self.values and not bool(torch.cat([values.flatten() for values in self.values.values()]).isfinite().all()):
            name = next(name for name, values in self.values.items() if not bool(values.isfinite().all()))
            raise MapFileError(f"the tensor {name!r} has values that are not finite; fit the map again.")
        for site, transport in transports.items():
            low, high = transport.low, transport.high
            if low is not None and high is not None and bool((low > high).any()):
                raise MapFileError(f"the support of site {site.key} ends before it begins; fit the map again.")

    def check_hash(self) -> None:
        """Check the tensors that were read against their hash, if the header has it.

        Not the file again, which may have been replaced meanwhile.
        """
        digest = hashlib.sha256()
        # Versions of the library before 0.5 have no such method; they wrote tensors of one type by name.
        in_order = getattr(self.file, "offset_keys", lambda: sorted(self.values))
        for name in cast("list[str]", in_order()):
            digest.update(self.values[name].numpy().tobytes())
        if self.header.tensors_sha256 not in ("", digest.hexdigest()):
            raise MapFileError(f"its tensors are not those that were saved; {AGAIN}")

    def _group(self, site: Site, parts: tuple[str, ...], like: Tensor) -> list[Tensor] | None:
        """Tensors that a site has together or not at all."""
        if any(f"{site.key}.{part}" in self.names for part in parts):
            return [self._tensor(site, part, like) for part in parts]
        return None

    def _tensor(self, site: Site, part: str, like: Tensor | None = None) -> Tensor:
        """One tensor, whose type and shape are checked before it is read.

        Args:
            site: of the map.
            part: which of its tensors.
            like: a tensor of the site whose shape it must have; None if it may have bins or not.
        """
        name = f"{site.key}.{part}"
        if name not in self.names:
            raise MapFileError(f"the tensor {name!r} is missing; {AGAIN}")
        self.names.remove(name)
        entry = self.file.get_slice(name)
        dtype, shape = entry.get_dtype(), entry.get_shape()
        shapes = [[site.channels], *([[len(self.header.levels), site.channels]] if self.header.levels else [])]
        if like is not None:
            shapes = [list(like.shape)]
        if dtype != "F32" or shape not in shapes:
            expected = " or ".join(f"F32 {one}" for one in shapes)
            raise MapFileError(f"the tensor {name!r} is {dtype} {shape}, not {expected}; {AGAIN}")
        values = self.values[name] = torch.from_numpy(self.file.get_tensor(name))
        return values
