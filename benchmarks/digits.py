"""Steering a published diffusion transformer that this project did not train: one digit drawn in place of another."""

from __future__ import annotations

import argparse
from collections.abc import Generator, Sequence
from functools import cached_property
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from act_core import ActMap
from act_core.fitting import fit_pictures
from act_core.plots import grid
from act_core.settings import Estimator
from tools.results import Cell, Column

from .lib.controls import all_controls, exchanged
from .lib.digit_judge import DigitJudge
from .lib.digit_model import DIGITS, STEPS, Digit, DigitModel
from .lib.evidence import CLEARS_COLUMNS, cleared
from .lib.intervals import interval
from .lib.models import stop
from .lib.report import Report, at_least, parse

CHOSEN_ON = ((6, 5), (9, 4), (2, 7), (0, 8))
PAIRS = ((3, 8), (8, 3), (1, 7), (7, 1), (4, 9), (5, 6), (0, 6), (3, 5), (9, 7), (6, 2))
SITES = {
    "picture tokens": "diffusion_model/*.picture",
    "picture tokens, by place": "diffusion_model/*.places",
    "tokens of the digit": "diffusion_model/*.digit",
}
LEVELS = {"the noisiest": (1.0,), "five": (1.0, 0.85, 0.7, 0.5, 0.3)}
ESTIMATORS: tuple[Estimator, ...] = ("linear", "mean")
STRENGTHS = (0.5, 1.0, 1.5, 2.0, 3.0)
SHOWN = 8
CHOICE_COLUMNS = (
    Column("sites"),
    Column("estimator"),
    Column("noise levels"),
    *(Column(f"strength {strength:g}", format=".3f") for strength in STRENGTHS),
)
PAIR_COLUMNS = (
    Column("sites"),
    Column("digits"),
    Column("unsteered", format=".3f"),
    Column("steered", format=".3f", spread="interval"),
    *CLEARS_COLUMNS,
    Column("fitted on shuffled sides", format=".3f"),
    Column("class swapped", format=".3f"),
    Column("source digit, unsteered", format=".3f"),
    Column("source digit, steered", format=".3f"),
)
MEAN_COLUMNS = (
    Column("sites"),
    Column("estimator"),
    Column("noise levels"),
    Column("strength", format="g"),
    Column("steered less unsteered", format="+.3f", spread="interval"),
    Column("share of what swapping the class gains", format=".2f"),
    Column("pairs that clear all controls", format="d"),
)
REAL = Column("classifier: accuracy on scikit-learn's digits, held out", format=".3f")
DRAWN = Column("classifier: accuracy on unsteered pictures of the model", format=".3f", spread="interval")


def gain_column(sites: str) -> Column:
    return Column(f"{sites}: share of what swapping the class gains", format=".2f")


class Setting(NamedTuple):
    """How a map is fitted, and its strength."""

    sites: str
    estimator: Estimator
    levels: str
    strength: float = 1.0


