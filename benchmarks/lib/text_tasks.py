"""Something to steer in continuations: the strength of each way is chosen on some prompts, its effect on others."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from act_core.models.transformers import TransformersModel
from tools.results import Cell, Column

from .choices import Question, accuracy
from .continuations import Continuations
from .evidence import CLEARS_COLUMNS, cleared
from .intervals import interval
from .ways import (
    MAPS,
    PROMPTING,
    UNSTEERED,
    VECTOR,
    VECTOR_STRENGTHS,
    Way,
    at_strengths,
    best,
    controls_of,
    fitted,
    vectors,
)

COSTS = (
    Column("perplexity", format=".2f"),
    Column("distinct-2", format=".2f"),
    Column("general knowledge", format=".3f"),
)
NOT_MEASURED = "not compared"


class Scorer(NamedTuple):
    """A score of texts, from 0 to 1.

    Attributes:
        name: heading of its column.
        score: of each text.
        sign: 1 if it should rise, -1 if it should fall.
    """

    name: str
    score: Callable[[Sequence[str]], np.ndarray]
    sign: int = 1


@dataclass(frozen=True)
class TextTask:
    """Prompts and scorers of one task.

    Attributes:
        model: to steer.
        source, target: texts that maps are fitted on.
        dev, test: prompts to choose strengths on, and to report.
        scorers: the first one chooses.
        instruction: what prompting puts in front.
        layers: for the mean-difference vector.
        new_tokens: of a continuation.
        questions: what steering should not change.
    """

    model: TransformersModel
    source: Sequence[str]
    target: Sequence[str]
    dev: Sequence[str]
    test: Sequence[str]
    scorers: Sequence[Scorer]
    instruction: str
    layers: Sequence[int]
    new_tokens: int
    questions: Sequence[Question]

    @property
    def columns(self) -> list[Column]:
        """Those of the table of `rows`."""
        names = [scorer.name for scorer in self.scorers]
        effect = [
            column
            for name in names
            for column in (
                Column(name, format=".3f", spread="interval"),
                Column(f"{name}: change", format="+.3f", spread="interval"),
                *(Column(f"{name}: {own.name}", format=own.format) for own in CLEARS_COLUMNS),
            )
        ]
        return [Column("steered by"), Column("strength", format="g"), *effect, *COSTS]

    @cached_property
    def _dev_perplexity(self) -> float:
        return self._write(Way(UNSTEERED), self.dev).perplexity(self.model)

    @cached_property
    def _test_perplexity(self) -> float:
        return self._write(Way(UNSTEERED), self.test).perplexity(self.model)

    def _write(self, way: Way, prompts: Sequence[str]) -> Continuations:
        return way.write(self.model, prompts, self.new_tokens)

    def on_dev(self, way: Way) -> tuple[float, float]:
        """The first score on the development prompts, higher where better, and the relative perplexity."""
        written, scorer = self._write(way, self.dev), self.scorers[0]
        score = scorer.sign * float(scorer.score(written.all).mean())
        return score, written.perplexity(self.model) / self._dev_perplexity

    def ways(self, names: Sequence[str] = tuple(MAPS)) -> Generator[Way, None, None]:
        """No steering, the baselines, and the maps, each at its best strength on the development prompts."""
        yield Way(UNSTEERED)
        yield Way(PROMPTING, instruction=self.instruction)
        if self.layers:
            by_layer = vectors(self.model, self.source, self.target, self.layers).values()
            yield best([own for way in by_layer for own in at_strengths(way, VECTOR_STRENGTHS)], self.on_dev)
        strengths: dict[str, float] = {}
        for name in names:
            way = fitted(self.model, name, self.source, self.target, MAPS[name])
            chosen = strengths.get(name.partition(",")[0])
            way = best(at_strengths(way), self.on_dev) if chosen is None else replace(way, strength=chosen)
            strengths[name] = way.strength
            yield way

    def rows(self, names: Sequence[str], controlled: Sequence[str]) -> Generator[list[Cell], None, None]:
        """A row for each way; those named in `controlled` are compared with controls."""
        unsteered: dict[str, np.ndarray] = {}
        for way in self.ways(names):
            written = self._write(way, self.test)
            units = {scorer.name: scorer.score(written.all) for scorer in self.scorers}
            unsteered = unsteered or units
            kind = VECTOR if way.name.startswith(VECTOR) else way.name
            controls = self._controls(way) if kind in controlled else {}
            cells: list[Cell] = [way.name, way.strength]
            for scorer in self.scorers:
                own = units[scorer.name]
                cells += [interval(own), interval(own - unsteered[scorer.name])]
                if controls:
                    signed = {name: scorer.sign * scores[scorer.name] for name, scores in controls.items()}
                    found = cleared(scorer.sign * own, signed)
                    cells += [scorer.sign * found.score + 0.0, found.cells[1]]  # no negative zero
                else:
                    cells += [NOT_MEASURED, NOT_MEASURED]
            perplexity = written.perplexity(self.model) / self._test_perplexity
            known = float(accuracy(self.model, way, self.questions).mean())
            yield [*cells, perplexity, written.distinct_2(), known]

    def _controls(self, way: Way) -> dict[str, dict[str, np.ndarray]]:
        """The scores of each control, by scorer."""
        found: dict[str, dict[str, np.ndarray]] = {}
        for name, control in controls_of(self.model, way, self.source, self.target).items():
            texts = self._write(control, self.test).all
            found[name] = {scorer.name: scorer.score(texts) for scorer in self.scorers}
        return found
