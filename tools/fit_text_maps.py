"""Fits the text maps of ``pretrained_maps`` for the default language model.

    python -m tools.fit_text_maps

The same prompts, settings and versions give the same maps. ``python -m benchmarks.text_maps`` measures their effect.

Of the settings that were tried on ``benchmarks/data/openings_dev.txt``, shifts of the attention outputs (estimator
``mean``) kept the text most fluent for the same effect. The prompts of both sides must be about equally long: the first
token of a prompt, which attends to itself alone, otherwise has more weight on one side.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
STRENGTHS = (0.0, 1.0)


class TextMap(NamedTuple):
    """One shipped map.

    Attributes:
        name: name of the file, without ``text_``.
        prompt_set: the prompt set that it is fitted on.
        title, description: for its file.
        scale: factor by which the fitted transport is multiplied, chosen on ``benchmarks/data/openings_dev.txt`` so
            that the text stays fluent at strength 1.
    """

    name: str
    prompt_set: str
    title: str
    description: str
    scale: float

    @property
    def file(self) -> Path:
        return ROOT / "pretrained_maps" / f"text_{self.name}.safetensors"


TEXT_MAPS = (
    TextMap("cheerful", "neutral_to_cheerful", "Cheerful text", "Makes what the model writes cheerful.", 1.1),
    TextMap("gloomy", "neutral_to_gloomy", "Gloomy text", "Makes what the model writes gloomy.", 1.2),
    TextMap("baroque", "plain_to_baroque", "Baroque wording", "Makes the wording ornate.", 0.5),
    TextMap("plain", "baroque_to_plain", "Plain wording", "Makes the wording plain; repeats itself near 1.", 0.7),
    TextMap("nature", "neutral_to_nature", "Nature in text", "Brings in plants, animals and water.", 1.1),
    TextMap("night", "day_to_night", "Night in text", "Moves what is told to the night.", 1.5),
)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.fit_text_maps", description="Fit the shipped text maps.")
    parser.parse_args(arguments)
    # Imported late, so that the list of maps can be read without loading torch.
    from act_core import fit
    from act_core.models.transformers import TransformersModel
    from act_core.prompts import load_prompt_set

    from .shipped_maps import save_shipped

    model = TransformersModel.default()
    for text_map in TEXT_MAPS:
        prompts = load_prompt_set(ROOT / "prompt_sets" / f"{text_map.prompt_set}.txt")
        act_map = fit(model, prompts.source, prompts.target, estimator="mean")
        save_shipped(
            act_map.scaled(text_map.scale),
            text_map.file,
            title=text_map.title,
            description=text_map.description,
            usage_hint="ACT Steered Text with the default language model at strength 0 to 1.",
            tags="text",
            strength_range=STRENGTHS,
        )


if __name__ == "__main__":
    main()
