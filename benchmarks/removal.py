"""Removing a thing from the demo model's pictures: what is left of it, and what else the map changes."""

from __future__ import annotations

import argparse
from collections.abc import Generator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from act_core import ActMap, fit
from act_core.settings import Estimator, FitSettings, Support
from tools.results import Cell, Column

from .lib.controls import permuted
from .lib.judge import load_pictures
from .lib.pictures import FIT_BATCH, Judged, StyleBench, kept, save_sheet
from .lib.removals import FIT_PROMPTS, NEAREST, Removal
from .lib.report import Report, at_least, at_most, parse

# Words in the names of at least seven held-out emoji, which mostly look like their name when the model draws them.
WORDS = ("face", "heart", "button", "clock", "hand", "arrow")
# Words with which estimator, kind of gate and strength were chosen.
CHOSEN_ON = ("woman", "man", "square")
SHOWN = 4
STRENGTH = 1.5
COLUMNS = (
    Column("word"),
    Column("prompts", format="d"),
    Column("map"),
    Column("strength", format="g"),
    Column("still shown", format=".0%", spread="interval"),
    Column("other prompts kept", format=".3f"),
    Column("worst one", format=".2f"),
)
PAIR_COLUMNS = (
    Column("word"),
    Column("prompts", format="d"),
    Column("other thing, unsteered", format=".0%"),
    Column("other thing, steered", format=".0%"),
    Column("word shown, unsteered", format=".0%"),
    Column("word shown, steered", format=".0%"),
)
KEPT = Column("other prompts kept, mean over words", format=".3f")
KEPT_WORST = Column("other prompts kept, worst word", format=".3f")
LEFT = Column("pictures that still show it, mean over words", format=".0%")
LEFT_WORST = Column("pictures that still show it, worst word", format=".0%")
LEFT_CONTROL = Column("pictures that still show it, mean over words, channels permuted", format=".0%")


class Variant(NamedTuple):
    """A map to try: how it is fitted, and whether its channels are permuted afterwards."""

    estimator: Estimator
    support: Support
    strength: float = STRENGTH
    permutes: bool = False

    def __str__(self) -> str:
        return f"{self.estimator}, {self.support}{', channels permuted' if self.permutes else ''}"


BEST = Variant("project", "gated")
CONTROL = BEST._replace(permutes=True)
VARIANTS = (
    Variant("linear", "unbounded", 1.0),
    Variant("linear", "unbounded"),
    Variant("linear", "gated"),
    Variant("project", "unbounded"),
    BEST._replace(strength=1.0),
    BEST,
    CONTROL,
)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.removal", description=__doc__)
    parser.add_argument("--words", nargs="+", default=list(WORDS), help="what to remove (%(default)s)")
    parser.add_argument("--asking", type=int, default=16, help="most prompts that ask for a word (%(default)s)")
    parser.add_argument("--others", type=int, default=16, help="prompts that do not ask for it (%(default)s)")
    parser.add_argument("--choosing", action="store_true", help=f"choose settings: {', '.join(CHOSEN_ON)}")
    parser.add_argument("--sheets", type=Path, help="folder for removal.jpg, a sheet of the pictures")
    args = parse(parser, arguments)
    if args.choosing:
        args.words, args.no_save = CHOSEN_ON, True

    report = Report("removal", "Removing a thing from the demo model's pictures", args, "diffusers")
    bench = StyleBench(args.others, 1, load_pictures(), last=args.choosing)
    bench_of_words(report, bench, args)
    return report.finish()


