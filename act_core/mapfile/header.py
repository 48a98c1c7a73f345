"""The header of a map file: everything but its tensors. Nothing in it is trusted: each part is checked."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

from ..calibration import Calibration, Negative
from ..errors import AGAIN, MapError, MapFileError
from ..records import CARD_TEXTS, Card, Evidence, Fingerprint, FitRecord
from ..sites import End, Layout, Segment, Site
from . import fields
from .format import (
    CALIBRATION_KEY,
    COVERS_KEY,
    EVIDENCE_KEY,
    FORMAT,
    FORMAT_KEY,
    FORMAT_WITH_SEGMENTS,
    HASH_KEY,
    LEVELS_KEY,
    MAX_CHANNELS,
    RANGE_KEY,
    RECORD_KEY,
    SITES_KEY,
)

# Parts of the names of tensors in a LoRA and its relatives.
_LORA = ("lora", "dora_", "hada_", "lokr_", ":up", ":down")

_LAYOUTS, _ENDS = get_args(Layout), get_args(End)


@dataclass(frozen=True)
class MapHeader:
    """What a map file says about its map, without the coefficients.

    Attributes:
        sites: in execution order.
        fallbacks, effects: of each site, as in `act_core.transport.Transport`. Columns, since a listing keeps those of
            many maps, and the garbage collector would spend a quarter of its time on rows.
        record, card, calibration, levels, evidence: as in `act_core.ActMap`.
        tensors_sha256: hash of the tensors that follow the header, in hexadecimal; empty in older files.
    """

    sites: tuple[Site, ...]
    fallbacks: tuple[int, ...]
    effects: tuple[float | None, ...]
    record: FitRecord
    card: Card
    calibration: Calibration | None
    levels: tuple[float, ...]
    evidence: tuple[Evidence, ...]
    tensors_sha256: str


def parse_header(metadata: Mapping[str, str], tensors: Callable[[], Iterable[str]]) -> MapHeader:
    """Check the metadata of a safetensors file.

    Args:
        metadata: from the file.
        tensors: returns their names; called only for a file that is not a map.

    Raises:
        MapFileError: the file is not an ACT map, is damaged, or is of a later format. The name of the file is left out.
    """
    _check_version(metadata, tensors)
    try:
        entries = fields.items("sites", json.loads(metadata[SITES_KEY]), fields.record)
        header = MapHeader(
            tuple([_site(entry) for entry in entries]),
            tuple([_fallbacks(entry["fallbacks"]) for entry in entries]),
            tuple([_effect(entry["effect"]) for entry in entries]),
            _record(json.loads(metadata[RECORD_KEY])),
            _card(metadata),
            _calibration(metadata),
            fields.levels("the noise levels", json.loads(metadata.get(LEVELS_KEY, "[]"))),
            fields.items("the evidence", json.loads(metadata.get(EVIDENCE_KEY, "[]")), _evidence),
            fields.text("the hash of the tensors", metadata.get(HASH_KEY, "")).removeprefix("0x"),
        )
    except MapError:  # of the calibration; it is a ValueError, too
        raise
    except KeyError as error:
        raise MapFileError(f"its description has no {error}; {AGAIN}") from error
    except (ValueError, RecursionError) as error:
        raise MapFileError(f"its description is damaged ({error}); {AGAIN}") from error
    if len({site.key for site in header.sites}) != len(header.sites):
        raise MapFileError(f"it names a site twice; {AGAIN}")
    return header


def _check_version(metadata: Mapping[str, str], tensors: Callable[[], Iterable[str]]) -> None:
    version = metadata.get(FORMAT_KEY)
    if version is None and any(mark in name.lower() for name in tensors() for mark in _LORA):
        raise MapFileError("it is a LoRA, which changes weights, not an ACT map; load it with a LoRA loader.")
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


def _site(entry: Mapping[str, object]) -> Site:
    place = entry["component"], entry["name"], entry["output"], entry["layout"], entry["channels"]
    try:
        site = _known_site(*place)
    except TypeError:  # a list or a table in place of a value cannot be hashed
        site = _whole_site(*place)
    segment = entry.get("segment")
    if segment is None:
        return site
    if site.layout != "tokens":
        raise ValueError(f"site {site.name} has a segment, but no tokens")
    return replace(site, segment=_segment(site.name, segment))


def _whole_site(component: object, name: object, output: object, layout: object, channels: object) -> Site:
    component = fields.identifier("a component", component)
    name = fields.identifier("the name of a site", name)
    output = None if output is None else fields.count("an output index", output)
    layout = cast("Layout", fields.word("a layout", layout, _LAYOUTS))
    channels = fields.count("the number of channels", channels)
    if not 0 < channels <= MAX_CHANNELS:
        raise ValueError(f"site {name} has {channels} channels")
    return Site(component, name, output, layout, channels)


# The maps of a folder are often for one model: their sites are checked once. Typed, since True is not 1 channel.
_known_site = lru_cache(maxsize=1 << 14, typed=True)(_whole_site)


def _segment(site: str, value: object) -> Segment:
    entry = fields.record(f"the segment of site {site}", value)
    output = entry["output"]
    return Segment(
        cast("End", fields.word("the end of a segment", entry["end"], _ENDS)),
        fields.identifier("the gauge of a segment", entry["gauge"]),
        None if output is None else fields.count("an output index", output),
        cast("End", fields.word("what a gauge measures", entry["measures"], _ENDS)),
    )


def _fallbacks(value: object) -> int:
    return fields.count("the number of fallbacks", value)


def _effect(value: object) -> float | None:
    effect = None if value is None else fields.number("an effect", value)
    if effect is not None and effect < 0:
        raise ValueError(f"an effect is {effect}, below 0")
    return effect


# The validator of each field of `Evidence`, by its declared type.
_EVIDENCE: dict[str, fields.Validator] = {
    "str": fields.text,
    "int": fields.count,
    "float": fields.number,
    "float | None": fields.number,
}


def _evidence(name: str, value: object) -> Evidence:
    entry = fields.record(name, value)
    values = {
        declared.name: _EVIDENCE[cast("str", declared.type)](f"{declared.name} of {name}", entry[declared.name])
        for declared in dataclasses.fields(Evidence)
        if entry.get(declared.name) is not None or declared.default is dataclasses.MISSING
    }
    return Evidence(**values)


def _record(value: object) -> FitRecord:
    """A record whose values have the types that `FitRecord` declares; missing values get their defaults."""
    entry = fields.record("the record", value)
    values = {name: check(name, entry[name]) for name, check in _record_validators().items() if name in entry}
    return FitRecord(**values)


@cache  # evaluating the annotations takes longer than reading a record
def _record_validators() -> Mapping[str, fields.Validator]:
    return {name: _validator(kind) for name, kind in get_type_hints(FitRecord).items()}


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
