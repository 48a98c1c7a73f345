"""Fits the text maps of ``pretrained_maps`` anew, for the default language model.

    python -m tools.fit_text_maps

The same prompts, settings and versions give the same maps. ``python -m benchmarks.text_maps`` measures what they do.

Of what was tried on ``benchmarks/data/openings_dev.txt``, shifts of the attention outputs (estimator ``mean``) kept
the text most fluent for what they moved. The prompts of both sides must be about equally long: the first token of a
prompt, which attends to itself alone, otherwise weighs more on one side.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from act_core import fit, save_map
from act_core.models.transformers import TransformersModel
from act_core.prompts import load_prompt_set

ROOT = Path(__file__).parents[1]
STRENGTHS = (0.0, 1.0)


class TextMap(NamedTuple):
    """One map that ships: where it is fitted from, and what its file says.

    `scale` is the part of the fitted transport that strength 1 of the file stands for: chosen on
    ``benchmarks/data/openings_dev.txt``, so that the text stays fluent there.
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
    TextMap("plain", "baroque_to_plain", "Plain wording", "Makes the wording plain.", 0.7),
    TextMap("nature", "neutral_to_nature", "Nature in text", "Brings in plants, animals and water.", 1.1),
    TextMap("night", "day_to_night", "Night in text", "Moves what is told to the night.", 1.5),
)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.fit_text_maps", description="Fit the text maps anew.")
    parser.parse_args(arguments)
    model = TransformersModel.default()
    for told in TEXT_MAPS:
        prompts = load_prompt_set(ROOT / "prompt_sets" / f"{told.prompt_set}.txt")
        act_map = fit(model, prompts.source, prompts.target, estimator="mean")
        save_map(
            act_map.scaled(told.scale),
            told.file,
            title=told.title,
            author="ACT Steering",
            description=told.description,
            license="CC0-1.0",
            strength_range=STRENGTHS,
        )
        print(f"{told.file.name}: {len(act_map)} sites, {told.file.stat().st_size / 1e6:.2f} MB", flush=True)


if __name__ == "__main__":
    main()
