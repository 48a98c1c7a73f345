"""Writes a map file atomically."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from ..errors import MapFileError
from ..files import write_whole
from ..maps import ActMap
from ..records import CARD_TEXTS, Card
from ..sites import Site
from ..text import plain_text
from ..transport import MIN_INVERTIBLE_SLOPE, Transport
from . import fields
from .container import Container, modelspec
from .format import (
    BOUNDS,
    CALIBRATION_KEY,
    COVERS_KEY,
    EVIDENCE_KEY,
    FORMAT,
    FORMAT_KEY,
    FORMAT_WITH_SEGMENTS,
    GATE,
    LEVELS_KEY,
    MAX_HEADER_BYTES,
    PROJECTION,
    RANGE_KEY,
    RECORD_KEY,
    SITES_KEY,
    STATISTICS,
    SUFFIX,
    THUMBNAIL_KEY,
)
from .read import read_map


def save_map(
    act_map: ActMap,
    path: str | os.PathLike[str],
    *,
    title: str | None = None,
    author: str | None = None,
    description: str | None = None,
    license: str | None = None,
    usage_hint: str | None = None,
    tags: str | None = None,
    strength_range: tuple[float, float] | None = None,
    cover: bytes | None = None,
    statistics: bool = False,
    keep_prompts: bool = True,
) -> Path:
    """Write a map to one ``.safetensors`` file; if that fails, an existing file stays as it was.

    Args:
        act_map: the map.
        path: of the file; an existing map is replaced.
        title, author, description, license, usage_hint, tags, strength_range, cover: replace those of the map's card,
            where given. Texts are saved as `act_core.text.plain_text` returns them.
        statistics: also keep means and deviations of the pooled values, which triples the size. Sites that cannot
            be inverted without them always keep them.
        keep_prompts: also keep the prompts. Without them the file has only their number and a hash: a map against slurs
            need not spell them out.

    Returns:
        The path.

    Raises:
        MapFileError: the name does not end in ``.safetensors``, a value cannot be saved, or the file cannot be
            written.

    Example:
        >>> import tempfile
        >>> site = Site("toy", "layer", None, "tokens", 2)
        >>> act_map = ActMap({site: Transport(torch.ones(2), torch.zeros(2))})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = save_map(act_map, f"{folder}/calm.safetensors", title="Calm")
        ...     load_map(path).card.title
        'Calm'
    """
    path = Path(path)
    if path.suffix != SUFFIX:
        raise MapFileError(f"{path.name} is not a name for a map file; it must end in {SUFFIX}.")
    texts = dict(zip(CARD_TEXTS, (title, author, description, license, usage_hint, tags), strict=True))
    changes: dict[str, Any] = {"strength_range": strength_range, "cover": cover, **texts}
    try:
        card = _checked_card(replace(act_map.card, **{name: new for name, new in changes.items() if new is not None}))
        data = _serialised(act_map, card, statistics=statistics, keep_prompts=keep_prompts)
    except (MapFileError, TypeError, ValueError) as error:
        raise MapFileError(f"{path.name} was not written: {error}") from error
    try:
        write_whole(path, data, check=read_map)
    except OSError as error:
        raise MapFileError(f"{path} could not be written: {error.strerror or error}; choose another folder.") from error
    except (MapFileError, TypeError, ValueError) as error:
        raise MapFileError(f"{path.name} was not written, because it could not be read again: {error}") from error
    return path


def _checked_card(card: Card) -> Card:
    """The card as it can be saved.

    Raises:
        MapFileError: a value of it cannot be.
    """
    for name in CARD_TEXTS:
        if not isinstance(value := cast("object", getattr(card, name)), str):
            raise MapFileError(f"the {name} is {value!r}; give a text.")
    if (ends := card.strength_range) is not None:
        try:
            low, high = sorted(fields.number("an end", float(end)) for end in ends)
        except (TypeError, ValueError, OverflowError) as error:
            raise MapFileError(f"the strength range is {ends!r}; give two finite numbers.") from error
        ends = low, high
    try:
        fields.jpeg("the cover", card.cover)
    except ValueError as error:
        raise MapFileError(f"{error}; give another, or none.") from error
    return replace(card, **{name: plain_text(getattr(card, name)) for name in CARD_TEXTS}, strength_range=ends)


def _serialised(act_map: ActMap, card: Card, *, statistics: bool, keep_prompts: bool) -> bytes:
    tensors: dict[str, Tensor] = {}
    for site, transport in act_map.transports.items():
        for name, tensor in _tensors(transport, statistics=statistics):
            # A copy, because safetensors refuses views and tensors that sites share.
            tensors[f"{site.key}.{name}"] = tensor.clone(memory_format=torch.contiguous_format)
    kept = max(len(act_map.record.source_prompts), len(act_map.record.target_prompts)) if keep_prompts else 0
    container = Container(tensors)
    while True:
        metadata = _header(act_map, card, kept)
        header = container.header(metadata)
        if len(header) <= MAX_HEADER_BYTES:
            return container.file(header)
        if not kept:
            raise _too_large(metadata, len(act_map))
        kept //= 2


def _too_large(metadata: Mapping[str, str], sites: int) -> MapFileError:
    """The error for a header that does not fit, which names what takes the most of it."""
    texts = {f"modelspec.{name}": name.replace("_", " ") for name in CARD_TEXTS}
    parts = {**texts, RECORD_KEY: "record of the fit", EVIDENCE_KEY: "evidence"}
    largest = max(metadata, key=lambda name: len(metadata[name]))
    if largest not in parts:
        return MapFileError(f"a map of {sites} sites is too large for one file; restrict it to fewer sites.")
    limit, size = (number >> 10 for number in (MAX_HEADER_BYTES, len(metadata[largest].encode())))
    return MapFileError(f"the {parts[largest]} takes {size} KiB of the {limit} KiB of a description; shorten it.")


def _tensors(transport: Transport, *, statistics: bool) -> Iterator[tuple[str, Tensor]]:
    yield "omega", transport.omega
    yield "beta", transport.beta
    if transport.low is not None and transport.high is not None:
        yield from zip(BOUNDS, (transport.low, transport.high), strict=True)
    if transport.gate is not None:
        yield GATE, transport.gate.packed()
    if transport.projection is not None:
        yield PROJECTION, transport.projection.packed()
    needed = bool((transport.omega < MIN_INVERTIBLE_SLOPE).any())
    if transport.statistics is not None and (statistics or needed):
        yield from zip(STATISTICS, transport.statistics, strict=True)


def _header(act_map: ActMap, card: Card, kept: int) -> dict[str, str]:
    """The metadata, with the first `kept` prompts of each side."""
    sites = [
        {**_described(site), "fallbacks": t.fallbacks, "effect": t.effect} for site, t in act_map.transports.items()
    ]
    record = asdict(act_map.record)
    for side in ("source_prompts", "target_prompts"):
        record[side] = record[side][:kept]
    if not record["merged_from"]:
        del record["merged_from"]
    header = {
        FORMAT_KEY: _format(act_map),
        SITES_KEY: json.dumps(sites),
        RECORD_KEY: json.dumps(_plain(record)),
        **modelspec(card, act_map.record.base.values(), "act-map"),
    }
    if card.strength_range is not None:
        header[RANGE_KEY] = json.dumps(card.strength_range)
    if merged_from := act_map.record.merged_from:
        header["modelspec.merged_from"] = plain_text(", ".join(merged_from))
    if act_map.levels:
        header[LEVELS_KEY] = json.dumps(act_map.levels)
    if act_map.calibration is not None:
        header[CALIBRATION_KEY] = json.dumps(asdict(act_map.calibration))
    if act_map.evidence:
        header[EVIDENCE_KEY] = json.dumps(_plain([asdict(found) for found in act_map.evidence]))
    if card.cover:
        cover = base64.b64encode(card.cover).decode()
        header |= {COVERS_KEY: json.dumps([cover]), THUMBNAIL_KEY: f"data:image/jpeg;base64,{cover}"}
    return header


def _format(act_map: ActMap) -> str:
    """The oldest format that can hold a map."""
    has_segments = any(site.segment for site in act_map.transports)
    has_parts = any(transport.gate or transport.projection for transport in act_map.transports.values())
    needs_2 = has_segments or has_parts or act_map.levels or act_map.calibration is not None
    return FORMAT_WITH_SEGMENTS if needs_2 else FORMAT


def _described(site: Site) -> dict[str, Any]:
    return {name: value for name, value in asdict(site).items() if name != "segment" or value}


def _plain(value: Any) -> Any:
    """A value of a record with `plain_text` in place of each text: prompts, notes, titles of other maps."""
    if isinstance(value, str):
        return plain_text(value)
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in cast("dict[Any, Any]", value).items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in cast("list[Any]", value)]
    return value
