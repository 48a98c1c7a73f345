"""Whether steering turns one style of the demo model into another, and keeps the content of the picture."""

from __future__ import annotations

import argparse
import random
import re
import time
from collections.abc import Generator, Sequence
from itertools import permutations
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np
import torch
from PIL.Image import fromarray
from torch import Tensor

from act_core import fit
from act_core.plots import grid
from act_core.settings import Support
from tools.results import Cell, Column, Estimate
from tools.train_demo_model.emoji import STYLES

from .lib.against_rerunning import measure_against_rerunning
from .lib.judge import is_training_concept, load_pictures
from .lib.pictures import FIT_BATCH, Judged, PictureSetting, StyleBench, kept, style_pair
from .lib.report import Report, at_least, below, parse

# Words to remove: each is in the names of many emoji that look alike.
WORDS = ("face", "heart", "button")
NEAREST = 5
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
REMOVAL_COLUMNS = (
    Column("word"),
    Column("prompts", format="d"),
    Column("support"),
    Column("unsteered", format=".0%", spread="interval"),
    Column("strength 0.5", format=".0%", spread="interval"),
    Column("strength 1", format=".0%", spread="interval"),
    Column("other prompts kept", format=".2f"),
)
MEDIAN_STYLE = Column("strength 1 / prompted, median over pairs", format=".2f")
WORST_STYLE = Column("strength 1 / prompted, worst pair", format=".2f")
HIGH_PAIRS = Column("pairs of at least 0.85", format="d")
HIGH_REAL = Column("pairs of at least 0.85, real emoji", format="d")
MEDIAN_CONTENT = Column("content kept, median over pairs", format=".2f")
FIT_SECONDS = Column("fit of all sites", "s", ".2f")


def removal_column(best: str) -> Column:
    return Column(f"share left by removal ({best})", format=".2f")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.styles", description=__doc__)
    parser.add_argument("--concepts", type=int, default=32, help="how many to draw (%(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="pictures of each (%(default)s)")
    parser.add_argument("--sheets", type=Path, help="folder for styles.jpg and removal.jpg, sheets of the pictures")
    args = parse(parser, arguments, quick={"concepts": 24, "seeds": 1})

    report = Report("styles", "Steering the demo model from style to style", args, "diffusers")
    bench = StyleBench(args.concepts, args.seeds, load_pictures())
    all_pairs(report, bench, args.sheets)
    removal(report, bench, args.sheets)
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
        _save_sheet(sheets / "styles.jpg", shown, [str(row[0]) for row in table.rows], titles)
    absolute, real, relative, contents = (np.array([_number(row[at]) for row in table.rows]) for at in (2, 4, 5, 6))
    report.figure("median_style", MEDIAN_STYLE, float(np.median(relative)), at_least(0.92))
    report.figure("high_pairs", HIGH_PAIRS, int((absolute >= 0.85).sum()), at_least(12))
    report.figure("high_real", HIGH_REAL, int((real >= 0.85).sum()))
    report.figure("worst_style", WORST_STYLE, float(relative.min()), at_least(0.8))
    report.figure("median_content", MEDIAN_CONTENT, float(np.median(contents)), at_least(0.75))


def _number(cell: Cell) -> float:
    return float(cell.value if isinstance(cell, Estimate) else cell)


class Removal(NamedTuple):
    """Prompts that name a thing, and the prompts that fit a map for its removal.

    Attributes:
        has: whether the name of each concept has the word, bool ``[concepts]``.
        texts, styles: held-out prompts that ask for it, and their styles.
        source, target: prompts to fit on, with and without the word.
    """

    has: Tensor
    texts: list[str]
    styles: list[int]
    source: list[str]
    target: list[str]

    @classmethod
    def of(cls, word: str, bench: StyleBench) -> Removal:
        has = torch.tensor([bool(re.search(rf"\b{word}s?\b", name)) for name in bench.pictures.names])
        asking = [c for c in range(len(has)) if has[c] and not is_training_concept(c)][: len(bench.concepts)]
        styles = [number % len(STYLES) for number in range(len(asking))]
        texts = [bench.captions(style, [c])[0] for style, c in zip(styles, asking, strict=True)]
        chance = random.Random(0)
        sides = ([c for c in bench.fit_concepts if bool(has[c]) == side] for side in (True, False))
        source, target = (
            [bench.captions(chance.randrange(len(STYLES)), [chance.choice(side)])[0] for _ in range(FIT_PROMPTS)]
            for side in sides
        )
        return cls(has, texts, styles, source, target)

    def shown(self, drawn: Judged, real: Tensor, seeds: int) -> Tensor:
        """1 for each picture that shows the thing, else 0: most of the nearest real emoji have the word."""
        similarity = torch.einsum("nf,ncf->nc", drawn.features, real[self.styles * seeds])
        return (self.has[similarity.topk(NEAREST).indices].float().mean(1) > 0.5).float()


def removal(report: Report, bench: StyleBench, sheets: Path | None) -> None:
    """Steer prompts that ask for something towards prompts that do not."""
    report.text(
        "Removal: source prompts have the word in their names, in any style; target prompts are other names. A picture "
        f"shows the thing if most of the {NEAREST} nearest real emoji of its style, by the judge's features, have the "
        "word in their names. Other prompts kept: of prompts that do not ask for the thing, 1 if they are drawn as "
        "without the map, 0 for another concept."
    )
    real = torch.stack([bench.judge.ask(images)[1] for images in bench.pictures.images])
    others = bench.draw(bench.captions(0, bench.concepts)).features
    shown: list[list[Tensor]] = []
    ratios: dict[str, float] = {}

    def rows() -> Generator[list[Cell], None, None]:
        for word in WORDS:
            case = Removal.of(word, bench)
            unsteered = bench.draw(case.texts)
            for support in get_args(Support):
                maps = {0: fit(bench.model, case.source, case.target, support=support, batch_size=FIT_BATCH)}
                drawn = [unsteered, *(bench.steered(maps, case.texts, strength) for strength in (0.5, 1.0))]
                shares = [bench.interval(case.shown(pictures, real, bench.seeds)) for pictures in drawn]
                spared = kept(bench.steered(maps, bench.captions(0, bench.concepts), 1.0).features, others).mean()
                yield [word, len(case.texts), support, *shares, float(spared)]
                ratios[f"{word}, {support}"] = shares[-1].value / max(shares[0].value, 1e-9)
                shown.append([images.images[n] for n in range(2 * SHOWN) for images in (unsteered, drawn[-1])])

    table = report.table("removal", "Removal", REMOVAL_COLUMNS, rows())
    if sheets:
        titles = ["unsteered", "steered"] * 2 * SHOWN
        _save_sheet(sheets / "removal.jpg", shown, [f"{row[0]}, {row[2]}" for row in table.rows], titles)
    best = min(ratios, key=ratios.__getitem__)
    report.figure("removal", removal_column(best), ratios[best], below(1 / 3, ".2f"))


def _save_sheet(path: Path, rows: Sequence[Sequence[Tensor]], names: Sequence[str], titles: Sequence[str]) -> None:
    images = [[fromarray(image.permute(1, 2, 0).numpy()) for image in row] for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    grid(images, names, titles).save(path, quality=85, optimize=True)


if __name__ == "__main__":
    raise SystemExit(main())
