"""Prompts that ask for a thing and prompts that do not, and whether pictures show it."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tools.train_demo_model.emoji import STYLES

from .judge import is_training_concept
from .pictures import Judged, StyleBench

FIT_PROMPTS = 128
# Real emoji that a picture is compared with.
NEAREST = 5


class Removal(NamedTuple):
    """Prompts that name a thing, and the prompts that fit a map for its removal.

    Attributes:
        has: whether the name of each concept has the word, bool ``[concepts]``.
        asking, others: held-out prompts that ask for it, and that do not.
        kept: the concepts of `others`.
        both: prompts that name a thing of `asking` and one of `others`, in this order.
        source, target: prompts to fit on, with and without the word.
    """

    has: Tensor
    asking: list[str]
    others: list[str]
    kept: list[int]
    both: list[str]
    source: list[str]
    target: list[str]

    @classmethod
    def of(cls, word: str, bench: StyleBench, count: int, without: Sequence[str] = ()) -> Removal:
        """Prompts for a word.

        Args:
            word: what to remove.
            bench: whose concepts are drawn.
            count: most prompts of `asking`.
            without: words that no drawn concept has: those of the test, for prompts to choose settings on.
        """
        names = bench.pictures.names
        has = torch.tensor([_has(name, word) for name in names])
        asking = [c for c in range(len(has)) if has[c] and not is_training_concept(c) and not _has(names[c], *without)]
        asking = asking[:count]
        others = [c for c in bench.concepts if not _has(names[c], word, *without)]
        pairs = list(zip(asking, others, strict=False))
        chance = random.Random(0)
        sides = ([c for c in bench.fit_concepts if bool(has[c]) == side] for side in (True, False))
        source, target = (
            [bench.captions(chance.randrange(len(STYLES)), [chance.choice(side)])[0] for _ in range(FIT_PROMPTS)]
            for side in sides
        )
        return cls(
            has,
            [bench.captions(style_of(number), [concept])[0] for number, concept in enumerate(asking)],
            [bench.captions(style_of(number), [concept])[0] for number, concept in enumerate(others)],
            others,
            [f"{names[a]} and {names[b]}, {STYLES[style_of(n)].phrase}" for n, (a, b) in enumerate(pairs)],
            source,
            target,
        )

    def shown(self, drawn: Judged, real: Tensor) -> Tensor:
        """1 for each picture that shows the thing, else 0: most of the nearest real emoji have the word."""
        styles = [style_of(number) for number in range(len(drawn.features))]
        similarity = torch.einsum("nf,ncf->nc", drawn.features, real[styles])
        return (self.has[similarity.topk(NEAREST).indices].float().mean(1) > 0.5).float()


def _has(name: str, *words: str) -> bool:
    return any(re.search(rf"\b{word}s?\b", name) for word in words)


def style_of(number: int) -> int:
    """The style of the prompt with this number: all in turn."""
    return number % len(STYLES)
