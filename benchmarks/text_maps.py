"""The effect of the shipped text maps on held-out openings and requests."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Generator, Sequence
from typing import NamedTuple

import numpy as np

from act_core import load_map
from act_core.demo.language import moods
from act_core.models.transformers import Chat, TransformersModel
from act_core.prompts import read_lines
from tools.fit_text_maps import TEXT_MAPS, TextMap
from tools.results import Cell, Column, Estimate

from .lib.continuations import NEW_TOKENS, Continuations, continuations
from .lib.controls import permuted
from .lib.intervals import score_interval
from .lib.models import DATA, load_model
from .lib.report import Report, Target, at_least, at_most, parse

CHAT_TOKENS = 40
REQUEST = "Describe an image of {}."
LONG_WORD = 7
MAX_PERPLEXITY = 1.5

STRENGTH_COLUMNS = (
    Column("map"),
    Column("score"),
    Column("strength", format="g"),
    Column("mean", format=".3f", spread="interval"),
    Column("perplexity", format=".2f"),
    Column("the first continuation"),
)
CHAT_COLUMNS = (
    Column("map"),
    Column("score"),
    Column("strength 0", format=".3f", spread="interval"),
    Column("strength 1", format=".3f", spread="interval"),
    Column("the first answer"),
)

Score = Callable[[Sequence[str]], np.ndarray]


class Measure(NamedTuple):
    """How a map is judged: a score that should rise or fall, or rise to a multiple of its unsteered value."""

    name: str
    score: Score
    rises: bool = True
    times: float | None = None

    def of(self, written: Continuations) -> Estimate:
        """Mean score and its interval, over prompts: the seeds of one prompt are not independent."""
        return score_interval(self.score(written.all).reshape(len(written.by_seed), len(written.prompts)).mean(0))


def words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def contains_any_of(listed: str) -> Score:
    """1 for each text that contains a word of a list, else 0."""
    wanted = set(read_lines(DATA / listed))
    return lambda texts: np.array([float(not wanted.isdisjoint(words(text))) for text in texts])


def long_words(texts: Sequence[str]) -> np.ndarray:
    """Share of the words of each text that have `LONG_WORD` letters or more."""
    split = [words(text) for text in texts]
    return np.array([sum(len(word) >= LONG_WORD for word in own) / max(1, len(own)) for own in split])


def measures() -> dict[str, Measure]:
    """The measure of each map, by its name."""
    return {
        "cheerful": Measure("VADER", moods),
        "gloomy": Measure("VADER", moods, rises=False),
        "baroque": Measure("ornate", contains_any_of("ornate_words.txt")),
        "plain": Measure("long words", long_words, rises=False),
        "nature": Measure("nature", contains_any_of("nature_words.txt"), times=3),
        "night": Measure("night", contains_any_of("night_words.txt"), times=3),
    }


def score_column(name: str, score: str, strength: int) -> Column:
    return Column(f"{name}: {score} at strength {strength}", format=".3f", spread="interval")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.text_maps", description=__doc__)
    names = [text_map.name for text_map in TEXT_MAPS]
    parser.add_argument("--maps", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument(
        "--strengths",
        nargs="+",
        type=float,
        default=[0.5, 1.0],
        metavar="S",
        help="in addition to 0 (%(default)s)",
    )
    parser.add_argument("--seeds", type=int, default=4, help="continuations of each opening (%(default)s)")
    parser.add_argument("--openings", type=int, help="only the first openings")
    parser.add_argument("--dev", action="store_true", help="use the openings that the scales were chosen on; not saved")
    args = parse(parser, arguments)
    args.no_save |= args.dev

    report = Report("text_maps", "Text maps", args, "vaderSentiment")
    model = load_model()
    openings = read_lines(DATA / ("openings_dev.txt" if args.dev else "openings_test.txt"))[: args.openings]
    chosen = [text_map for text_map in TEXT_MAPS if text_map.name in args.maps]
    report.text(
        f"SmolLM2-135M-Instruct. {len(openings)} openings x {args.seeds} seeds = {len(openings) * args.seeds} "
        f"continuations of {NEW_TOKENS} tokens at each strength; intervals: 95%, bootstrap over openings. Scores: "
        "VADER from -1 to 1; nature, night, ornate: share of the texts that contain a word of the list in "
        f"benchmarks/data; long words: share of the words that have {LONG_WORD} letters or more. Perplexity: of the "
        "continuations under the unsteered model, as a multiple of that at strength 0. Control: the same map with the "
        "channels of each site permuted."
    )
    rows = strengths(report, model, chosen, openings, args)
    report.table("strengths", "Continuations of openings", STRENGTH_COLUMNS, rows)
    subjects = read_lines(DATA / "subjects.txt")[: args.openings]
    report.text(
        f"Descriptions: {len(subjects)} answers of {CHAT_TOKENS} tokens, in chat format, to "
        f"{REQUEST.format('<subject>')!r}; the first subject is {subjects[0]!r}."
    )
    report.table("descriptions", "Descriptions in chat format", CHAT_COLUMNS, descriptions(model, chosen, subjects))
    return report.finish()


def strengths(
    report: Report,
    model: TransformersModel,
    chosen: Sequence[TextMap],
    openings: Sequence[str],
    args: argparse.Namespace,
) -> Generator[list[Cell], None, None]:
    """A row per map and strength; the targets are those of strength 1."""
    unsteered = continuations(model, openings, args.seeds)
    perplexity = unsteered.perplexity(model)
    for text_map in chosen:
        measure, act_map = measures()[text_map.name], load_map(text_map.file)
        before = measure.of(unsteered)
        yield [text_map.name, measure.name, 0.0, before, 1.0, unsteered.example()]
        for strength in args.strengths:
            written = continuations(model, openings, args.seeds, act_map, strength)
            after, times = measure.of(written), written.perplexity(model) / perplexity
            yield [text_map.name, measure.name, strength, after, times, written.example()]
            if strength == 1:
                add_figures(report, text_map.name, measure, before, after, times)
        written = continuations(model, openings, args.seeds, permuted(act_map), 1.0)
        times = written.perplexity(model) / perplexity
        yield [f"{text_map.name}, channels permuted", measure.name, 1.0, measure.of(written), times, written.example()]


def add_figures(report: Report, name: str, measure: Measure, before: Estimate, after: Estimate, times: float) -> None:
    """The figures of one map, with their targets."""
    if measure.rises:
        target = Target(f"interval above {before.high:.3f}", lambda found: found.low > before.high)
    else:
        target = Target(f"interval below {before.low:.3f}", lambda found: found.high < before.low)
    report.figure(f"{name}_before", score_column(name, measure.name, 0), before)
    report.figure(f"{name}_after", score_column(name, measure.name, 1), after, target)
    if measure.times is not None:
        ratio = after.value / before.value if before.value else np.inf
        column = Column(f"{name}: at strength 1 / at 0", format=".1f")
        report.figure(f"{name}_times", column, ratio, at_least(measure.times))
    column = Column(f"{name}: perplexity at strength 1 / at 0", format=".2f")
    report.figure(f"{name}_perplexity", column, times, at_most(MAX_PERPLEXITY))


def descriptions(
    model: TransformersModel, chosen: Sequence[TextMap], subjects: Sequence[str]
) -> Generator[list[Cell], None, None]:
    """The same scores for answers to a request to describe an image."""
    chat, requests = model.in_chat(Chat()), [REQUEST.format(subject) for subject in subjects]
    unsteered = continuations(chat, requests, 1, new_tokens=CHAT_TOKENS)
    for text_map in chosen:
        measure = measures()[text_map.name]
        written = continuations(chat, requests, 1, load_map(text_map.file), new_tokens=CHAT_TOKENS)
        yield [text_map.name, measure.name, measure.of(unsteered), measure.of(written), written.example("")]


if __name__ == "__main__":
    raise SystemExit(main())
