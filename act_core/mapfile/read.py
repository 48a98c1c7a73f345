"""Reads a map file. Nothing in it is trusted: each part is checked before it is used."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..calibration import Calibration, Negative
from ..errors import MapError, MapFileError
from ..gates import Gate
from ..maps import ActMap
from ..projections import Projection
from ..records import Card, Fingerprint, FitRecord
from ..sites import End, Layout, Segment, Site
from ..transport import Statistics, Transport
from . import fields
from .format import (
    BOUNDS,
    CALIBRATION_KEY,
    CARD_TEXTS,
    COVERS_KEY,
    FORMAT,
    FORMAT_KEY,
    FORMAT_WITH_SEGMENTS,
    GATE,
    LEVELS_KEY,
    MAX_CHANNELS,
    MAX_HEADER_BYTES,
    PROJECTION,
    RANGE_KEY,
    RECORD_KEY,
    SITES_KEY,
    STATISTICS,
)

_AGAIN = "download or save it again."


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
    try:
        with safe_open(path, framework="pt") as file:  # pyright: ignore[reportUnknownVariableType]
            return _Reader(file).read()
    except SafetensorError as error:
        raise MapFileError(f"it is damaged or not a safetensors file; {_AGAIN}") from error


def _check_container(path: Path) -> None:
    """Check what the safetensors library does not check, or reports unhelpfully."""
    if path.is_dir():
        raise MapFileError("it is a folder; choose a .safetensors file in it.")
    with path.open("rb") as file:
        size, head = os.fstat(file.fileno()).st_size, file.read(8)
    length = int.from_bytes(head, "little")
    if len(head) < 8 or 8 + length > size:
        # Checked only here, since the length of a valid header may start with the same byte as a pickle.
        if head[:1] == b"\x80" or head[:4] == b"PK\x03\x04":
            raise MapFileError("it is a pickle under another name, which could run code; ask for a safetensors file.")
        raise MapFileError(f"it is cut short or not a safetensors file; {_AGAIN}")
    if length > MAX_HEADER_BYTES:
        raise MapFileError(f"its header of {length} bytes is larger than that of any map; it is another kind of file.")


class _Reader:
    """Reads one open file; `names` holds the tensors that no site has claimed yet."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self.metadata: Mapping[str, str] = file.metadata() or {}
        self.names = set(cast("list[str]", file.keys()))
        self._levels: tuple[float, ...] = ()

    def read(self) -> ActMap:
        self._check_version()
        try:
            entries = fields.items("sites", json.loads(self.metadata[SITES_KEY]), fields.record)
            described = [(_site(entry), _fallbacks_and_effect(entry)) for entry in entries]
            record = _record(json.loads(self.metadata[RECORD_KEY]))
            card = _card(self.metadata)
            self._levels = fields.levels("the noise levels", json.loads(self.metadata.get(LEVELS_KEY, "[]")))
            calibration = _calibration(self.metadata)
        except MapError:  # of the calibration; it is a ValueError, too
            raise
        except KeyError as error:
            raise MapFileError(f"its description has no {error}; {_AGAIN}") from error
        except (ValueError, RecursionError) as error:
            raise MapFileError(f"its description is damaged ({error}); {_AGAIN}") from error
        if len({site.key for site, _ in described}) != len(described):
            raise MapFileError(f"it names a site twice; {_AGAIN}")
        transports = {site: self._transport(site, *rest) for site, rest in described}
        if self.names:
            raise MapFileError(f"it has a tensor that belongs to no site, {min(self.names)!r}; {_AGAIN}")
        return ActMap(transports, record, card, calibration, levels=self._levels)

    def _check_version(self) -> None:
        version = self.metadata.get(FORMAT_KEY)
        if version is None:
            raise MapFileError(
                "it is a safetensors file, but not an ACT map; choose one that was made by Save ACT Map or "
                "'act-steering fit'."
            )
        if version not in (FORMAT, FORMAT_WITH_SEGMENTS):
            raise MapFileError(
                f"it has format {version[:20]!r}, and this version reads formats {FORMAT} and {FORMAT_WITH_SEGMENTS}; "
                "update the node pack."
            )

    def _transport(self, site: Site, fallbacks: int, effect: float | None) -> Transport:
        omega = self._tensor(site, "omega")
        beta = self._tensor(site, "beta", like=omega)
        low, high = self._group(site, BOUNDS, like=omega) or (None, None)
        if low is not None and high is not None and bool((low > high).any()):
            raise MapFileError(f"the support of site {site.key} ends before it begins; fit the map again.")
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
            raise MapFileError(f"the tensor {name!r} is missing; {_AGAIN}")
        self.names.remove(name)
        entry = self.file.get_slice(name)
        dtype, shape = entry.get_dtype(), entry.get_shape()
        shapes = [[site.channels], *([[len(self._levels), site.channels]] if self._levels else [])]
        if like is not None:
            shapes = [list(like.shape)]
        if dtype != "F32" or shape not in shapes:
            expected = " or ".join(f"F32 {one}" for one in shapes)
            raise MapFileError(f"the tensor {name!r} is {dtype} {shape}, not {expected}; {_AGAIN}")
        values: Tensor = self.file.get_tensor(name)
        if not bool(values.isfinite().all()):
            raise MapFileError(f"the tensor {name!r} has values that are not finite; fit the map again.")
        return values


