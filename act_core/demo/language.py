"""The language part: a real language model is steered from gloomy to cheerful."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from ..maps import ActMap
from ..models.transformers import TransformersModel
from ..progress import bar, fit_with_bar
from ..prompts import load_prompt_set, read_lines
from . import shipped
from .chapter import Chapter, saved
from .statistics import Measured

TITLE = "The same with a language model"
PROMPT_SET = "gloomy_to_cheerful.txt"
DATA = Path(__file__).parent / "data"
STRENGTHS = (-1.0, 0.0, 0.5, 1.0)
CONTINUATIONS = 36
NEW_TOKENS = 24
PARAGRAPHS = 14


@dataclass(frozen=True)
class Row:
    """Measurements at one strength.

    Attributes:
        strength: of the map.
        sample: the first opening with its continuation.
        mood: VADER compound score of the continuations, from -1 to 1.
        perplexity: on held-out prose.
    """

    strength: float
    sample: str
    mood: Measured
    perplexity: float


def show(model: TransformersModel, output: Path) -> Chapter:
    """Fit the map, and let the model continue openings at each strength."""
    prompts = load_prompt_set(shipped("prompt_sets") / PROMPT_SET)
    path = output / "gloomy_to_cheerful.safetensors"
    description = "Makes continued sentences more cheerful; negative strengths make them gloomier."
    act_map = saved(fit_with_bar(model, prompts), path, "Gloomy to cheerful", description, (-1.0, 1.0))
    with bar(f"Continuing {CONTINUATIONS} openings at each strength", len(STRENGTHS)) as writing:
        rows = measure(model, act_map, STRENGTHS, writing.update)
    generating = ("generate", "--map", str(path), "--strength", "-1", "--strength", "1", "The letter from my aunt said")
    return Chapter(
        title=TITLE,
        story=(
            f"Given: {len(prompts.source)} gloomy and {len(prompts.target)} cheerful sentences. SmolLM2-135M continues "
            f"{len(openings())} neutral openings, such as '{openings()[0]}'."
        ),
        map_file=path,
        columns=("strength", "mood", "perplexity", "one of the texts"),
        rows=[
            (f"{row.strength:g}", f"{row.mood:+.2f}", f"{row.perplexity:.1f}", textwrap.shorten(row.sample, 88))
            for row in rows
        ],
        reading=(
            "Mood is the VADER score, from -1 to 1, with a 95% interval. Perplexity is that of held-out neutral prose "
            "under the steered model."
        ),
        commands=(generating, ("inspect", str(path))),
    )


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
        rows.append(Row(strength, f"{prompts[0]}{continuations[0]}", Measured.of(moods(continuations)), perplexity))
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
