"""Negating a concept on the demo model, with the measures of UnlearnCanvas, against other ways to do it."""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Generator, Hashable, Sequence
from contextlib import nullcontext
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from act_core import ActMap, fit
from act_core.models.diffusers import DiffusersModel
from act_core.settings import Estimator, FitSettings, Support
from tools.results import Cell, Column, Estimate

from .lib.controls import all_controls, exchanged
from .lib.evidence import CLEARS_COLUMNS, cleared
from .lib.intervals import interval_of, score_interval
from .lib.judge import as_tensor, load_pictures
from .lib.pictures import BATCH, FIT_BATCH, GUIDANCE, Judged, StyleBench
from .lib.removals import FIT_PROMPTS, NEAREST, Removal, style_of
from .lib.report import Report, at_least, parse
from .lib.slider import RATE, Slider
from .lib.timing import processor_time

# Words in the names of at least seven held-out emoji.
WORDS = ("face", "heart", "button")
CHOSEN_ON = ("woman", "square")
TIMES = 10
STEPS = 6
NONE, UNGATED, GATED = "none", "map, linear", "map, project, gated"
NEGATIVE, SLIDER = "negative prompt", f"slider LoRA, {TIMES} x the time"
MAPS: dict[str, tuple[Estimator, Support]] = {
    UNGATED: ("linear", "unbounded"),
    "map, linear, gated": ("linear", "gated"),
    "map, project": ("project", "unbounded"),
    GATED: ("project", "gated"),
}
STRENGTHS: dict[str, tuple[float, ...]] = {
    NONE: (0.0,),
    **dict.fromkeys(MAPS, (1.0, 1.5)),
    NEGATIVE: (1.0,),
    SLIDER: (-0.1, -0.25, -0.5, -1.0, -2.0),
}
WORD_COLUMNS = (
    Column("word"),
    Column("prompts", format="d"),
    Column("method"),
    Column("strength", format="g"),
    Column("unlearned", format=".0%"),
    Column("other concepts retained", format=".0%"),
    Column("styles retained", format=".0%"),
)
MEAN_COLUMNS = (
    Column("method"),
    Column("strength", format="g"),
    Column("unlearned", format=".2f", spread="interval"),
    Column("other concepts retained", format=".2f", spread="interval"),
    Column("styles retained", format=".2f", spread="interval"),
    Column("mean of the three", format=".2f"),
    *CLEARS_COLUMNS,
)
CHOICE_COLUMNS = (Column("method"), Column("strength", format="g"), Column("mean of the three", format=".3f"))


class Outcome(NamedTuple):
    """1 or 0 for each prompt.

    Attributes:
        unlearned: prompts that ask for the word: the picture does not show it.
        concepts: other prompts: the own concept is among the nearest real emoji.
        styles: all prompts: the judge recognises the style.
        keys: of the last two: the prompt or the concept, which several words share.
    """

    unlearned: Tensor
    concepts: Tensor
    styles: Tensor
    keys: tuple[Sequence[Hashable], Sequence[Hashable]]

    @property
    def shares(self) -> list[float]:
        return [float(part.mean()) for part in (self.unlearned, self.concepts, self.styles)]


