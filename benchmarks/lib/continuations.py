"""Continuations by a language model, steered and unsteered, and their scores."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from act_core import ActMap
from act_core.models.transformers import TransformersModel

NEW_TOKENS = 30


class Continuations(NamedTuple):
    """The continuations at one strength: a list per seed, in the order of the prompts."""

    prompts: Sequence[str]
    by_seed: list[list[str]]

    @property
    def all(self) -> list[str]:
        """Seed by seed."""
        return [text for texts in self.by_seed for text in texts]

    def perplexity(self, model: TransformersModel) -> float:
        """After their prompts, under the model as it is now; call it outside of steering."""
        return model.perplexity(self.all, after=[*self.prompts] * len(self.by_seed))

    def distinct_2(self) -> float:
        """Share of distinct pairs among all pairs of neighbouring words, over all continuations."""
        pairs = [pair for text in self.all for pair in pairwise(re.findall(r"\w+(?:'\w+)?", text.lower()))]
        return len(set(pairs)) / len(pairs)

    def example(self, opening: str | None = None) -> str:
        """The first prompt and its first continuation in one line."""
        return " ".join(((self.prompts[0] if opening is None else opening) + self.by_seed[0][0]).split())


def continuations(
    model: TransformersModel,
    prompts: Sequence[str],
    seeds: int,
    act_map: ActMap | None = None,
    strength: float = 1.0,
    new_tokens: int = NEW_TOKENS,
) -> Continuations:
    """Continue all prompts with every seed, steered if there is a map."""

    def write() -> Continuations:
        return Continuations(
            prompts, [model.generate(prompts, max_new_tokens=new_tokens, seed=seed) for seed in range(seeds)]
        )

    if act_map is None:
        return write()
    with model.steer(act_map, strength):
        return write()
