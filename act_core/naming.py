"""Captions for pictures that have none: words for things, of which the model itself finds the likeliest.

Each word is put to the model together with a noisy copy of the picture. The word that shows the model the way from what
it predicts without any to the picture is the likeliest. This is a diffusion classifier (Li et al., arXiv 2303.16203)
that compares directions instead of errors: a picture in a style that the words do not name is far from all of them.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

# The noise level of the copy, and how many words become captions (benchmarks/README.md): several likely words mislead
# less than a single wrong one.
LEVEL, WORDS = 0.9, 3


@cache
def subjects() -> tuple[str, ...]:
    """Things that pictures often show, in no particular order.

    Example:
        >>> "cat" in subjects()
        True
    """
    return tuple((Path(__file__).parent / "subjects.txt").read_text("utf-8").split())


class Likelihoods:
    """How well words fit one picture, collected in batches.

    Args:
        without: what the model predicts without a word, of any shape.
        wanted: what it should predict.

    Example:
        >>> found = Likelihoods(torch.zeros(2), torch.tensor([1.0, 0.0]))
        >>> found.add(torch.tensor([[0.0, 1.0], [0.5, 0.1], [-1.0, 0.0]]))
        >>> found.likeliest(1)
        [1]
    """

    def __init__(self, without: Tensor, wanted: Tensor) -> None:
        self._without = without.flatten().float()
        self._way = functional.normalize(wanted.flatten().float() - self._without, dim=0)
        self._along: list[Tensor] = []
        self._sizes: list[Tensor] = []

    def add(self, predicted: Tensor) -> None:
        """Add what the model predicts under further words, ``[words, ...]``."""
        shift = predicted.flatten(1).float() - self._without
        self._along.append(shift @ self._way)
        self._sizes.append(shift.square().sum(1).sqrt())

    def likeliest(self, count: int = WORDS) -> list[int]:
        """The numbers of the words that fit best, the best one first."""
        along, sizes = torch.cat(self._along), torch.cat(self._sizes)
        # A cosine, except for words that the model does not know: they hardly shift it, and their direction is chance.
        fit = (along / (sizes + sizes.median())).nan_to_num(0.0)
        return [int(number) for number in fit.argsort(descending=True)[:count]]


def named_note(words: int) -> str:
    """A note for the record on captions that were found in a list of words.

    Example:
        >>> named_note(390)
        'captions found by the model, the likeliest 3 of 390 words for each picture'
    """
    return f"captions found by the model, the likeliest {WORDS} of {words} words for each picture"
