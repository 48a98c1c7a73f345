"""Something to steer in continuations: the strength of each way is chosen on some prompts, its effect on others."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from act_core.models.transformers import TransformersModel
from tools.results import Cell, Column, Estimate

from .choices import Question, accuracy
from .continuations import Continuations
from .evidence import CLEARS_COLUMNS, cleared
from .intervals import interval, score_interval
from .ways import (
    MAPS,
    PROMPTING,
    UNSTEERED,
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
NOT_COMPARED = "not compared"


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
                *(replace(own, name=f"{name}: {own.name}") for own in CLEARS_COLUMNS),
            )
        ]
        return [Column("steered by"), Column("strength", format="g"), *effect, *COSTS]

    @cached_property
    def _dev_perplexity(self) -> float:
        return self._write(Way(UNSTEERED), self.dev).perplexity(self.model)

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
        by_layer = vectors(self.model, self.source, self.target, self.layers).values()
        yield best([own for way in by_layer for own in at_strengths(way, VECTOR_STRENGTHS)], self.on_dev)
        strengths: dict[str, float] = {}
        for name in names:
            way = fitted(self.model, name, self.source, self.target, MAPS[name])
            chosen = strengths.get(name.partition(",")[0])
            way = best(at_strengths(way), self.on_dev) if chosen is None else replace(way, strength=chosen)
            strengths[name] = way.strength
            yield way

    def rows(self, names: Sequence[str] = tuple(MAPS)) -> Generator[list[Cell], None, None]:
        """A row for each way. Maps and vectors that change a score for the better are compared with controls."""
        unsteered: dict[str, np.ndarray] = {}
        unsteered_perplexity = 0.0
        for way in self.ways(names):
            written = self._write(way, self.test)
            units, perplexity = self._units(written), written.perplexity(self.model)
            if not unsteered:  # the first way
                unsteered, unsteered_perplexity = units, perplexity
            changes = {name: interval(own - unsteered[name]) for name, own in units.items()}
            better = any(gain(changes[scorer.name], scorer.sign) > 0 for scorer in self.scorers)
            controls = self._controls(way) if way.act_map is not None and better else {}
            cells: list[Cell] = [way.name, way.strength]
            for name, _, sign in self.scorers:
                cells += [score_interval(units[name]), changes[name]]
                compared = {control: own[name] for control, own in controls.items()}
                cells += comparison(way, units[name], compared, sign)
            known = float(accuracy(self.model, way, self.questions).mean())
            yield [*cells, perplexity / unsteered_perplexity, written.distinct_2(), known]

    def _units(self, written: Continuations) -> dict[str, np.ndarray]:
        """The scores of each continuation, by scorer."""
        return {scorer.name: scorer.score(written.all) for scorer in self.scorers}

    def _controls(self, way: Way) -> dict[str, dict[str, np.ndarray]]:
        """The scores of each control, by scorer."""
        controls = controls_of(self.model, way, self.source, self.target)
        return {name: self._units(self._write(control, self.test)) for name, control in controls.items()}


def gain(change: Estimate, sign: int = 1) -> float:
    """The end of the interval of a change that is closer to none; above 0 if the change is one for the better."""
    return change.low if sign > 0 else -change.high


def comparison(way: Way, units: np.ndarray, controls: Mapping[str, np.ndarray], sign: int = 1) -> list[Cell]:
    """Cells for `CLEARS_COLUMNS`.

    Args:
        way: of the row.
        units: its scores.
        controls: those of each control; none if the way changes no score for the better.
        sign: -1 if the scores should fall.
    """
    if way.act_map is None:
        return [NOT_COMPARED, NOT_COMPARED]
    if not controls:
        return [NOT_COMPARED, "**no** (its change may be 0)"]
    return cleared(sign * units, {name: sign * own for name, own in controls.items()}).cells
