"""Concepts that continuations should contain, and two scorers of whether they do."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from act_core.prompts import read_lines

from .models import DATA
from .ratings import Encoder

# The last sentences of each concept, which no map is fitted on.
REFERENCES = 6

Score = Callable[[Sequence[str]], np.ndarray]


class Concept(NamedTuple):
    """A concept.

    Attributes:
        name: in an instruction, and of its rows.
        words: that show it.
        sentences: to fit on.
        references: sentences that embeddings are compared with.
    """

    name: str
    words: frozenset[str]
    sentences: list[str]
    references: list[str]

    def has_words(self, texts: Sequence[str]) -> np.ndarray:
        """1 for each text with one of the words, else 0."""
        return np.array([float(not self.words.isdisjoint(re.findall(r"[a-z]+", text.lower()))) for text in texts])


def read_concepts() -> list[Concept]:
    """The concepts of ``data/concepts.txt``."""
    sections: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in read_lines(DATA / "concepts.txt"):
        if line.startswith("["):
            lines = sections[line.strip("[]")] = []
        else:
            lines.append(line)
    return [
        Concept(name, frozenset(words.removeprefix("words: ").split(", ")), own[:-REFERENCES], own[-REFERENCES:])
        for name, (words, *own) in sections.items()
    ]


class NearestReference:
    """Whether the embedding of a text is closer to the references of one concept than to those of all others.

    Args:
        references: texts by concept, and texts without any of them.
    """

    def __init__(self, references: Mapping[str, Sequence[str]]) -> None:
        self._encoder = Encoder()
        self._names = list(references)
        means = [self._encoder.encode(texts).mean(0) for texts in references.values()]
        self._centres = np.stack([mean / np.linalg.norm(mean) for mean in means])

    def of(self, name: str) -> Score:
        """1 for each text that is closest to this concept, else 0."""
        wanted = self._names.index(name)
        return lambda texts: ((self._encoder.encode(texts) @ self._centres.T).argmax(1) == wanted).astype(float)
