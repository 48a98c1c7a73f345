"""Whether fitting all transports at once is better than the lockstep fit when there are few samples."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple

import numpy as np

from act_core import ActMap, fit
from act_core.demo.language import moods
from act_core.models.diffusers import DiffusersModel
from act_core.prompts import read_lines
from tools.results import Cell, Column, Estimate

from .lib.continuations import NEW_TOKENS, continuations
from .lib.controls import permuted
from .lib.intervals import interval
from .lib.judge import load_pictures
from .lib.models import DATA, load_model, load_prompts
from .lib.pictures import StyleBench, style_pair
from .lib.report import INTERVAL_ABOVE_0, Report, parse

SAMPLES = (16, 32)
ESTIMATORS = ("linear", "mean", "end_to_end")
TEXT_STRENGTHS, PICTURE_STRENGTHS = (0.5, 1.0, 1.5), (1.0, 1.3, 1.6)
# Strengths beyond are not chosen.
MAX_PERPLEXITY = 1.25
PAIRS = ((3, 1), (0, 4), (1, 2), (2, 3), (4, 0))
DEV_OPENINGS, DEV_CONCEPTS, DRAWING_STEPS = 12, 8, 12
COLUMNS = (
    Column("samples"),
    Column("estimator"),
    Column("strength", format="g"),
    Column("held out", format=".3f", spread="interval"),
    Column("less linear", format="+.3f", spread="interval"),
    Column("cost", format=".2f"),
)


class Score(NamedTuple):
    """The scores of units that are independent, such as openings, and what steering costs."""

    units: np.ndarray
    cost: float


class Task(NamedTuple):
    """Something to steer, on samples to tune the strength on and on others to report.

    Attributes:
        name: of the figures.
        fit: a map by estimator and number of samples.
        dev, test: score of a map at a strength.
        strengths: to choose from.
        is_usable: whether the cost of a strength is acceptable.
    """

    name: str
    fit: Callable[[str, int], ActMap]
    dev: Callable[[ActMap, float], Score]
    test: Callable[[ActMap, float], Score]
    strengths: Sequence[float]
    is_usable: Callable[[float], bool]

    def best_strength(self, act_map: ActMap) -> float:
        """The usable strength with the highest score on the development samples, or the lowest strength."""
        scores = {strength: self.dev(act_map, strength) for strength in self.strengths}
        usable = [strength for strength, score in scores.items() if self.is_usable(score.cost)]
        return max(usable, key=lambda strength: float(scores[strength].units.mean()), default=min(self.strengths))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.end_to_end", description=__doc__)
    parser.add_argument("--openings", type=int, default=32, help="held-out openings (%(default)s)")
    parser.add_argument("--concepts", type=int, default=24, help="held-out concepts (%(default)s)")
    parser.add_argument("--pairs", type=int, default=2, choices=range(1, 6), help="pairs of styles (%(default)s)")
    parser.add_argument("--text-steps", type=int, default=20, help="steps on the language model (%(default)s)")
    parser.add_argument("--steps", type=int, default=40, help="steps on the demo model (%(default)s)")
    args = parse(parser, arguments)

    report = Report("end_to_end", "Fitting all transports at once", args, "vaderSentiment", "diffusers")
    report.text(
        "The strength of each map is the best one on development samples; the scores are those of held-out samples. "
        "Control: the same map and strength with the channels of each site permuted. Intervals: 95%, bootstrap over "
        "openings or concepts; differences are paired."
    )
    for task in tasks(report, args):
        report.table(task.name, task.name.replace("_", " ").capitalize(), COLUMNS, compared(report, task))
    return report.finish()


def tasks(report: Report, args: argparse.Namespace) -> Generator[Task, None, None]:
    """Each task is set up once the one before it is done."""
    yield from styles(report, args.concepts, args.steps, args.pairs)
    yield language(report, args.openings, args.text_steps)


def compared(report: Report, task: Task) -> Generator[list[Cell], None, None]:
    """A row for each number of samples and estimator."""
    for count in SAMPLES:
        linear: np.ndarray | None = None
        for estimator in ESTIMATORS:
            act_map = task.fit(estimator, count)
            strength = task.best_strength(act_map)
            score = task.test(act_map, strength)
            linear = score.units if linear is None else linear
            better = Estimate(0.0, 0.0, 0.0) if estimator == "linear" else interval(score.units - linear)
            yield [f"{count} + {count}", estimator, strength, interval(score.units), better, score.cost]
            if estimator == "end_to_end":
                score = task.test(permuted(act_map), strength)
                name = f"{estimator}, channels permuted"
                difference = interval(score.units - linear)
                yield [f"{count} + {count}", name, strength, interval(score.units), difference, score.cost]
                words = f"{task.name.replace('_', ' ')}, {count} + {count}: end_to_end less linear"
                column = Column(words, format="+.3f", spread="interval")
                report.figure(f"{task.name}_{count}", column, better, INTERVAL_ABOVE_0)


def language(report: Report, openings: int, steps: int) -> Task:
    """Gloomy to cheerful, with SmolLM2."""
    model, prompts = load_model(), load_prompts()
    sides = {
        "dev": read_lines(DATA / "openings_dev.txt")[:DEV_OPENINGS],
        "test": read_lines(DATA / "openings_test.txt")[:openings],
    }
    unsteered = {name: continuations(model, texts, 1) for name, texts in sides.items()}
    perplexity = {name: written.perplexity(model) for name, written in unsteered.items()}
    report.text(
        f"Language: SmolLM2-135M-Instruct, gloomy to cheerful, attention outputs, {steps} steps end to end. VADER "
        f"score of {NEW_TOKENS} tokens after each of {openings} openings (unsteered "
        f"{moods(unsteered['test'].all).mean():.3f}); "
        f"cost: perplexity as a multiple of the unsteered one, at most {MAX_PERPLEXITY} on the {DEV_OPENINGS} "
        "development openings."
    )

    def fitted(estimator: Any, count: int) -> ActMap:
        sides = prompts.source[:count], prompts.target[:count]
        return fit(model, *sides, estimator=estimator, steps=steps)

    def score(name: str) -> Callable[[ActMap, float], Score]:
        def scored(act_map: ActMap, strength: float) -> Score:
            written = continuations(model, sides[name], 1, act_map, strength)
            return Score(moods(written.all), written.perplexity(model) / perplexity[name])

        return scored

    return Task(
        "mood_of_texts", fitted, score("dev"), score("test"), TEXT_STRENGTHS, lambda cost: cost <= MAX_PERPLEXITY
    )


def styles(report: Report, concepts: int, steps: int, pairs: int) -> Generator[Task, None, None]:
    """Pairs of styles, with the demo model."""
    pictures = load_pictures()
    dev = StyleBench(DEV_CONCEPTS, 1, pictures, last=True, steps=DRAWING_STEPS)
    test = StyleBench(concepts, 1, pictures, steps=DRAWING_STEPS)
    model = DiffusersModel(test.model.pipeline)
    report.text(
        f"Styles: the demo model, {steps} steps end to end. Probability of the target style, of {concepts} held-out "
        "concepts; cost: content kept, as in `styles`."
    )
    for source, target in PAIRS[:pairs]:

        def fitted(estimator: Any, count: int, source: int = source, target: int = target) -> ActMap:
            return fit(model, *test.prompts(source, target, count), estimator=estimator, steps=steps)

        def score(bench: StyleBench, source: int = source, target: int = target) -> Callable[[ActMap, float], Score]:
            def scored(act_map: ActMap, strength: float) -> Score:
                drawn = bench.steered({0: act_map}, bench.captions(source, bench.concepts), strength)
                return Score(drawn.styles[:, target].double().numpy(), bench.content(drawn.features, target))

            return scored

        unsteered = float(test.prompted(source).styles[:, target].mean())
        report.text(f"Style {source} to {target}: {style_pair(source, target)}; unsteered {unsteered:.3f}.")
        name = f"style_{source}_to_{target}"
        yield Task(name, fitted, score(dev), score(test), PICTURE_STRENGTHS, lambda _: True)


if __name__ == "__main__":
    raise SystemExit(main())
