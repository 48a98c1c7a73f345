"""Saves the maps of ``pretrained_maps``, with what the benchmarks measured of each as its evidence block."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from act_core import ActMap, save_map
from act_core.records import Evidence

from .results import RESULTS, ROOT, Cell, Estimate, Result, load_result

# 2026-11-27. The same maps have the same bytes whenever they are fitted.
DATE = "1795737600"
# What follows the name of a map in the row of its control.
CONTROL = ", channels permuted"
# What each score of `benchmarks.text_maps` is.
TEXT_MEASURES = {
    "VADER": "mood of the text (VADER, -1 to 1)",
    "ornate": "share of texts with an ornate word",
    "long words": "share of words of 7 letters or more",
    "nature": "share of texts with a word of nature",
    "night": "share of texts with a word of night",
}


def save_shipped(act_map: ActMap, file: Path, **card: Any) -> None:
    """Write a shipped map.

    Args:
        act_map: the map.
        file: in ``pretrained_maps``.
        card: as for `act_core.save_map`; author and license are added.
    """
    os.environ["SOURCE_DATE_EPOCH"] = DATE
    found = text_evidence() if file.stem.startswith("text_") else demo_evidence()
    # A new map is measured once it is there.
    measured = replace(act_map, evidence=tuple(found.get(file.stem, ())))
    save_map(measured, file, author="ACT Steering", license="CC0-1.0", **card)
    print(f"wrote {file.relative_to(ROOT)}: {len(act_map)} sites, {file.stat().st_size / 1e6:.2f} MB", flush=True)


def text_evidence() -> dict[str, list[Evidence]]:
    """By the name of the map, from ``benchmarks/results/text_maps.json``."""
    result = load_result("text_maps")
    rows = {(row[0], row[2]): row for row in result.tables["strengths"].rows}
    found: dict[str, list[Evidence]] = {}
    for name in dict.fromkeys(str(row[0]) for row in result.tables["strengths"].rows if CONTROL not in str(row[0])):
        after = _estimate(rows[name, 1.0][3])
        found[f"text_{name}"] = [
            Evidence(
                TEXT_MEASURES[str(rows[name, 1.0][1])],
                after.value,
                after.low,
                after.high,
                without=_estimate(rows[name, 0.0][3]).value,
                control=_value(rows, name + CONTROL),
                model="SmolLM2-135M-Instruct",
                version=_version(result),
                command=result.command,
            )
        ]
    return found


def demo_evidence() -> dict[str, list[Evidence]]:
    """By the name of the map, from ``benchmarks/results/demo_maps.json``."""
    if not (RESULTS / "demo_maps.json").exists():
        return {}
    result = load_result("demo_maps")
    found: dict[str, list[Evidence]] = {}
    for name, measure, strength, pictures, after, without, control, kept in result.tables["maps"].rows:
        value = _estimate(after)
        found.setdefault(str(name), []).append(
            Evidence(
                str(measure),
                value.value,
                value.low,
                value.high,
                without=float(str(without)),
                control=float(str(control)),
                kept=float(str(kept)),
                strength=float(str(strength)),
                samples=int(str(pictures)),
                model="the demo model",
                version=_version(result),
                command=result.command,
            )
        )
    return found


def _estimate(cell: Cell) -> Estimate:
    assert isinstance(cell, Estimate)
    return cell


def _value(rows: Mapping[tuple[Cell, Cell], Sequence[Cell]], name: str) -> float | None:
    """The mean of a row at strength 1; None in results from before there were controls."""
    return _estimate(rows[name, 1.0][3]).value if (name, 1.0) in rows else None


def _version(result: Result) -> str:
    return f"act-steering {result.machine['libraries']['act-steering']}"
