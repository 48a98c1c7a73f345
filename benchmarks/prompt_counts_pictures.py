"""How many prompts a map of a style needs: the demo model, from 4 to 512 prompts a side."""

from __future__ import annotations

import argparse
from collections.abc import Generator, Sequence
from statistics import fmean

import torch

from act_core import ActMap, fit
from tools.results import Cell, Column

from .lib.controls import all_controls, exchanged
from .lib.evidence import CLEARS_COLUMNS, cleared
from .lib.intervals import interval
from .lib.judge import load_pictures
from .lib.learned_styles import content_kept, drawn_with
from .lib.pictures import FIT_BATCH, StyleBench, style_pair
from .lib.report import Report, at_least, parse
from .lib.timing import processor_time

PAIRS = ((0, 4), (1, 0))
COUNTS = (4, 8, 16, 32, 64, 128, 512)
STEPS = 6
COLUMNS = (
    Column("styles"),
    Column("prompts"),
    Column("fit", "s", ".1f"),
    Column("target style", format=".2f", spread="interval"),
    Column("of prompting", format=".2f"),
    Column("content", format=".2f"),
    *CLEARS_COLUMNS,
)
FEW = Column("target style with 16 + 16 prompts / with 512 + 512, mean over pairs", format=".2f")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prompt_counts_pictures", description=__doc__)
    parser.add_argument("--concepts", type=int, default=8, help="held-out concepts to draw (%(default)s)")
    parser.add_argument("--pairs", type=int, default=len(PAIRS), help="pairs of styles (%(default)s)")
    args = parse(parser, arguments)

    report = Report("prompt_counts_pictures", "Number of prompts, on pictures", args, "diffusers")
    bench = StyleBench(args.concepts, 1, load_pictures(), steps=STEPS)
    report.text(bench.describe_judge())
    report.text(
        f"Maps with the default settings, at strength 1, nothing chosen. {len(bench.concepts)} held-out concepts, one "
        f"seed, {STEPS} denoising steps, guidance 3. Probability of the target style by a judge that was not trained "
        "on these concepts. Content: 1 if a picture shows what the unsteered one does, 0 if another concept. Fit: "
        "seconds of processor time. Controls: 10 random maps of the same size and one of shuffled sides of as many "
        "prompts. Intervals: 95%, bootstrap over concepts."
    )
    found: dict[int, list[float]] = {}

    def rows() -> Generator[list[Cell], None, None]:
        for source, target in PAIRS[: args.pairs]:
            for count in COUNTS:
                row, score = measured(bench, source, target, count)
                found.setdefault(count, []).append(score)
                yield row

    report.table("counts", "Number of prompts", COLUMNS, rows())
    report.figure("few", FEW, fmean(found[16]) / fmean(found[COUNTS[-1]]), at_least(0.9))
    return report.finish()


def measured(bench: StyleBench, source: int, target: int, count: int) -> tuple[list[Cell], float]:
    """A row of the table, and the probability of the target style."""
    sides = bench.prompts(source, target, count)

    def fitted(sides: Sequence[list[str]]) -> ActMap:
        return fit(bench.model, sides[0], sides[1], batch_size=FIT_BATCH)

    act_map, seconds = processor_time(lambda: fitted(sides))
    maps = {"steered": act_map, **all_controls(act_map, fitted(exchanged(*sides)))}
    texts = bench.captions(source, bench.concepts)
    drawn = {name: drawn_with(bench, one, texts) for name, one in maps.items()}
    content = float(content_kept(drawn["steered"], bench.prompted(source)).mean())
    scores = {name: one.styles[:, target].double().numpy() for name, one in drawn.items()}
    steered = scores.pop("steered")
    prompted = float(bench.prompted(target).styles[:, target].mean())
    estimate = interval(steered)
    named = [style_pair(source, target), f"{count} + {count}", seconds]
    return [*named, estimate, estimate.value / prompted, content, *cleared(steered, scores).cells], estimate.value


if __name__ == "__main__":
    torch.set_num_threads(1)
    raise SystemExit(main())
