"""What the text maps that ship do to openings and to requests that are in no prompt set."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Generator, Sequence
from typing import NamedTuple

import numpy as np

from act_core import ActMap, load_map, steer
from act_core.demo import interval
from act_core.demo.language import moods
from act_core.models.transformers import Chat, TransformersModel
from act_core.prompts import read_lines
from tools.fit_text_maps import TEXT_MAPS, TextMap

from .common import DATA, Check, load_model, print_table, print_title, report

STRENGTHS = (0.5, 1.0)
NEW_TOKENS = 30
CHAT_TOKENS = 40
REQUEST = "Describe an image of {}."
LONG = 7

Score = Callable[[Sequence[str]], np.ndarray]


def words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def holding(listed: str) -> Score:
    """1 for each text that holds any of the listed words, else 0."""
    wanted = set(read_lines(DATA / listed))
    return lambda texts: np.array([float(not wanted.isdisjoint(words(text))) for text in texts])


def long_words(texts: Sequence[str]) -> np.ndarray:
    """Of each text, the share of its words that have `LONG` letters or more."""
    found = [words(text) for text in texts]
    return np.array([sum(len(word) >= LONG for word in own) / max(1, len(own)) for own in found])


class Measure(NamedTuple):
    """How a map is judged: by a score that is to rise, or to fall, or to be so many times what it was."""

    name: str
    score: Score
    rises: bool = True
    times: float | None = None


def measures() -> dict[str, Measure]:
    """The measure of each map, by its name."""
    return {
        "cheerful": Measure("VADER", moods),
        "gloomy": Measure("VADER", moods, rises=False),
        "baroque": Measure("ornate", holding("ornate_words.txt")),
        "plain": Measure("long words", long_words, rises=False),
        "nature": Measure("nature", holding("nature_words.txt"), times=3),
        "night": Measure("night", holding("night_words.txt"), times=3),
    }


class Figures(NamedTuple):
    """A score with its interval, and the perplexity under the unsteered model."""

    mean: float
    low: float
    high: float
    perplexity: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


class Task(NamedTuple):
    """Prompts for the model, and how it is asked to go on from them."""

    model: TransformersModel
    prompts: list[str]
    seeds: int
    new_tokens: int

    def written(self, act_map: ActMap | None, strength: float) -> list[str]:
        """Texts for all prompts with every seed, seed by seed."""

        def write() -> list[str]:
            return [
                text
                for seed in range(self.seeds)
                for text in self.model.generate_all(self.prompts, max_new_tokens=self.new_tokens, seed=seed)
            ]

        if act_map is None:
            return write()
        with steer(self.model.module, act_map, strength) as steering:
            texts = write()
            steering.check()
        return texts

    def scored(self, measure: Measure, texts: list[str]) -> tuple[float, float, float]:
        """Mean and interval, over prompts: the seeds of one prompt are no independent texts."""
        scores = measure.score(texts).reshape(self.seeds, len(self.prompts)).mean(0)
        return float(scores.mean()), *interval(scores)

    def perplexity(self, texts: list[str]) -> float:
        return self.model.perplexity(texts, after=self.prompts * self.seeds)


def checks(told: TextMap, measure: Measure, before: Figures, after: Figures) -> Generator[Check, None, None]:
    """The targets of one map, at strength 1."""
    apart = after.low > before.high if measure.rises else after.high < before.low
    way = "above" if measure.rises else "below"
    yield Check(f"{told.name}: {measure.name} at 0, at 1", f"{before}, {after}", f"interval {way}", apart)
    if measure.times is not None:
        ratio = after.mean / before.mean if before.mean else np.inf
        yield Check(f"{told.name}: times as many", f"{ratio:.1f}", f">= {measure.times:g}", ratio >= measure.times)
    ratio = after.perplexity / before.perplexity
    yield Check(f"{told.name}: perplexity at 1 / at 0", f"{ratio:.2f}", "<= 1.5", ratio <= 1.5)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.text_maps", description=__doc__)
    names = [told.name for told in TEXT_MAPS]
    parser.add_argument("--maps", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument(
        "--strengths", nargs="+", type=float, default=list(STRENGTHS), metavar="S", help="besides 0 (%(default)s)"
    )
    parser.add_argument("--seeds", type=int, default=4, help="continuations of each opening (%(default)s)")
    parser.add_argument("--dev", action="store_true", help="on openings_dev.txt, where the settings were chosen")
    args = parser.parse_args(arguments)

    print_title("Text maps", "vaderSentiment")
    model = load_model()
    openings = read_lines(DATA / ("openings_dev.txt" if args.dev else "openings_test.txt"))
    task = Task(model, openings, args.seeds, NEW_TOKENS)
    chosen = [told for told in TEXT_MAPS if told.name in args.maps]
    by_name = measures()
    print(
        f"SmolLM2-135M-Instruct. {len(openings)} openings x {args.seeds} seeds = {len(openings) * args.seeds} "
        f"continuations of {NEW_TOKENS} tokens at each strength; intervals: 95%, bootstrap over openings. Scores: "
        "VADER from -1 to 1; nature, night, ornate: share of the texts that hold any word of the list in "
        f"benchmarks/data; long words: share of the words that have {LONG} letters or more. Perplexity: of the "
        "continuations under the unsteered model, as a multiple of that at strength 0."
    )
    unsteered = task.written(None, 0)
    fluent = task.perplexity(unsteered)
    found: list[Check] = []

    def rows() -> Generator[tuple[object, ...], None, None]:
        for told in chosen:
            measure = by_name[told.name]
            before = Figures(*task.scored(measure, unsteered), fluent)
            yield told.name, measure.name, "0", before, "1.00", example(openings[0], unsteered[0])
            act_map = load_map(told.file)
            for strength in args.strengths:
                texts = task.written(act_map, strength)
                after = Figures(*task.scored(measure, texts), task.perplexity(texts))
                ratio = f"{after.perplexity / before.perplexity:.2f}"
                yield told.name, measure.name, f"{strength:g}", after, ratio, example(openings[0], texts[0])
                if strength == 1:
                    found.extend(checks(told, measure, before, after))

    print_table(("map", "score", "strength", "measured", "perplexity", "the first continuation"), rows())
    described(model, chosen, by_name)
    return report(found)


def described(model: TransformersModel, chosen: Sequence[TextMap], by_name: dict[str, Measure]) -> None:
    """The same scores of what the model answers when it is asked for the description of an image."""
    subjects = read_lines(DATA / "subjects.txt")
    requests = [REQUEST.format(subject) for subject in subjects]
    task = Task(model.in_chat(Chat()), requests, 1, CHAT_TOKENS)
    print(
        f"\n### Descriptions\n\n{len(subjects)} answers of {CHAT_TOKENS} tokens, in chat format, to "
        f"{REQUEST.format('<subject>')!r}."
    )
    unsteered = task.written(None, 0)

    def rows() -> Generator[tuple[object, ...], None, None]:
        for told in chosen:
            measure = by_name[told.name]
            texts = task.written(load_map(told.file), 1)
            pairs = (task.scored(measure, unsteered), task.scored(measure, texts))
            figures = [f"{m:.3f} [{low:.3f}, {high:.3f}]" for m, low, high in pairs]
            yield told.name, measure.name, *figures, example("", texts[0])

    print_table(("map", "score", "strength 0", "strength 1", f"the first answer ({subjects[0]})"), rows())


def example(opening: str, text: str) -> str:
    """One line that can stand in a table."""
    return " ".join((opening + text).split()).replace("|", "/")


if __name__ == "__main__":
    raise SystemExit(main())
