"""The settings tried to choose the defaults for image models, on concepts that `styles` does not use."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable
from typing import Any

import numpy as np

from tools.results import Cell, Column

from .lib.judge import load_pictures
from .lib.pictures import COMPONENTS, PictureSetting, StyleBench, style_pair
from .lib.report import Report, parse

# The pairs used to choose the settings: easy, hard, and in both directions.
PAIRS = ((0, 4), (4, 1), (3, 2), (1, 0))
STRENGTHS = (0.5, 1.0, 1.5)
COLUMNS = (
    Column("setting"),
    Column("sites", format="d"),
    *(Column(f"probability at {strength:g}", format=".2f") for strength in STRENGTHS),
    *(Column(f"content at {strength:g}", format=".2f") for strength in STRENGTHS),
    Column("fit", "s", ".1f"),
)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.style_settings", description=__doc__)
    parser.add_argument("--concepts", type=int, default=16, help="how many to draw (%(default)s)")
    parser.add_argument("--seeds", type=int, default=1, help="pictures of each (%(default)s)")
    parser.add_argument("--first", type=int, help="only the first settings")
    args = parse(parser, arguments)

    report = Report("style_settings", "Settings tried for image models", args, "diffusers")
    bench = StyleBench(args.concepts, args.seeds, load_pictures(), last=True)
    pairs = "; ".join(style_pair(source, target) for source, target in PAIRS)
    report.text(f"{len(bench.concepts)} concepts x {bench.seeds} seeds, means over the pairs {pairs}.")
    settings = list(settings_to_try())[: args.first]
    report.table("settings", "Settings", COLUMNS, (measured(bench, setting) for setting in settings))
    return report.finish()


def settings_to_try() -> Iterable[PictureSetting]:
    """Sites of each component and of both; then every other setting, one change at a time."""
    for sites in ("norms", "attention", "mlp", "blocks", "attention,mlp", "all"):
        for components in COMPONENTS:
            yield PictureSetting(sites, components)
    yield PictureSetting("output", "text")
    yield PictureSetting("output,attention")
    yield PictureSetting("output,attention,mlp")
    changes: tuple[dict[str, Any], ...] = (
        {"estimator": "mean"},
        {"estimator": "gaussian"},
        {"order": "simultaneous"},
        {"moved": "both"},
        {"branch": "both"},
        {"branch": "negative"},
        *({"prompts": count} for count in (8, 32, 512)),
        {"steps": 4},
    )
    for changed in changes:
        yield PictureSetting(**changed)


def measured(bench: StyleBench, setting: PictureSetting) -> list[Cell]:
    """A row of the table."""
    probability: list[list[float]] = [[] for _ in STRENGTHS]
    content: list[list[float]] = [[] for _ in STRENGTHS]
    seconds, sites = 0.0, 0
    for source, target in PAIRS:
        start = time.perf_counter()
        maps = bench.fit(source, target, setting)
        seconds += (time.perf_counter() - start) / len(PAIRS)
        sites = len(maps[0])
        for number, strength in enumerate(STRENGTHS):
            drawn = bench.steered(maps, bench.captions(source, bench.concepts), strength, setting.branch)
            probability[number].append(float(drawn.styles[:, target].mean()))
            content[number].append(bench.content(drawn.features, target))
    return [setting.changes, sites, *(float(np.mean(values)) for values in (*probability, *content)), seconds]


if __name__ == "__main__":
    raise SystemExit(main())
