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
from ..steering import steer
from . import interval

PROMPT_SET = "gloomy_to_cheerful.txt"
DATA = Path(__file__).parent / "data"
STRENGTHS = (-1.0, 0.0, 0.5, 1.0)
CONTINUATIONS = 48
NEW_TOKENS = 24
PARAGRAPHS = 20


@dataclass(frozen=True)
class Row:
    """What the model did at one strength.

    Attributes:
        sample: the continuation of the first opening.
        mood: mean VADER compound score of the continuations, from -1 to 1.
        interval: 95% bootstrap interval of it.
        perplexity: of prose that the fit never saw.
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
        with steer(model.module, act_map, strength) as steering:
            continuations = model.generate_all(prompts, max_new_tokens=NEW_TOKENS)
            perplexity = model.perplexity(prose)
            steering.check()
        scores = moods(continuations)
        rows.append(Row(strength, f"{prompts[0]}{continuations[0]}", scores.mean(), interval(scores), perplexity))
        step()
    return rows


def moods(texts: Sequence[str]) -> np.ndarray:
    """VADER compound score of each text, from -1 (gloomy) to 1 (cheerful)."""
    analyzer: Any = SentimentIntensityAnalyzer()
    return np.array([analyzer.polarity_scores(text)["compound"] for text in texts])
