"""A slider from two lists of prompts: from what the demo model draws by itself to black ink."""

from __future__ import annotations

from pathlib import Path

from ..mapfile import load_map, save_map
from ..models.diffusers import DiffusersModel
from ..plots import effect_chart, grid, save_animation
from ..progress import bar, fit_with_bar
from ..prompts import load_prompt_set
from . import shipped
from .chapter import Chapter
from .pictures import SHOWN, SUBJECTS, Measured, drawn, saturation
from .statistics import permuted

TITLE = "A slider from two lists of prompts"
PROMPT_SET = "plain_to_ink.txt"
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)


def show(model: DiffusersModel, output: Path) -> Chapter:
    """Fit the map, and draw held-out subjects at increasing strength."""
    prompts = load_prompt_set(shipped("prompt_sets") / PROMPT_SET)
    path = save_map(
        fit_with_bar(model, prompts),
        output / "plain_to_ink.safetensors",
        title="Plain to ink",
        description="Turns what the demo model draws into black ink icons.",
        license="CC0-1.0",
        strength_range=(0.0, 1.0),
    )
    act_map = load_map(path)
    with bar(f"Drawing {len(SUBJECTS)} subjects at each strength", len(STRENGTHS) + 1) as drawing:
        images = drawn(model, act_map, SUBJECTS, STRENGTHS, step=drawing.update)
        control = drawn(model, permuted(act_map), SUBJECTS, (1.0,), step=drawing.update)
    titles = [f"{strength:g}" for strength in STRENGTHS]
    shown = images[:SHOWN]
    grid(shown, SUBJECTS[:SHOWN], titles, zoom=2).save(output / "sweep.png")
    save_animation(shown, titles, output / "sweep.webp", zoom=2)
    effect_chart(act_map).save(output / "map.png")
    columns = [*zip(titles, zip(*images, strict=True), strict=True)]
    columns.append(("1, channels shuffled", tuple(row[0] for row in control)))
    folder = shipped("demo_model")
    if folder.is_relative_to(Path.cwd()):
        folder = folder.relative_to(Path.cwd())
    sweep = ("sweep", "--model", str(folder), "--map", str(path), "--out", "snail.png", "snail", "glowing star")
    return Chapter(
        title=TITLE,
        story=(
            f"Given: {len(prompts.source)} prompts such as '{prompts.source[0]}', and {len(prompts.target)} such as "
            f"'{prompts.target[0]}'. One forward pass fits the map. Strength 0 is the unchanged model, and 1 the full "
            "effect."
        ),
        map_file=path,
        act_map=act_map,
        columns=("strength", "colour"),
        rows=[[name, str(Measured.of([saturation(image) for image in own]))] for name, own in columns],
        reading=(
            f"Mean saturation of {len(SUBJECTS)} pictures with a 95% interval; ink has none. The last row is a "
            "control: the same map with its channels shuffled."
        ),
        pictures=(
            ("sweep.png", "held-out subjects at increasing strength"),
            ("sweep.webp", "the same as an animation"),
            ("map.png", "how far the map shifts each site, in standard deviations of the source"),
        ),
        commands=(sweep, ("inspect", str(path))),
    )
