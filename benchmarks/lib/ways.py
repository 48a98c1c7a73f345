"""Ways of steering a language model that are compared: maps, a vector at one layer, an instruction, and nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from act_core import ActMap, fit
from act_core.models.transformers import TransformersModel

from .continuations import Continuations
from .controls import RANDOM_CONTROLS, random_controls

STRENGTHS = (0.25, 0.5, 0.75, 1.0)
VECTOR_STRENGTHS = (1.0, 2.0, 4.0)
# A strength that costs more than this multiple of the unsteered perplexity is not chosen.
MAX_PERPLEXITY = 1.25
UNSTEERED, PROMPTING, VECTOR = "unsteered", "prompting", "mean-difference vector"
# Maps by name, with the settings that they are fitted with; the defaults are linear, causal and unbounded. A name with
# a comma is that of a variant, which acts at the strength of the map that it varies.
MAPS: dict[str, dict[str, Any]] = {
    "linear": {},
    "mean": {"estimator": "mean"},
    "gaussian": {"estimator": "gaussian"},
    "linear, simultaneous": {"order": "simultaneous"},
    "linear, observed": {"support": "observed"},
    "linear, gated": {"support": "gated"},
}


@dataclass(frozen=True)
class Way:
    """One way of steering.

    Attributes:
        name: of its row.
        act_map: None for none.
        strength: of the map.
        instruction: a text in front of every prompt.
        settings: how the map was fitted.
    """

    name: str
    act_map: ActMap | None = None
    strength: float = 0.0
    instruction: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def steered(self, model: TransformersModel) -> AbstractContextManager[object]:
        """A context in which the map acts."""
        return nullcontext() if self.act_map is None else model.steer(self.act_map, self.strength)

    def write(self, model: TransformersModel, prompts: Sequence[str], new_tokens: int, seed: int = 0) -> Continuations:
        """Continuations of the prompts, which do not include the instruction."""
        with self.steered(model):
            texts = model.generate(
                [self.instruction + prompt for prompt in prompts], max_new_tokens=new_tokens, seed=seed
            )
        return Continuations(prompts, [texts])


def fitted(
    model: TransformersModel, name: str, source: Sequence[str], target: Sequence[str], settings: Mapping[str, Any]
) -> Way:
    """A map at strength 1."""
    return Way(name, fit(model, source, target, **settings), 1.0, settings=settings)


def vectors(
    model: TransformersModel, source: Sequence[str], target: Sequence[str], layers: Iterable[int]
) -> dict[int, Way]:
    """The difference of the means after a block, added to every token there (ActAdd, CAA), by layer."""
    found: dict[int, Way] = {}
    for layer in layers:
        settings = {
            "sites": f"language_model/model.layers.{layer}",
            "estimator": "mean",
            "order": "simultaneous",
            "support": "unbounded",
        }
        found[layer] = fitted(model, f"{VECTOR}, layer {layer}", source, target, settings)
    return found


def at_strengths(way: Way, strengths: Iterable[float] = STRENGTHS) -> list[Way]:
    """The same map at several strengths."""
    return [replace(way, strength=strength) for strength in strengths]


def best(candidates: Sequence[Way], score: Callable[[Way], tuple[float, float]]) -> Way:
    """The candidate with the highest score whose perplexity is acceptable; the weakest one if there is none.

    Args:
        candidates: to choose from.
        score: the score on development samples, and the perplexity as a multiple of the unsteered one.
    """
    scores = [score(way) for way in candidates]
    usable = [at for at, (_, perplexity) in enumerate(scores) if perplexity <= MAX_PERPLEXITY]
    if not usable:
        return min(candidates, key=lambda way: way.strength)
    return candidates[max(usable, key=lambda at: scores[at][0])]


def shuffled_sides(source: Sequence[str], target: Sequence[str]) -> tuple[list[str], list[str]]:
    """Both sides mixed at random: of each two texts of neighbouring length, one goes to either side."""
    generator = np.random.default_rng(0)
    texts = sorted([*source, *target], key=lambda text: len(text.split()))
    sides: tuple[list[str], list[str]] = [], []
    for at in range(0, len(texts) - 1, 2):
        first = int(generator.integers(2))
        sides[first].append(texts[at])
        sides[1 - first].append(texts[at + 1])
    return sides


def controls_of(
    model: TransformersModel,
    way: Way,
    source: Sequence[str],
    target: Sequence[str],
    count: int = RANDOM_CONTROLS,
) -> dict[str, Way]:
    """Random maps of the same size, and one that is fitted in the same way on shuffled sides; at the same strength."""
    assert way.act_map is not None
    found = {name: replace(way, act_map=act_map) for name, act_map in random_controls(way.act_map, count).items()}
    shuffled = fitted(model, way.name, *shuffled_sides(source, target), way.settings)
    return {**found, "shuffled sides": replace(shuffled, strength=way.strength)}