class Ways:
    """The ways to negate one word."""

    def __init__(self, word: str, bench: StyleBench, count: int, without: Sequence[str] = ()) -> None:
        self.word = word
        self.case = Removal.of(word, bench, count, without)
        self._bench = bench
        self._model = DiffusersModel(bench.model.pipeline)
        self.maps: dict[str, ActMap] = {}
        seconds = 0.0
        for name in MAPS:
            self.maps[name], seconds = processor_time(lambda name=name: self.fit(name))
        # The slider learns to add the word, in the style of each prompt, at the cost of the last map: the gated one.
        styles = [prompt.rpartition(", ")[2] for prompt in self.case.target]
        self._slider = Slider(self.case.target, [f"{word}, {style}" for style in styles])
        self._slider.train(TIMES * seconds)

    def fit(self, name: str, *, mixed: bool = False) -> ActMap:
        """The map of a method; `mixed`: half of each side exchanged."""
        source, target = self.case.source, self.case.target
        if mixed:
            source, target = exchanged(source, target)
        estimator, support = MAPS[name]
        settings = FitSettings(estimator=estimator, support=support, batch_size=FIT_BATCH)
        return fit(self._bench.model, source, target, settings)

    def outcome(self, name: str, strength: float, real: Tensor) -> Outcome:
        """What a method does to prompts that ask for the word, and to others."""
        case = self.case
        asked, others = (self.draw(texts, name, strength) for texts in (case.asking, case.others))
        styles = [style_of(number) for number in range(len(case.others))]
        near = torch.einsum("nf,ncf->nc", others.features, real[styles]).topk(NEAREST).indices
        right = [
            drawn.styles.argmax(1) == torch.tensor([style_of(number) for number in range(len(drawn.styles))])
            for drawn in (asked, others)
        ]
        return Outcome(
            1 - case.shown(asked, real),
            (near == torch.tensor(case.kept)[:, None]).any(1).float(),
            torch.cat(right).float(),
            (case.kept, [*case.asking, *case.kept]),
        )

    def draw(self, texts: Sequence[str], name: str, strength: float, act_map: ActMap | None = None) -> Judged:
        """Draw with a method; `act_map` in place of the map of the method, for controls."""
        if name == SLIDER:
            with self._slider.at(strength) as model:
                return self._drawn(model, texts)
        act_map = self.maps.get(name) if act_map is None else act_map
        with nullcontext() if act_map is None else self._model.steer(act_map, strength):
            return self._drawn(self._model, texts, self.word if name == NEGATIVE else "")

    def _drawn(self, model: DiffusersModel, texts: Sequence[str], negative: str = "") -> Judged:
        found: list[Any] = []
        for at in range(0, len(texts), BATCH):
            part = texts[at : at + BATCH]
            found += model.generate(part, negative=negative, guidance=GUIDANCE, seed=at, steps=STEPS)
        images = as_tensor(found)
        return Judged(images, *self._bench.judge.ask(images))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.negation", description=__doc__)
    parser.add_argument("--words", nargs="+", default=list(WORDS), help="concepts to negate (%(default)s)")
    parser.add_argument("--asking", type=int, default=8, help="most prompts that ask for a word (%(default)s)")
    parser.add_argument("--others", type=int, default=10, help="prompts that do not ask for it (%(default)s)")
    args = parse(parser, arguments)

    report = Report("negation", "Concept negation", args, "diffusers", "peft")
    pictures = load_pictures()
    bench = StyleBench(args.others, 1, pictures, steps=STEPS)
    development = StyleBench(args.others, 1, pictures, last=True, steps=STEPS)
    real = torch.stack([bench.judge.ask(images)[1] for images in pictures.images])
    report.text(bench.describe_judge())
    report.text(
        "The measures of UnlearnCanvas (arXiv 2402.11846), as shares of pictures. Unlearned: of prompts that name the "
        f"concept, those whose picture no longer shows it: not most of the {NEAREST} nearest real emoji of its style, "
        "by the judge's features, have the word in their names. Other concepts retained (in domain): of prompts for "
        f"other things, those whose thing is among the {NEAREST} nearest. Styles retained (across domains): of all "
        "these prompts, those whose style the judge recognises. Held-out concepts, "
        f"{STEPS} denoising steps, guidance {GUIDANCE:g}."
    )
    report.text(
        f"Maps of {FIT_PROMPTS} + {FIT_PROMPTS} prompts with and without the word, drawn with replacement. The "
        "negative prompt is the word, for all prompts. The slider LoRA learns to add the word, by Adam at "
        f"{RATE:g}, for {TIMES} times the processor time of the fit of the gated map, and acts at negative strength. "
        f"Strengths are chosen by the mean of the three measures on other words ({', '.join(CHOSEN_ON)}) and other "
        "concepts. Controls: 10 random maps of the same size and one of shuffled sides, for what is unlearned. "
        "Intervals: 95%, bootstrap over prompts, for what is retained over concepts."
    )
    strengths = chosen(report, [Ways(word, development, args.asking, without=WORDS) for word in CHOSEN_ON], real)
    held_out(report, bench, strengths, real, args)
    return report.finish()