class DigitBench:
    """The model, the classifier, and noises that are used for fitting, for choosing and for judging."""

    def __init__(self, weights: Path, samples: int, seeds: int) -> None:
        self.model, self.judge = DigitModel(weights), DigitJudge()
        self.samples = samples
        self.held_out = range(10_000, 10_000 + seeds)
        self.development = range(20_000, 20_000 + seeds)

    def fit(self, sides: tuple[list[Digit], list[Digit]], setting: Setting) -> ActMap:
        """The map from source to target samples."""
        source, target = sides
        return fit_pictures(
            self.model,
            target,
            source,
            levels=LEVELS[setting.levels],
            sites=SITES[setting.sites],
            estimator=setting.estimator,
        )

    def sides(self, source: int, target: int) -> tuple[list[Digit], list[Digit]]:
        """Samples to fit on, each from another noise."""
        count = self.samples
        return (
            [Digit(source, seed) for seed in range(count)],
            [Digit(target, seed) for seed in range(count, 2 * count)],
        )

    def drawn(self, digit: int, seeds: range, act_map: ActMap | None = None, strength: float = 1.0) -> Tensor:
        """A picture for each seed."""
        samples = [Digit(digit, seed) for seed in seeds]
        return self.model.draw(samples) if act_map is None else self.model.steered(act_map, samples, strength)

    @cached_property
    def unsteered(self) -> Tensor:
        """Held-out pictures of all digits, ``[10, seeds, 1, 28, 28]``."""
        return torch.stack([self.drawn(digit, self.held_out) for digit in range(DIGITS)])

    def asked(self, images: Tensor, digit: int) -> np.ndarray:
        """The probability of a digit, for each picture."""
        return self.judge.ask(images)[:, digit].double().numpy()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.digits", description=__doc__)
    parser.add_argument("--weights", type=Path, required=True, help="DiffusionViT.pth of MNIST-diffusion")
    parser.add_argument("--samples", type=int, default=128, help="samples a side to fit on (%(default)s)")
    parser.add_argument("--seeds", type=int, default=48, help="pictures of each digit to judge (%(default)s)")
    parser.add_argument("--sheet", type=Path, help="where to save a sheet of the pictures")
    args = parse(parser, arguments)
    if not args.weights.is_file():
        stop(f"{args.weights} is missing; it is parameters/MNIST/DiffusionViT.pth of sofia-dominguezc/MNIST-diffusion.")

    report = Report("digits", "One digit in place of another, on a published model", args, "scikit-learn")
    bench = DigitBench(args.weights, args.samples, args.seeds)
    classifier(report, bench)
    pairs(report, bench, chosen(report, bench), args.sheet)
    return report.finish()


def classifier(report: Report, bench: DigitBench) -> None:
    """How well the classifier knows the digits."""
    right = [bench.judge.ask(bench.unsteered[digit]).argmax(1) == digit for digit in range(DIGITS)]
    accuracy = interval(torch.stack(right).double().mean(0).numpy())
    report.text(
        "The class-conditional diffusion transformer DiffusionViT of sofia-dominguezc/MNIST-diffusion: 4 blocks of "
        f"width 64, trained by its author on MNIST. {STEPS} Euler steps, no guidance. A sample is a digit and a noise; "
        f"maps of {bench.samples} + {bench.samples} samples, fitted on what the model has drawn at each noise level. "
        "Judged by a small network that was trained on the 8 x 8 digits of scikit-learn, "
        f"written by other people: it recognises {bench.judge.accuracy:.0%} of those held out, and "
        f"{accuracy.value:.0%} of the pictures that this model draws unsteered, some of which are malformed."
    )
    report.figure("classifier_real", REAL, bench.judge.accuracy)
    report.figure("classifier_drawn", DRAWN, accuracy, at_least(0.7))


def chosen(report: Report, bench: DigitBench) -> list[Setting]:
    """For each kind of sites, the setting that does best on the pairs and noises for development."""
    found: dict[Setting, float] = {}

    def rows() -> Generator[list[Cell], None, None]:
        for sites, estimator, levels in product(SITES, ESTIMATORS, LEVELS):
            setting = Setting(sites, estimator, levels)
            maps = {pair: bench.fit(bench.sides(*pair), setting) for pair in CHOSEN_ON}
            for strength in STRENGTHS:
                drawn = {pair: bench.drawn(pair[0], bench.development, maps[pair], strength) for pair in CHOSEN_ON}
                scores = [bench.asked(images, target).mean() for (_, target), images in drawn.items()]
                found[setting._replace(strength=strength)] = fmean(scores)
            yield [*setting[:3], *(found[setting._replace(strength=strength)] for strength in STRENGTHS)]

    listed = ", ".join(f"{source} to {target}" for source, target in CHOSEN_ON)
    report.text(
        "Sites: what each block returns, for the 16 tokens of the picture (a transport moves a channel of all of them "
        "alike), for the same tokens by place (each has transports of its own), or for the two tokens of the digit. "
        f"Estimator, noise levels and strength are chosen on other pairs ({listed}) and other noises, by the mean "
        "probability of the target digit."
    )
    report.table("choice", "Chosen on development pairs", CHOICE_COLUMNS, rows())
    return [
        max((setting for setting in found if setting.sites == sites), key=lambda setting: found[setting])
        for sites in SITES
    ]


