"""The language part: a real language model is steered from gloomy to cheerful."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from ..maps import ActMap
from ..models.transformers import TransformersModel
from ..prompts import read_lines
from .statistics import interval

PROMPT_SET = "gloomy_to_cheerful.txt"
DATA = Path(__file__).parent / "data"
STRENGTHS = (-1.0, 0.0, 0.5, 1.0)
CONTINUATIONS = 48
NEW_TOKENS = 24
PARAGRAPHS = 20


@dataclass(frozen=True)
class Row:
    """Measurements at one strength.

    Attributes:
        strength: of the map.
        sample: the first opening with its continuation.
        mood: mean VADER compound score of the continuations, from -1 to 1.
        interval: 95% bootstrap interval of `mood`.
        perplexity: on held-out prose.
    """

    strength: float
    sample: str
    mood: float
    interval: tuple[float, float]
    perplexity: float


def openings() -> list[str]:
    """Neutral beginnings for the model to continue."""
    return read_lines(DATA / "openings.txt")[:CONTINUATIONS]


def measure(
    model: TransformersModel, act_map: ActMap, strengths: Sequence[float], step: Callable[[], object]
) -> list[Row]:
    """One row for each strength; `step` is called after each."""
    prompts, prose = openings(), read_lines(DATA / "prose.txt")[:PARAGRAPHS]
    rows: list[Row] = []
    for strength in strengths:
        with model.steer(act_map, strength):
            continuations = model.generate(prompts, max_new_tokens=NEW_TOKENS)
            perplexity = model.perplexity(prose)
        scores = moods(continuations)
        rows.append(Row(strength, f"{prompts[0]}{continuations[0]}", scores.mean(), interval(scores), perplexity))
        step()
    return rows


def moods(texts: Sequence[str]) -> np.ndarray:
    """VADER compound score of each text, from -1 (gloomy) to 1 (cheerful): ``[n]``.

    Example:
        >>> gloomy, cheerful = moods(["A sad and terrible day.", "A happy and wonderful day."])
        >>> bool(gloomy < 0 < cheerful)
        True
    """
    analyzer: Any = SentimentIntensityAnalyzer()
    return np.array([analyzer.polarity_scores(text)["compound"] for text in texts])
