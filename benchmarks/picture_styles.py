"""Whether a map that is refined on pictures of a style draws in that style, and keeps the content of the picture."""

from __future__ import annotations

import argparse
from collections.abc import Generator
from itertools import permutations
from statistics import median

from act_core import ActMap
from tools.results import Cell, Column, Estimate
from tools.train_demo_model.emoji import STYLES

from .lib.controls import permuted
from .lib.judge import load_pictures
from .lib.learned_styles import content_kept, learned
from .lib.pictures import PictureSetting, StyleBench, style_pair
from .lib.report import Report, at_least, below, parse

MANY, FEW = 32, 12
PAIR_COLUMNS = (
    Column("styles"),
    Column("unsteered", format=".2f"),
    Column("prompted", format=".2f"),
    Column(f"{MANY} pictures", format=".2f", spread="interval"),
    Column(f"{FEW} pictures, no captions", format=".2f", spread="interval"),
    Column("control", format=".2f"),
    Column(f"{MANY} pictures / prompted", format=".2f"),
    Column(f"{FEW} pictures / prompted", format=".2f"),
    Column(f"content, {MANY} pictures", format=".2f"),
    Column("content, prompt-fitted map", format=".2f"),
    Column("content, prompted", format=".2f"),
)
MEDIAN_MANY = Column(f"{MANY} pictures, of prompting, median over pairs", format=".2f")
WORST_MANY = Column(f"{MANY} pictures, of prompting, worst pair", format=".2f")
MEDIAN_FEW = Column(f"{FEW} pictures without captions, of prompting, median over pairs", format=".2f")
CONTENT = Column(f"content kept, {MANY} pictures, median over pairs", format=".2f")
CONTENT_FITTED = Column("content kept, prompt-fitted map, median over pairs", format=".2f")
CONTENT_PROMPTED = Column("content kept, prompting, median over pairs", format=".2f")
SECONDS = Column(f"refinement on {MANY} pictures, everything included", "s", ".1f")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.picture_styles", description=__doc__)
    parser.add_argument("--concepts", type=int, default=24, help="how many to draw (%(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="pictures of each (%(default)s)")
    args = parse(parser, arguments, quick={"concepts": 16, "seeds": 1})

    report = Report("picture_styles", "A style from pictures, on the demo model", args, "diffusers")
    bench = StyleBench(args.concepts, args.seeds, load_pictures())
    report.text(
        f"Maps refined on real emoji of the target style; {len(bench.concepts)} held-out concepts x {bench.seeds} "
        "seeds, prompted in the source style. Probability of the target style, by a judge that was not trained on "
        "these concepts, with 95% bootstrap intervals over concepts. Control: the map of the same pair with its "
        "coefficients shuffled over the channels. Content: 1 if a picture shows what the unsteered one does, 0 if "
        "another concept; a prompt-fitted map has 128 + 128 prompts and steers the text encoder, too."
    )
    many = [learned(bench, style, MANY) for style in range(len(STYLES))]
    few = [learned(bench, style, FEW, captions=False).act_map for style in range(len(STYLES))]

    def rows() -> Generator[list[Cell], None, None]:
        for source, target in permutations(range(len(STYLES)), 2):
            found, content = measured(bench, many[target].act_map, source, target)
            found_few, _ = measured(bench, few[target], source, target)
            control, _ = measured(bench, permuted(many[target].act_map), source, target)
            _, content_fitted = measured(bench, bench.fit(source, target, PictureSetting())[0], source, target)
            before, prompted = (float(bench.prompted(style).styles[:, target].mean()) for style in (source, target))
            content_prompted = float(content_kept(bench, bench.prompted(target), source).mean())
            ratios = found.value / prompted, found_few.value / prompted
            contents = content, content_fitted, content_prompted
            yield [style_pair(source, target), before, prompted, found, found_few, control.value, *ratios, *contents]

    table = report.table("pairs", "All pairs of styles", PAIR_COLUMNS, rows())

    def column(at: int) -> list[float]:
        return [float(cell) for row in table.rows if isinstance(cell := row[at], float)]

    report.figure("median_many", MEDIAN_MANY, median(column(6)), at_least(0.85))
    report.figure("worst_many", WORST_MANY, min(column(6)), at_least(0.6))
    report.figure("median_few", MEDIAN_FEW, median(column(7)), at_least(0.7))
    prompted = median(column(10))
    fitted = median(column(9))
    report.figure("content", CONTENT, median(column(8)), at_least(max(prompted, fitted), ".2f"))
    report.figure("content_fitted", CONTENT_FITTED, fitted)
    report.figure("content_prompted", CONTENT_PROMPTED, prompted)
    report.figure("seconds", SECONDS, median(one.seconds for one in many), below(20, unit="s"))
    return report.finish()


def measured(bench: StyleBench, act_map: ActMap, source: int, target: int) -> tuple[Estimate, float]:
    """Probability of the target style, and content kept, of pictures that a map steers at strength 1."""
    drawn = bench.steered({0: act_map}, bench.captions(source, bench.concepts), 1.0)
    return bench.interval(drawn.styles[:, target]), float(content_kept(bench, drawn, source).mean())


if __name__ == "__main__":
    raise SystemExit(main())