def bench_of_words(report: Report, bench: StyleBench, args: argparse.Namespace) -> None:
    """All variants for each word, and prompts that name two things."""
    report.text(
        f"Maps of {FIT_PROMPTS} + {FIT_PROMPTS} prompts, fitted on other concepts: source prompts have the word in "
        f"their names, target prompts do not, in any style. At most {args.asking} held-out prompts ask for it; a "
        f"picture still shows it if most of the {NEAREST} nearest real emoji of its style, by the judge's features, "
        "have the word in their names. Intervals: 95%, bootstrap over prompts. Other prompts kept: of held-out prompts "
        f"that do not ask for it ({args.others} less those with the word), 1 if they are drawn as without the map, 0 "
        f"for another concept. The control is the map {BEST}, with the offsets of its channels permuted, so that it "
        "moves activations as far."
    )
    report.text(
        "Two things: prompts of the form 'red heart and pizza'. The other thing is shown if the picture is more like "
        "the one that the other thing alone gives than like the one that the removed thing alone gives."
    )
    real = torch.stack([bench.judge.ask(images)[1] for images in bench.pictures.images])
    sheet: list[list[Tensor]] = []
    names: list[str] = []
    pairs: list[list[Cell]] = []
    measured: dict[Variant, list[tuple[float, float]]] = {}

    def rows() -> Generator[list[Cell], None, None]:
        for word in args.words:
            case = Removal.of(word, bench, args.asking, without=WORDS if args.choosing else ())
            asked, others, both = (bench.draw(texts) for texts in (case.asking, case.others, case.both))
            known: dict[tuple[str, str], ActMap] = {}
            yield [word, len(case.asking), "none", 0, bench.interval(case.shown(asked, real)), 1.0, 1.0]
            for variant in VARIANTS:
                key = variant.estimator, variant.support
                act_map = known[key] = known.get(key) or fitted(bench, case, variant)
                maps = {0: permuted(act_map) if variant.permutes else act_map}
                after = bench.steered(maps, case.asking, variant.strength)
                spared = bench.steered(maps, case.others, variant.strength)
                shown, same = bench.interval(case.shown(after, real)), kept(spared.features, others.features)
                row = [shown, float(same.mean()), float(same.min())]
                yield [word, len(case.asking), str(variant), variant.strength, *row]
                measured.setdefault(variant, []).append((shown.value, float(same.mean())))
                if variant == BEST:
                    left = bench.steered(maps, case.both, variant.strength)
                    pairs.append([word, *two_things(case, (both, left), (asked, others), real)])
                    shown_sides = {"": (asked, after), " (two things)": (both, left), " (others)": (others, spared)}
                    for name, (before, later) in shown_sides.items():
                        shown_pairs = zip(before.images[:SHOWN], later.images[:SHOWN], strict=True)
                        sheet.append([image for pair in shown_pairs for image in pair])
                        names.append(word + name)

    report.table("removal", "Removal", COLUMNS, rows())
    report.table("two_things", "Two things in one prompt", PAIR_COLUMNS, pairs)
    if args.sheets:
        save_sheet(args.sheets / "removal.jpg", sheet, names, ["unsteered", "steered"] * SHOWN)
    left, spared = (np.array(values) for values in zip(*measured[BEST], strict=True))
    report.figure("kept", KEPT, float(spared.mean()), at_least(0.95))
    report.figure("kept_worst", KEPT_WORST, float(spared.min()), at_least(0.95))
    report.figure("left", LEFT, float(left.mean()), at_most(0.25))
    report.figure("left_worst", LEFT_WORST, float(left.max()), at_most(0.25))
    report.figure("left_control", LEFT_CONTROL, float(np.mean([value for value, _ in measured[CONTROL]])))


def fitted(bench: StyleBench, case: Removal, variant: Variant) -> ActMap:
    """The map of a variant, before its channels are permuted."""
    settings = FitSettings(estimator=variant.estimator, support=variant.support, batch_size=FIT_BATCH)
    return fit(bench.model, case.source, case.target, settings)


def two_things(case: Removal, both: tuple[Judged, Judged], alone: tuple[Judged, Judged], real: Tensor) -> list[Cell]:
    """How many pictures of two things show the other one, and the word, before and after; `both` and `alone` are pairs
    of unsteered and steered pictures, and of the removed and the other thing."""
    count = len(case.both)
    removed, other = (part.features[:count] for part in alone)
    others = [float(((d.features * other).sum(1) > (d.features * removed).sum(1)).float().mean()) for d in both]
    return [count, *others, *(float(case.shown(drawn, real).mean()) for drawn in both)]


if __name__ == "__main__":
    raise SystemExit(main())