def _site(entry: Mapping[str, object]) -> Site:
    component = fields.identifier("a component", entry["component"])
    name = fields.identifier("the name of a site", entry["name"])
    output = None if entry["output"] is None else fields.count("an output index", entry["output"])
    layout = cast("Layout", fields.word("a layout", entry["layout"], get_args(Layout)))
    channels = fields.count("the number of channels", entry["channels"])
    if not 0 < channels <= MAX_CHANNELS:
        raise ValueError(f"site {name} has {channels} channels")
    segment = entry.get("segment")
    if segment is not None and layout != "tokens":
        raise ValueError(f"site {name} has a segment, but no tokens")
    return Site(component, name, output, layout, channels, None if segment is None else _segment(name, segment))


def _segment(site: str, value: object) -> Segment:
    entry = fields.record(f"the segment of site {site}", value)
    output = entry["output"]
    return Segment(
        cast("End", fields.word("the end of a segment", entry["end"], get_args(End))),
        fields.identifier("the gauge of a segment", entry["gauge"]),
        None if output is None else fields.count("an output index", output),
        cast("End", fields.word("what a gauge measures", entry["measures"], get_args(End))),
    )


def _fallbacks_and_effect(entry: Mapping[str, object]) -> tuple[int, float | None]:
    fallbacks = fields.count("the number of fallbacks", entry["fallbacks"])
    effect = None if entry["effect"] is None else fields.number("an effect", entry["effect"])
    if effect is not None and effect < 0:
        raise ValueError(f"an effect is {effect}, below 0")
    return fallbacks, effect


def _record(value: object) -> FitRecord:
    """A record whose values have the types that `FitRecord` declares; missing values get their defaults."""
    entry = fields.record("the record", value)
    declared = get_type_hints(FitRecord)
    values = {name: _validator(kind)(name, entry[name]) for name, kind in declared.items() if name in entry}
    return FitRecord(**values)


def _validator(declared: Any) -> fields.Validator:
    """The validator of a field of `FitRecord`, by its declared type."""
    if get_origin(declared) is Literal:
        return partial(fields.word, allowed=get_args(declared))
    kinds: dict[Any, fields.Validator] = {
        int: fields.integer,
        str: fields.text,
        tuple[str, ...]: partial(fields.items, each=fields.text),
        Mapping[str, str]: partial(fields.table, each=fields.text),
        Mapping[str, Fingerprint]: partial(fields.table, each=_fingerprint),
    }
    return kinds[declared]


def _fingerprint(name: str, value: object) -> Fingerprint:
    # Files of version 0.1 have no class, but a hash of the structure, which the sites describe. Only later files have
    # the bases and variants.
    entry = fields.record(name, value)
    return Fingerprint(
        fields.text(f"the architecture of {name}", entry["architecture"]),
        fields.text(f"the weights of {name}", entry["weights"]),
        fields.text(f"the class of {name}", entry.get("model_class", "")),
        fields.items(f"the bases of {name}", entry.get("bases", []), each=fields.text),
        fields.items(f"the variants of {name}", entry.get("variants", []), each=fields.text),
    )


def _card(metadata: Mapping[str, str]) -> Card:
    texts = {name: fields.text(name, metadata.get(f"modelspec.{name}", "")) for name in CARD_TEXTS}
    ends = metadata.get(RANGE_KEY)
    return Card(
        **texts,
        strength_range=None if ends is None else fields.strength_range("the recommended strength", json.loads(ends)),
        cover=fields.cover("the cover", json.loads(metadata.get(COVERS_KEY, "[]"))),
    )


def _calibration(metadata: Mapping[str, str]) -> Calibration | None:
    if CALIBRATION_KEY not in metadata:
        return None
    entry = fields.record("the calibration", json.loads(metadata[CALIBRATION_KEY]))
    curves = {
        name: fields.items(f"{name} of the calibration", entry[name], fields.number)
        for name in ("strengths", "effects", "kept", "up", "down")
    }
    negative = fields.word("what a negative strength does", entry["negative"], get_args(Negative))
    return Calibration(**curves, negative=cast("Negative", negative))