def chosen(report: Report, cases: Sequence[Ways], real: Tensor) -> dict[str, float]:
    """The best strength of each method on the words for development."""
    found: dict[str, dict[float, float]] = {}

    def rows() -> Generator[list[Cell], None, None]:
        for name, strengths in STRENGTHS.items():
            for strength in strengths:
                score = fmean(fmean(case.outcome(name, strength, real).shares) for case in cases)
                found.setdefault(name, {})[strength] = score
                yield [name, strength, score]

    report.table("choice", "Strengths, on other words", CHOICE_COLUMNS, rows())
    return {name: max(scores, key=lambda strength: scores[strength]) for name, scores in found.items()}


def held_out(
    report: Report, bench: StyleBench, strengths: dict[str, float], real: Tensor, args: argparse.Namespace
) -> None:
    """All methods on the held-out words, each at its strength."""
    outcomes: dict[str, list[Outcome]] = {}
    controls: dict[str, dict[str, list[Tensor]]] = {name: {} for name in MAPS}

    def rows() -> Generator[list[Cell], None, None]:
        for word in args.words:
            ways = Ways(word, bench, args.asking)
            for name, strength in strengths.items():
                outcome = ways.outcome(name, strength, real)
                outcomes.setdefault(name, []).append(outcome)
                yield [word, len(ways.case.asking), name, strength, *outcome.shares]
            for name in MAPS:
                for label, control in all_controls(ways.maps[name], ways.fit(name, mixed=True)).items():
                    drawn = ways.draw(ways.case.asking, name, strengths[name], control)
                    controls[name].setdefault(label, []).append(1 - ways.case.shown(drawn, real))

    report.table("words", "Words", WORD_COLUMNS, rows())
    parts = {name: three(found) for name, found in outcomes.items()}

    def mean_rows() -> Generator[list[Cell], None, None]:
        for name, measures in parts.items():
            verdict: Sequence[Cell] = ["", ""]
            if name in controls:
                verdict = cleared(measures[0], {label: joined(one) for label, one in controls[name].items()}).cells
            mean = fmean(float(part.mean()) for part in measures)
            yield [name, strengths[name], *map(score_interval, measures), mean, *verdict]

    report.table("means", "All words", MEAN_COLUMNS, mean_rows())
    for name in (NONE, NEGATIVE, SLIDER):
        other = "unsteered" if name == NONE else name
        column = Column(f"mean of the three measures, gated map less {other}", format="+.2f", spread="interval")
        ahead = mean_of([ours - theirs for ours, theirs in zip(parts[GATED], parts[name], strict=True)])
        report.figure(name.split()[0], column, ahead, at_least(0, why="ahead"))
    retained = fmean(float(one.concepts.mean()) for one in outcomes[GATED])
    before = fmean(float(one.concepts.mean()) for one in outcomes[NONE])
    column = Column("other concepts retained, gated map less unsteered", format="+.2f")
    report.figure("retained", column, retained - before, at_least(-0.02))


def by_key(outcomes: Sequence[Outcome], which: int) -> np.ndarray:
    """Concepts or styles retained, the mean over words for each prompt or concept: these are independent."""
    found: defaultdict[Hashable, list[float]] = defaultdict(list)
    for outcome in outcomes:
        for key, value in zip(outcome.keys[which], (outcome.concepts, outcome.styles)[which].tolist(), strict=True):
            found[key].append(value)
    return np.array([fmean(values) for values in found.values()])


def three(outcomes: Sequence[Outcome]) -> list[np.ndarray]:
    """The three measures, each with a value for each independent unit."""
    return [joined([one.unlearned for one in outcomes]), by_key(outcomes, 0), by_key(outcomes, 1)]


def mean_of(parts: Sequence[np.ndarray]) -> Estimate:
    """The mean of the means of several measures, with its interval: the units of each are drawn apart."""

    def mean(*drawn: np.ndarray, axis: int) -> np.ndarray:
        return np.mean([part.mean(axis) for part in drawn], axis=0)

    return interval_of(parts, mean)


def joined(parts: Sequence[Tensor]) -> np.ndarray:
    return torch.cat(list(parts)).double().numpy()


if __name__ == "__main__":
    raise SystemExit(main())
