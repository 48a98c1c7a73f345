"""A removal: hearts go, and pictures of other things stay as they are."""

from __future__ import annotations

from pathlib import Path

from ..models.diffusers import DiffusersModel
from ..plots import grid
from ..progress import bar, fit_with_bar
from ..prompts import load_prompt_set
from . import shipped
from .chapter import Chapter, saved
from .pictures import change, drawn
from .statistics import Measured

TITLE = "A removal"
PROMPT_SET = "heart_to_other.txt"
# Held-out prompts with the thing, and without.
WITH = ("red heart", "green heart", "purple heart", "yellow heart", "beating heart", "heart with arrow")
WITHOUT = ("cat", "rocket", "red apple", "castle", "octopus", "sunflower")
STRENGTH = 1.5


def show(model: DiffusersModel, output: Path) -> Chapter:
    """Fit the map, and draw prompts with and without the thing."""
    prompts = load_prompt_set(shipped("prompt_sets") / PROMPT_SET)
    path = output / "no_hearts.safetensors"
    description = "Draws something else where a prompt asks for a heart; other prompts stay as they are."
    act_map = fit_with_bar(model, prompts, estimator="project", support="gated")
    act_map = saved(act_map, path, "No hearts", description, (0.0, STRENGTH))
    with bar(f"Drawing {len(WITH) + len(WITHOUT)} subjects with and without the map", 2) as drawing:
        images = drawn(model, act_map, (*WITH, *WITHOUT), (0.0, STRENGTH), drawing.update)
    rows: list[tuple[str, str]] = []
    for name, file, subjects, half in (
        ("a heart", "hearts.png", WITH, images[: len(WITH)]),
        ("other things", "others.png", WITHOUT, images[len(WITH) :]),
    ):
        grid(half, subjects, ["without", "with the map"], zoom=2).save(output / file)
        rows.append((name, f"{Measured.of([change(after, before) for before, after in half]):.3f}"))
    return Chapter(
        title=TITLE,
        story=(
            f"Given: {len(prompts.source)} prompts with a heart, and {len(prompts.target)} without. The map removes "
            "what only the first have, and its gates open only for prompts like those."
        ),
        map_file=path,
        columns=("prompts with", "change of the picture"),
        rows=rows,
        reading=(
            f"Mean difference of the pixels of {len(WITH)} pictures each, with a 95% interval, at strength "
            f"{STRENGTH:g}. 'python -m benchmarks.removal' measures whether the thing is still recognised."
        ),
        pictures=(("hearts.png", "prompts with a heart"), ("others.png", "prompts with other things")),
    )
