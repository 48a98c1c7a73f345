"""A removal: hearts go, and pictures of other things stay as they are."""

from __future__ import annotations

from pathlib import Path

from ..mapfile import load_map, save_map
from ..models.diffusers import DiffusersModel
from ..plots import grid
from ..progress import bar, fit_with_bar
from ..prompts import load_prompt_set
from . import shipped
from .chapter import Chapter
from .pictures import Measured, change, drawn

TITLE = "A removal"
PROMPT_SET = "heart_to_other.txt"
# Held-out prompts with the thing, and without.
WITH = ("red heart", "green heart", "purple heart", "yellow heart", "beating heart", "heart with arrow")
WITHOUT = ("cat", "rocket", "red apple", "castle", "octopus", "sunflower")
STRENGTH = 1.5


def show(model: DiffusersModel, output: Path) -> Chapter:
    """Fit the map, and draw prompts with and without the thing."""
    prompts = load_prompt_set(shipped("prompt_sets") / PROMPT_SET)
    path = save_map(
        fit_with_bar(model, prompts, estimator="project", support="gated"),
        output / "no_hearts.safetensors",
        title="No hearts",
        description="Draws something else where a prompt asks for a heart; other prompts stay as they are.",
        license="CC0-1.0",
        strength_range=(0.0, STRENGTH),
    )
    act_map = load_map(path)
    strengths = (0.0, STRENGTH)
    with bar(f"Drawing {len(WITH) + len(WITHOUT)} subjects with and without the map", len(strengths)) as drawing:
        images = drawn(model, act_map, (*WITH, *WITHOUT), strengths, step=drawing.update)
    titles = ["without", "with the map"]
    halves = images[: len(WITH)], images[len(WITH) :]
    for name, subjects, half in (("hearts.png", WITH, halves[0]), ("others.png", WITHOUT, halves[1])):
        grid(half, subjects, titles, zoom=2).save(output / name)
    rows = [
        [name, str(Measured.of([change(after, before) for before, after in half]))]
        for name, half in zip(("a heart", "other things"), halves, strict=True)
    ]
    return Chapter(
        title=TITLE,
        story=(
            f"Given: {len(prompts.source)} prompts with a heart, and {len(prompts.target)} without. The map removes "
            "what only the first have, and its gates open only for prompts like those."
        ),
        map_file=path,
        act_map=act_map,
        columns=("prompts with", "change of the picture"),
        rows=rows,
        reading=(
            f"Mean difference of the pixels of {len(WITH)} pictures each, with a 95% interval, at strength "
            f"{STRENGTH:g}. 'python -m benchmarks.removal' measures whether the thing is still recognised."
        ),
        pictures=(("hearts.png", "prompts with a heart"), ("others.png", "prompts with other things")),
    )
