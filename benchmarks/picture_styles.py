"""Whether a map that is fitted on pictures of a style draws in that style, and keeps the content of the picture."""

from __future__ import annotations

import argparse
from collections.abc import Generator
from itertools import permutations
from statistics import median

from act_core import ActMap
from act_core.models.picture_loss import PictureModel
from tools.results import Cell, Column, Estimate
from tools.train_demo_model.emoji import STYLES

from .lib.controls import permuted
from .lib.judge import load_pictures
from .lib.learned_styles import Learned, content_kept, drawn_with, examples, refined, transported
from .lib.pictures import PictureSetting, StyleBench, style_pair
from .lib.report import Report, at_least, below, parse

MANY, FEW = 32, 12
STEPS = 8
PAIR_COLUMNS = (
    Column("styles"),
    Column("unsteered", format=".2f"),
    Column("prompted", format=".2f"),
    Column("refined", format=".2f", spread="interval"),
    Column("transport", format=".2f"),
    Column("control", format=".2f"),
    Column("refined / prompted", format=".2f"),
    Column("transport / prompted", format=".2f"),
    Column("content, refined", format=".2f"),
    Column("content, transport", format=".2f"),
    Column("content, prompt-fitted map", format=".2f"),
    Column("content, prompted", format=".2f"),
)
PLAIN_COLUMNS = (
    Column("style"),
    Column("unsteered", format=".2f"),
    Column("prompted", format=".2f"),
    *(
        Column(words, format=".2f", spread="interval")
        for words in (
            f"{MANY} pictures",
            f"{FEW} pictures",
            f"{FEW} pictures, empty captions",
            f"{FEW} pictures, named",
        )
    ),
    Column("named / prompted", format=".2f"),
    Column("content, named", format=".2f"),
    Column("content, prompted", format=".2f"),
)
MEDIAN_MANY = Column(f"refined on {MANY} pictures, of prompting, median over pairs", format=".2f")
WORST_MANY = Column(f"refined on {MANY} pictures, of prompting, worst pair", format=".2f")
MEDIAN_FEW = Column(f"refined on {FEW} pictures without captions, of prompting, median over styles", format=".2f")
MEDIAN_TRANSPORT = Column(f"transport from {MANY} pictures, of prompting, median over pairs", format=".2f")
CONTENT = Column("content kept, refined, median over pairs", format=".2f")
CONTENT_FITTED = Column("content kept, prompt-fitted map, median over pairs", format=".2f")
CONTENT_PROMPTED = Column("content kept, prompting, median over pairs", format=".2f")
SECONDS = Column(f"refinement on {MANY} pictures, everything included", "s", ".1f")
SECONDS_TRANSPORT = Column(f"transport from {MANY} pictures, everything included", "s", ".1f")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.picture_styles", description=__doc__)
    parser.add_argument("--concepts", type=int, default=24, help="how many to draw (%(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="pictures of each (%(default)s)")
    args = parse(parser, arguments, quick={"concepts": 16, "seeds": 1})

    report = Report("picture_styles", "A style from pictures, on the demo model", args, "diffusers")
    bench = StyleBench(args.concepts, args.seeds, load_pictures(), steps=STEPS)
    all_pairs(report, bench)
    plain_prompts(report, bench)
    return report.finish()


def all_pairs(report: Report, bench: StyleBench) -> None:
    """Prompts that name one style, steered to each other one."""
    report.text(
        f"Maps fitted on {MANY} real emoji of the target style, whose captions name the source style, as the prompts "
        f"do; {len(bench.concepts)} held-out concepts x {bench.seeds} seeds, {STEPS} denoising steps, strength 1. "
        "Probability of the target style, by a judge that was not trained on these concepts, with 95% bootstrap "
        "intervals over concepts. Control: the refined map with its coefficients shuffled over the channels. Content: "
        "1 if a picture shows what the unsteered one does, 0 if another concept. Prompt-fitted maps have 128 + 128 "
        "prompts."
    )
    fits: list[Learned] = []
    transports: list[Learned] = []

    def rows() -> Generator[list[Cell], None, None]:
        for source, target in permutations(range(len(STYLES)), 2):
            pictures = examples(bench, bench.pictures.images[target], MANY, named=source)
            fits.append(refined(bench, pictures))
            transports.append(transported(bench, pictures))
            found, content = measured(bench, fits[-1].act_map, source, target)
            moved, content_moved = measured(bench, transports[-1].act_map, source, target)
            control, _ = measured(bench, permuted(fits[-1].act_map), source, target)
            _, content_fitted = measured(bench, bench.fit(source, target, PictureSetting())[0], source, target)
            before, prompted = (float(bench.prompted(style).styles[:, target].mean()) for style in (source, target))
            content_prompted = float(content_kept(bench.prompted(target), bench.prompted(source)).mean())
            contents = content, content_moved, content_fitted, content_prompted
            styles = before, prompted, found, moved.value, control.value
            yield [style_pair(source, target), *styles, found.value / prompted, moved.value / prompted, *contents]

    table = report.table("pairs", "All pairs of styles", PAIR_COLUMNS, rows())

    def column(at: int) -> list[float]:
        return [float(cell) for row in table.rows if isinstance(cell := row[at], float)]

    report.figure("median_many", MEDIAN_MANY, median(column(6)), at_least(0.85))
    report.figure("worst_many", WORST_MANY, min(column(6)), at_least(0.6))
    report.figure("median_transport", MEDIAN_TRANSPORT, median(column(7)), at_least(0.5))
    fitted, prompted = median(column(10)), median(column(11))
    report.figure("content", CONTENT, median(column(8)), at_least(max(fitted, prompted), ".2f"))
    report.figure("content_fitted", CONTENT_FITTED, fitted)
    report.figure("content_prompted", CONTENT_PROMPTED, prompted)
    report.figure("seconds", SECONDS, median(one.seconds for one in fits), below(20, unit="s"))
    report.figure(
        "seconds_transport", SECONDS_TRANSPORT, median(one.seconds for one in transports), below(15, unit="s")
    )


def plain_prompts(report: Report, bench: StyleBench) -> None:
    """Prompts that name no style."""
    report.text(
        f"Prompts without a style, for which the model draws the {STYLES[0].phrase} style; refined maps, whose "
        "pictures have captions without a style, or none. "
        "Without captions, the model names the pictures itself (named), or they get the empty caption."
    )
    texts = bench.captions(None, bench.concepts)
    plain = bench.plain
    ratios: list[float] = []

    def rows() -> Generator[list[Cell], None, None]:
        for target in range(1, len(STYLES)):
            found: list[Estimate] = []
            content = 0.0
            for count, captions, is_named in (
                (MANY, True, False),
                (FEW, True, False),
                (FEW, False, False),
                (FEW, False, True),
            ):
                pictures = examples(bench, bench.pictures.images[target], count, named=None, captions=captions)
                pictures = PictureModel(bench.model).named(pictures) if is_named else pictures
                drawn = drawn_with(bench, refined(bench, pictures).act_map, texts)
                found.append(bench.interval(drawn.styles[:, target]))
                content = float(content_kept(drawn, plain).mean())
            prompted = float(bench.prompted(target).styles[:, target].mean())
            ratios.append(found[-1].value / prompted)
            before = float(plain.styles[:, target].mean())
            asked = float(content_kept(bench.prompted(target), plain).mean())
            yield [STYLES[target].phrase, before, prompted, *found, ratios[-1], content, asked]

    report.table("plain", "Prompts without a style", PLAIN_COLUMNS, rows())
    report.figure("median_few", MEDIAN_FEW, median(ratios), at_least(0.7))


def measured(bench: StyleBench, act_map: ActMap, source: int, target: int) -> tuple[Estimate, float]:
    """Probability of the target style, and content kept, of pictures that a map steers at strength 1."""
    drawn = drawn_with(bench, act_map, bench.captions(source, bench.concepts))
    return bench.interval(drawn.styles[:, target]), float(content_kept(drawn, bench.prompted(source)).mean())


if __name__ == "__main__":
    raise SystemExit(main())
