"""Whether the range and the even scale of a calibration are those that a judge of pictures would choose."""

from __future__ import annotations

import argparse
from collections.abc import Generator, Iterable, Sequence
from itertools import pairwise, permutations
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from act_core import ActMap, MapError, load_map
from act_core.calibrating import calibrate
from act_core.models.calibration import PipelineCalibration
from tools.results import Cell, Column, Estimate
from tools.train_demo_model.emoji import STYLES

from .lib.controls import permuted
from .lib.judge import load_pictures
from .lib.models import ROOT
from .lib.pictures import GUIDANCE, PictureSetting, StyleBench, draw, kept, shipped_concepts, style_pair
from .lib.report import Report, at_least, at_most, parse

STEPS = 8
SHIPPED = ROOT / "pretrained_maps" / "plain_to_ink.safetensors"
INK = 4
UP, DOWN = [step / 4 for step in range(1, 9)], [-step / 4 for step in range(1, 7)]
RANGE_SUBJECTS = 24
EVEN = 5  # steps into which the recommended range is divided
# Of the judge's range.
MIN_CONTENT, AS_GOOD, MIN_AWAY = 0.5, 0.05, 0.1
# A subject's effect may fall by a tenth of the way from source to target before it counts as falling.
FALL = 0.1
CONTROLS = ((0, 4), (1, 0), (3, 2), (2, 1))
COLUMNS = (
    Column("map"),
    Column("calibrated range"),
    Column("below 0"),
    Column("judge's range"),
    Column("overlap", format=".2f"),
    Column("raw steps, deviation", format=".3f"),
    Column("even steps, deviation", format=".3f"),
    Column("subjects that rise", format=".0%"),
)
CONTROL_COLUMNS = (Column("map"), Column("its channels permuted"))


class Drawn(NamedTuple):
    """What the judge sees in pictures: probabilities of styles, features of content, and features of style."""

    styles: Tensor
    content: Tensor
    looks: Tensor


class Bench:
    """Draws the held-out concepts, and asks the judge."""

    def __init__(self, concepts: int, *, last: bool) -> None:
        self.styles = StyleBench(concepts, 1, load_pictures(), last=last, without=shipped_concepts())
        # Twice as fast as float32.
        self.styles.model.pipeline.to(torch.bfloat16)
        self.model = PipelineCalibration(self.styles.model, steps=STEPS, guidance=GUIDANCE)
        self._prompted: dict[str, Drawn] = {}

    def prompted(self, texts: Sequence[str]) -> Drawn:
        key = "\n".join(texts)
        if key not in self._prompted:
            self._prompted[key] = self._asked(draw(self.styles.model, texts, steps=STEPS))
        return self._prompted[key]

    def steered(self, act_map: ActMap, texts: Sequence[str], strength: float) -> Drawn:
        with self.styles.model.steer(act_map, strength):
            return self._asked(draw(self.styles.model, texts, steps=STEPS))

    def _asked(self, images: Tensor) -> Drawn:
        with torch.inference_mode():
            looks = self.styles.judge.style[:-1](images.float() / 127.5 - 1)
        return Drawn(*self.styles.judge.ask(images), looks)


class Case:
    """One map, with the held-out subjects that it is judged on."""

    def __init__(self, bench: Bench, act_map: ActMap, source: Sequence[str], target: Sequence[str], style: int) -> None:
        self.bench, self.map, self.texts, self.style = bench, act_map, source, style
        self.unsteered = bench.prompted(source)
        way = bench.prompted(target).looks.mean(0) - self.unsteered.looks.mean(0)
        self._way = way / (way @ way)

    def at(self, strength: float, count: int | None = None) -> Drawn:
        """Pictures of the first subjects at a strength of the calibrated map."""
        found, texts = self.map.calibrated, self.texts[:count]
        if not strength:
            return Drawn(*(part[:count] for part in self.unsteered))
        if strength < 0 and found.negative == "inverse":
            return self.bench.steered(self.map.inverse(), texts, -strength)
        return self.bench.steered(self.map, texts, strength)

    def content(self, drawn: Drawn) -> float:
        return float(kept(drawn.content, self.unsteered.content[: len(drawn.content)]).mean())

    def effects(self, drawn: Drawn) -> Tensor:
        """How far each picture has come, as a share of the way from source to target, by the features of style."""
        return (drawn.looks - self.unsteered.looks[: len(drawn.looks)]) @ self._way

    def judged_range(self) -> tuple[float, float]:
        """The range that the judge would choose, on a grid of quarters."""
        reached = {0.0: float(self.at(0, RANGE_SUBJECTS).styles[:, self.style].mean())}
        for strength in UP:
            drawn = self.at(strength, RANGE_SUBJECTS)
            if self.content(drawn) < MIN_CONTENT:
                break
            reached[strength] = float(drawn.styles[:, self.style].mean())
        high = next(strength for strength, share in reached.items() if share >= max(reached.values()) - AS_GOOD)
        low, before = 0.0, 0.0
        for strength in DOWN:
            drawn = self.at(strength, RANGE_SUBJECTS)
            effect = float(self.effects(drawn).mean())
            if self.content(drawn) < MIN_CONTENT or effect >= before:
                break
            low, before = strength, effect
        return (low if before <= -MIN_AWAY else 0.0), high

    def steps(self, strengths: Iterable[float]) -> tuple[float, Tensor]:
        """Deviation of the steps from strength to strength, and the effects ``[strengths, pictures]``."""
        drawn = [self.at(strength) for strength in strengths]
        steps = [float((b.content - a.content).norm(dim=1).mean()) for a, b in pairwise(drawn)]
        return float(np.std(steps)), torch.stack([self.effects(one) for one in drawn])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.calibration", description=__doc__)
    parser.add_argument("--concepts", type=int, default=72, help="how many to judge on (%(default)s)")
    parser.add_argument("--development", action="store_true", help="the concepts that settings were chosen on")
    parser.add_argument("--pairs", type=int, help="only the first pairs of styles")
    args = parse(parser, arguments)

    report = Report("calibration", "Calibration", args, "diffusers")
    bench = Bench(args.concepts, last=args.development)
    report.text(
        "Maps of the demo model from style to style with the default settings, and the one that ships; bfloat16, "
        f"{STEPS} steps. Each is calibrated on 8 of its own prompts. {args.concepts} held-out concepts (for the "
        f"judge's range, {RANGE_SUBJECTS} of them) are judged, by a judge that the calibration does not use. "
        "Deviation: standard deviation of the distances, by the judge's features, between pictures of successive "
        f"strengths, with the range above 0 in {EVEN} steps, equal in strength or on the even scale. Subjects that "
        f"rise: those whose style, by the judge, never falls by more than {FALL:g} of the way from source to target "
        "from one even step to the next."
    )
    report.text(
        "The judge's range, fixed on development concepts: above 0, of the strengths up to the first that keeps less "
        f"than {MIN_CONTENT:g} of the content (1 is the unsteered picture, 0 another concept), the smallest whose "
        f"probability of the target style is within {AS_GOOD:g} of the highest. Below 0, the last strength up to which "
        f"each step leads away from the target and {MIN_CONTENT:g} of the content is kept, if it leads away by "
        f"{MIN_AWAY:g} of the way; otherwise 0."
    )
    pairs = list(permutations(range(len(STYLES)), 2))[: args.pairs]
    _measured(report, bench, pairs)
    report.table("controls", "Controls", CONTROL_COLUMNS, _controls(bench, [p for p in CONTROLS if p in pairs]))
    return report.finish()


