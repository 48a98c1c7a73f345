"""The map file: one ``.safetensors`` that is written whole or not at all, and read with distrust.

Tensors are named ``<site key>.omega``, ``.beta`` and, where they apply, ``.low``, ``.high`` and the statistics. All
else is in the header, as strings: ``act.format`` (version), ``act.sites`` and ``act.record`` (JSON), and the
ModelSpec keys that tools for model files show.
"""

from __future__ import annotations

import base64
import json
import math
import os
import secrets
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import MapFileError
from ..maps import ActMap, Card, Fingerprint, FitRecord
from ..sites import Layout, Site
from ..transport import MIN_INVERTIBLE_SLOPE, Statistics, Transport

FORMAT = "1"
# ComfyUI's own limit on the headers that it shows.
MAX_HEADER_BYTES = 1 << 20
MAX_CHANNELS = 1 << 20
MAX_NAME = 500
MAX_COVER_BYTES = 1 << 17

_BOUNDS = ("low", "high")
_COVERS = "ssmd_cover_images"
_STATISTICS = Statistics._fields


def save_map(
    act_map: ActMap,
    path: str | os.PathLike[str],
    *,
    title: str | None = None,
    author: str | None = None,
    description: str | None = None,
    license: str | None = None,
    strength_range: tuple[float, float] | None = None,
    cover: bytes | None = None,
    statistics: bool = False,
) -> Path:
    """Write a map to one ``.safetensors`` file; whatever fails, no half-written file stands under that name.

    Args:
        act_map: the map.
        path: of the file; an existing map is replaced.
        title, author, description, license, strength_range, cover: replace what the map's card says, where given.
        statistics: also keep means and deviations of the pooled values (three times the size). Sites that could
            not be inverted without them keep them always.

    Raises:
        MapFileError: the name does not end in ``.safetensors``, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise MapFileError(f"{path.name} is no name for a map file; let it end in .safetensors.")
    told = {"title": title, "author": author, "description": description, "license": license}
    card = replace(act_map.card, **{key: text for key, text in told.items() if text is not None})
    if strength_range is not None:
        low, high = sorted(strength_range)
        card = replace(card, strength_range=(low, high))
    if cover is not None:
        card = replace(card, cover=cover)

    try:
        _write_whole(path, _serialised(act_map, card, statistics=statistics))
    except OSError as error:
        raise MapFileError(f"{path} could not be written: {error.strerror or error}; choose another folder.") from error
    except (MapFileError, TypeError, ValueError) as error:  # of what the caller gave, such as a title that is no text
        raise MapFileError(f"{path.name} was not written, since it could not be read again: {error}") from error
    return path


def load_map(path: str | os.PathLike[str]) -> ActMap:
    """Read a map file.

    Raises:
        MapFileError: the file is missing, is no ACT map, is damaged, or is of a later format.
    """
    path = Path(path)
    try:
        return _read_whole(path)
    except MapFileError as error:
        raise MapFileError(f"{path.name} is no usable map: {error}") from error
    except OSError as error:
        raise MapFileError(f"{path} cannot be read: {error.strerror or error}.") from error


def _serialised(act_map: ActMap, card: Card, *, statistics: bool) -> bytes:
    tensors: dict[str, Tensor] = {}
    for site, transport in act_map.transports.items():
        for name, tensor in _tensors(transport, statistics=statistics):
            # A copy, since safetensors refuses views and tensors that sites share.
            tensors[f"{site.key}.{name}"] = tensor.clone(memory_format=torch.contiguous_format)
    kept = max(len(act_map.record.source_prompts), len(act_map.record.target_prompts))
    while True:
        data = safetensors.torch.save(tensors, _header(act_map, card, kept))
        if int.from_bytes(data[:8], "little") <= MAX_HEADER_BYTES:
            return data
        if not kept:
            raise MapFileError(f"A map of {len(act_map)} sites is too large for one file; restrict it to fewer sites.")
        kept //= 2


def _tensors(transport: Transport, *, statistics: bool) -> Iterator[tuple[str, Tensor]]:
    yield "omega", transport.omega
    yield "beta", transport.beta
    if transport.low is not None and transport.high is not None:
        yield from zip(_BOUNDS, (transport.low, transport.high), strict=True)
    needed = bool((transport.omega < MIN_INVERTIBLE_SLOPE).any())
    if transport.statistics is not None and (statistics or needed):
        yield from zip(_STATISTICS, transport.statistics, strict=True)


def _header(act_map: ActMap, card: Card, kept: int) -> dict[str, str]:
    """The metadata, with the first `kept` prompts of either side."""
    sites = [{**asdict(site), "fallbacks": t.fallbacks, "effect": t.effect} for site, t in act_map.transports.items()]
    record = asdict(act_map.record)
    for side in ("source_prompts", "target_prompts"):
        record[side] = record[side][:kept]
    header = {
        "act.format": FORMAT,
        "act.sites": json.dumps(sites),
        "act.record": json.dumps(record),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "+".join(b.architecture for b in act_map.record.base.values()) + "/act-map",
        "modelspec.implementation": "act-steering",
        "modelspec.title": card.title,
        "modelspec.author": card.author,
        "modelspec.description": card.description,
        "modelspec.license": card.license,
        "modelspec.date": datetime.now(timezone.utc).date().isoformat(),
    }
    if card.strength_range is not None:
        header["act.strength_range"] = json.dumps(card.strength_range)
    if card.cover:
        # Where trainers of LoRAs keep it, so that browsers of model files show it.
        header[_COVERS] = json.dumps([base64.b64encode(card.cover).decode()])
    return header


def _write_whole(path: Path, data: bytes) -> None:
    path = path.resolve()  # a link stays a link
    part = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        # Not a temporary file of the library, which only its owner could read.
        with part.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        _read_whole(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _read_whole(path: Path) -> ActMap:
    _check_container(path)
    try:
        with safe_open(path, framework="pt") as file:  # pyright: ignore[reportUnknownVariableType]
            return _read(file)
    except SafetensorError as error:
        raise MapFileError("it is damaged or no safetensors file; download or save it again.") from error


def _check_container(path: Path) -> None:
    """What the safetensors library would not say, or not so that it helps."""
    if path.is_dir():
        raise MapFileError("it is a folder; choose a .safetensors file in it.")
    with path.open("rb") as file:
        size, head = os.fstat(file.fileno()).st_size, file.read(8)
    length = int.from_bytes(head, "little")
    if len(head) < 8 or 8 + length > size:
        # Not before: the length of a proper header may begin with the very byte that a pickle begins with.
        if head[:1] == b"\x80" or head[:4] == b"PK\x03\x04":
            raise MapFileError("it is a pickle under another name, which could run code; ask for a safetensors file.")
        raise MapFileError("it is cut short or no safetensors file; download or save it again.")
    if length > MAX_HEADER_BYTES:
        raise MapFileError(f"its header of {length} bytes is larger than any map's; it is some other model file.")


def _read(file: Any) -> ActMap:
    metadata: dict[str, str] = file.metadata() or {}
    version = metadata.get("act.format")
    if version is None:
        raise MapFileError(
            "it is a safetensors file, but not an ACT map; choose one that Save ACT Map or fit has made."
        )
    if version != FORMAT:
        raise MapFileError(f"it has format {version!r} and this version reads {FORMAT!r}; update the node pack.")
    try:
        sites = cast("list[dict[str, Any]]", json.loads(metadata["act.sites"]))
        told = {_site(entry): (_count(entry["fallbacks"]), _effect(entry["effect"])) for entry in sites}
        record = _record(json.loads(metadata["act.record"]))
        card = _card(metadata)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
        raise MapFileError(f"its description is damaged ({error}); download or save it again.") from error
    if len({site.key for site in told}) != len(sites):
        raise MapFileError("it names a site twice; download or save it again.")
    names = set(cast("list[str]", file.keys()))
    transports = {site: _transport(file, names, site, *rest) for site, rest in told.items()}
    if names:
        raise MapFileError(f"it holds a tensor that belongs to no site, {min(names)!r}; download or save it again.")
    return ActMap(transports, record, card)


def _transport(file: Any, names: set[str], site: Site, fallbacks: int, effect: float | None) -> Transport:
    """The transport of one site, each tensor checked before it is read; takes their names out of `names`."""

    def tensor(part: str) -> Tensor:
        name = f"{site.key}.{part}"
        if name not in names:
            raise MapFileError(f"the tensor {name!r} is missing; download or save it again.")
        names.remove(name)
        entry = file.get_slice(name)
        if entry.get_dtype() != "F32" or entry.get_shape() != [site.channels]:
            raise MapFileError(
                f"the tensor {name!r} is {entry.get_dtype()} {entry.get_shape()} where F32 [{site.channels}] belongs; "
                "download or save it again."
            )
        values: Tensor = file.get_tensor(name)
        if not bool(values.isfinite().all()):
            raise MapFileError(f"the tensor {name!r} has values that are not finite; fit the map again.")
        return values

    def group(parts: tuple[str, ...]) -> list[Tensor] | None:
        return [tensor(part) for part in parts] if any(f"{site.key}.{part}" in names for part in parts) else None

    omega, beta = tensor("omega"), tensor("beta")
    low, high = group(_BOUNDS) or (None, None)
    if low is not None and high is not None and bool((low > high).any()):
        raise MapFileError(f"the support of site {site.key} ends before it begins; fit the map again.")
    statistics = group(_STATISTICS)
    return Transport(omega, beta, low, high, Statistics(*statistics) if statistics else None, fallbacks, effect)


def _site(entry: Mapping[str, Any]) -> Site:
    component, name, output = entry["component"], entry["name"], entry["output"]
    for text in (component, name):
        if not isinstance(text, str) or not text.isprintable() or not 0 < len(text) <= MAX_NAME:
            raise ValueError("a site without a proper name")
    channels = _count(entry["channels"])
    if entry["layout"] not in get_args(Layout) or not 0 < channels <= MAX_CHANNELS:
        raise ValueError(f"site {name} with {channels} channels in layout {entry['layout']!r}")
    return Site(component, name, None if output is None else _count(output), entry["layout"], channels)


def _record(entry: Mapping[str, Any]) -> FitRecord:
    """A record whose every value is of the type that `FitRecord` declares; what is missing takes its default."""
    values: dict[str, Any] = {}
    if not isinstance(entry, dict):
        raise ValueError("the record is no table")
    for name, declared in get_type_hints(FitRecord).items():
        if name not in entry:
            continue
        value = entry[name]
        if get_origin(declared) is Literal:
            valid = value in get_args(declared)
        elif declared in (int, str):
            valid = type(value) is declared
        elif name == "base":
            values[name] = {_text(key): _fingerprint(print_) for key, print_ in value.items()}
            continue
        elif name == "versions":
            values[name] = _texts(value)
            continue
        else:
            if not isinstance(value, list):
                raise ValueError(f"{name} is no list")
            values[name] = tuple(_text(item) for item in cast("list[object]", value))
            continue
        if not valid:
            raise ValueError(f"{name} is {value!r}")
        values[name] = value
    return FitRecord(**values)


def _fingerprint(entry: Mapping[str, object]) -> Fingerprint:
    # Files of version 0.1 also have a hash of the structure, which the sites themselves tell.
    return Fingerprint(_text(entry["architecture"]), _text(entry["weights"]))


def _card(metadata: Mapping[str, str]) -> Card:
    title, author, description, license_name = (
        _text(metadata.get(f"modelspec.{name}", "")) for name in ("title", "author", "description", "license")
    )
    card = Card(title, author, description, license_name, cover=_cover(metadata))
    if "act.strength_range" not in metadata:
        return card
    low, high = (float(end) for end in json.loads(metadata["act.strength_range"]))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError("a recommended strength that is not finite")
    return replace(card, strength_range=(low, high))


def _cover(metadata: Mapping[str, str]) -> bytes:
    images: list[str] = json.loads(metadata.get(_COVERS, "[]"))
    cover = base64.b64decode(images[0], validate=True) if images else b""
    if (cover and not cover.startswith(b"\xff\xd8")) or len(cover) > MAX_COVER_BYTES:
        raise ValueError("a cover that is no small JPEG picture")
    return cover


def _count(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no count")
    return value


def _effect(value: object) -> float | None:
    if value is None:
        return None
    if type(value) not in (int, float) or not 0 <= (effect := float(cast("float", value))) < math.inf:
        raise ValueError(f"{value!r} is no effect")
    return effect


def _text(value: object) -> str:
    # Without control characters and halves of surrogate pairs; joiners, marks of direction and all spaces are text.
    if not isinstance(value, str) or any(unicodedata.category(c) in ("Cc", "Cs") for c in value if c not in "\n\t"):
        raise ValueError(f"{value!r} is no plain text")
    return value


def _texts(value: Mapping[str, object]) -> dict[str, str]:
    return {_text(key): _text(text) for key, text in value.items()}
