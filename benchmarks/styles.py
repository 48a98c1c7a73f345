"""Whether steering turns one style of the demo model into another, and keeps the content of the picture."""

from __future__ import annotations

import argparse
import time
from collections.abc import Generator
from itertools import permutations
from pathlib import Path

import numpy as np
from torch import Tensor

from tools.results import Cell, Column, Estimate
from tools.train_demo_model.emoji import STYLES

from .lib.against_rerunning import measure_against_rerunning
from .lib.judge import load_pictures
from .lib.pictures import FIT_BATCH, PictureSetting, StyleBench, save_sheet, style_pair
from .lib.report import Report, at_least, below, parse

SHOWN = 4
FIT_PROMPTS = 128
FIT_RUNS = 3
PAIR_COLUMNS = (
    Column("styles"),
    Column("unsteered", format=".2f"),
    Column("strength 1", format=".2f", spread="interval"),
    Column("prompted", format=".2f"),
    Column("real", format=".2f"),
    Column("strength 1 / prompted", format=".2f"),
    Column("content kept", format=".2f"),
    Column("fit", "s", ".1f"),
)
MEDIAN_STYLE = Column("strength 1 / prompted, median over pairs", format=".2f")
WORST_STYLE = Column("strength 1 / prompted, worst pair", format=".2f")
HIGH_PAIRS = Column("pairs of at least 0.85", format="d")
HIGH_REAL = Column("pairs of at least 0.85, real emoji", format="d")
MEDIAN_CONTENT = Column("content kept, median over pairs", format=".2f")
FIT_SECONDS = Column("fit of all sites", "s", ".2f")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.styles", description=__doc__)
    parser.add_argument("--concepts", type=int, default=32, help="how many to draw (%(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="pictures of each (%(default)s)")
    parser.add_argument("--sheets", type=Path, help="folder for styles.jpg, a sheet of the pictures")
    args = parse(parser, arguments, quick={"concepts": 24, "seeds": 1})

    report = Report("styles", "Steering the demo model from style to style", args, "diffusers")
    bench = StyleBench(args.concepts, args.seeds, load_pictures())
    all_pairs(report, bench, args.sheets)
    source, target = bench.prompts(0, 4, FIT_PROMPTS)
    seconds = measure_against_rerunning(
        report, bench.model, source, target, sites="all", batch_size=FIT_BATCH, repeats=FIT_RUNS
    )
    report.figure("fit_seconds", FIT_SECONDS, seconds, below(3, unit="s"))
    return report.finish()


def all_pairs(report: Report, bench: StyleBench, sheets: Path | None) -> None:
    """All ordered pairs of styles, with the default settings."""
    report.text(
        f"Maps of {FIT_PROMPTS} + {FIT_PROMPTS} prompts; {len(bench.concepts)} held-out concepts x {bench.seeds} seeds "
        "each. Probability of the target style, by a judge that was not trained on these concepts, with 95% bootstrap "
        "intervals over concepts. Content kept: 1 for the picture that the same noise gives when the target style is "
        "prompted, 0 for another concept. Real: the probability for real emoji of that style and these concepts, "
        "encoded and decoded as generated pictures are."
    )
    shown: list[list[Tensor]] = []

    def rows() -> Generator[list[Cell], None, None]:
        for source, target in permutations(range(len(STYLES)), 2):
            start = time.perf_counter()
            maps = bench.fit(source, target, PictureSetting())
            seconds = time.perf_counter() - start
            steered = bench.steered(maps, bench.captions(source, bench.concepts), 1.0)
            found = bench.interval(steered.styles[:, target])
            before, prompted = (float(bench.prompted(style).styles[:, target].mean()) for style in (source, target))
            judged = [before, found, prompted, bench.real(target), found.value / prompted]
            yield [style_pair(source, target), *judged, bench.content(steered.features, target), seconds]
            three = (bench.prompted(source), steered, bench.prompted(target))
            shown.append([drawn.images[n] for n in range(SHOWN) for drawn in three])

    table = report.table("pairs", "All pairs of styles", PAIR_COLUMNS, rows())
    if sheets:
        titles = ["unsteered", "steered", "prompted"] * SHOWN
        save_sheet(sheets / "styles.jpg", shown, [str(row[0]) for row in table.rows], titles)
    absolute, real, relative, contents = (np.array([_number(row[at]) for row in table.rows]) for at in (2, 4, 5, 6))
    report.figure("median_style", MEDIAN_STYLE, float(np.median(relative)), at_least(0.92))
    report.figure("high_pairs", HIGH_PAIRS, int((absolute >= 0.85).sum()), at_least(12))
    report.figure("high_real", HIGH_REAL, int((real >= 0.85).sum()))
    report.figure("worst_style", WORST_STYLE, float(relative.min()), at_least(0.8))
    report.figure("median_content", MEDIAN_CONTENT, float(np.median(contents)), at_least(0.75))


def _number(cell: Cell) -> float:
    return float(cell.value if isinstance(cell, Estimate) else cell)


if __name__ == "__main__":
    raise SystemExit(main())