def pairs(report: Report, bench: DigitBench, settings: Sequence[Setting], sheet: Path | None) -> None:
    """The held-out pairs, against controls and against swapping the class."""
    report.text(
        f"Held-out pairs, {len(bench.held_out)} held-out noises each. Probability of the target digit; intervals: 95%, "
        "bootstrap over noises, for means over pairs over pairs. Class swapped: the model is asked for the target "
        "digit, from the same noise, about the most that steering can reach. Controls: 10 random maps of the same "
        "size, and a map whose sides both show both digits; an effect clears a control if the interval of the paired "
        "difference is above 0."
    )
    shown: list[list[Tensor]] = []
    means: list[list[Cell]] = []

    def rows() -> Generator[list[Cell], None, None]:
        for setting in settings:
            measured = [measure(bench, setting, *pair) for pair in PAIRS]
            yield from (row for row, _, _, _ in measured)
            shown.extend(images for _, _, _, images in measured)
            gains, bounds = (np.array([one[at] for one in measured]) for at in (1, 2))
            share = float(gains.mean() / bounds.mean())
            count = sum(row[5] == "yes" for row, _, _, _ in measured)
            means.append([*setting, interval(gains), share, count])
            report.figure(setting.sites.replace(" ", "_"), gain_column(setting.sites), share, at_least(0.5))

    report.table("pairs", "Held-out pairs", PAIR_COLUMNS, rows())
    report.table("means", "Means over held-out pairs", MEAN_COLUMNS, means)
    if sheet:
        save_sheet(sheet, shown)


def measure(
    bench: DigitBench, setting: Setting, source: int, target: int
) -> tuple[list[Cell], float, float, list[Tensor]]:
    """A row of `PAIR_COLUMNS`, what steering and what swapping gains, and pictures to show."""
    act_map = bench.fit(bench.sides(source, target), setting)
    mixed = bench.fit(exchanged(*bench.sides(source, target)), setting)
    maps = {"steered": act_map, **all_controls(act_map, mixed)}
    drawn = {name: bench.drawn(source, bench.held_out, one, setting.strength) for name, one in maps.items()}
    scores = {name: bench.asked(images, target) for name, images in drawn.items()}
    steered = scores.pop("steered")
    plain, swapped = bench.unsteered[source], bench.unsteered[target]
    before, bound = (float(bench.asked(images, target).mean()) for images in (plain, swapped))
    left = [float(bench.asked(images, source).mean()) for images in (plain, drawn["steered"])]
    row: list[Cell] = [setting.sites, f"{source} to {target}", before, interval(steered)]
    row += [*cleared(steered, scores).cells, float(scores["shuffled sides"].mean()), bound, *left]
    shown = [image for images in (plain, drawn["steered"], swapped) for image in images[:SHOWN]]
    return row, float(steered.mean()) - before, bound - before, shown


def save_sheet(path: Path, rows: Sequence[Sequence[Tensor]]) -> None:
    """Save pictures as a sheet: unsteered, steered and swapped ones of each pair in a row."""
    from PIL.Image import fromarray

    images = [[fromarray((255 * image[0]).to(torch.uint8).numpy()).convert("RGB") for image in row] for row in rows]
    titles = [title for title in ("unsteered", "steered", "swapped") for _ in range(SHOWN)]
    names = [f"{source} to {target}" for source, target in PAIRS] * len(SITES)
    grid(images, names, titles).save(path, quality=85)


if __name__ == "__main__":
    raise SystemExit(main())