def _measured(report: Report, bench: Bench, pairs: Sequence[tuple[int, int]]) -> None:
    strict: list[float] = []

    def rows() -> Generator[list[Cell], None, None]:
        for name, case in _cases(bench, pairs):
            found = case.map.calibrated
            judged = case.judged_range()
            raw, _ = case.steps(found.range[1] * step / EVEN for step in range(EVEN + 1))
            even, effects = case.steps(found.raw(step / EVEN) for step in range(EVEN + 1))
            falls = (effects[:-1] - effects[1:]).amax(0)
            strict.append(float((falls <= 0).float().mean()))
            rising = float((falls <= FALL).float().mean())
            ends = ["{:.2f} to {:.2f}".format(*ends) for ends in (found.range, judged)]
            yield [name, ends[0], found.negative, ends[1], overlap(found.range, judged), raw, even, rising]

    table = report.table("maps", "Maps", COLUMNS, rows())
    overlaps, raw, even, rising = (np.array([_number(row[at]) for row in table.rows]) for at in (4, 5, 6, 7))
    report.figure(
        "evenness", Column("even / raw deviation, median", format=".2f"), float(np.median(even / raw)), at_most(0.5)
    )
    report.figure("rising", Column("subjects that rise", format=".1%"), float(rising.mean()), at_least(0.95, ".0%"))
    report.figure("never_falling", Column("subjects that never fall at all", format=".1%"), float(np.mean(strict)))
    report.figure("overlap", Column("overlap, median", format=".2f"), float(np.median(overlaps)), at_least(0.7))


def _cases(bench: Bench, pairs: Sequence[tuple[int, int]]) -> Generator[tuple[str, Case], None, None]:
    styles = bench.styles
    for source, target in pairs:
        act_map = calibrate(bench.model, styles.fit(source, target, PictureSetting())[0])
        texts = [styles.captions(style, styles.concepts) for style in (source, target)]
        yield style_pair(source, target), Case(bench, act_map, texts[0], texts[1], target)
    plain = [styles.pictures.names[concept] for concept in styles.concepts]
    ink = styles.captions(INK, styles.concepts)
    yield f"`{SHIPPED.name}`", Case(bench, calibrate(bench.model, load_map(SHIPPED)), plain, ink, INK)


def _controls(bench: Bench, pairs: Sequence[tuple[int, int]]) -> Generator[list[Cell], None, None]:
    """Maps of the same size that should do nothing."""
    for source, target in pairs:
        act_map = permuted(bench.styles.fit(source, target, PictureSetting())[0])
        try:
            low, high = calibrate(bench.model, act_map).calibrated.range
        except MapError:
            outcome = "refused: no range to recommend"
        else:
            outcome = f"{low:.2f} to {high:.2f}"
        yield [style_pair(source, target), outcome]


def overlap(one: tuple[float, float], other: tuple[float, float]) -> float:
    """Length of the intersection of two ranges, relative to that of their union."""
    shared = min(one[1], other[1]) - max(one[0], other[0])
    return max(0.0, shared) / (max(one[1], other[1]) - min(one[0], other[0]))


def _number(cell: Cell) -> float:
    return float(cell.value if isinstance(cell, Estimate) else cell)


if __name__ == "__main__":
    raise SystemExit(main())
