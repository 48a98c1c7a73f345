"""A slider from two lists of prompts: from what the demo model draws by itself to black ink."""

from __future__ import annotations

from pathlib import Path

from ..models.diffusers import DiffusersModel
from ..plots import effect_chart, save_animation
from ..progress import fit_with_bar
from ..prompts import load_prompt_set
from . import shipped
from .chapter import Chapter, saved
from .pictures import SUBJECTS, Sweep, saturation

TITLE = "A slider from two lists of prompts"
PROMPT_SET = "plain_to_ink.txt"
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)


def show(model: DiffusersModel, output: Path) -> Chapter:
    """Fit the map, and draw held-out subjects at increasing strength."""
    prompts = load_prompt_set(shipped("prompt_sets") / PROMPT_SET)
    path = output / "plain_to_ink.safetensors"
    description = "Turns what the demo model draws into black ink icons."
    act_map = saved(fit_with_bar(model, prompts), path, "Plain to ink", description, (0.0, 1.0))
    effect_chart(act_map).save(output / "map.png")
    sweep = Sweep.drawn(model, act_map, SUBJECTS, STRENGTHS, "subjects")
    sweep.save_sheet(output / "sweep.png")
    save_animation(sweep.shown, sweep.titles, output / "sweep.webp", zoom=2)
    folder = shipped("demo_model")
    if folder.is_relative_to(Path.cwd()):
        folder = folder.relative_to(Path.cwd())
    sweeping = ("sweep", "--model", str(folder), "--map", str(path), "--out", "snail.png", "snail", "glowing star")
    return Chapter(
        title=TITLE,
        story=(
            f"Given: {len(prompts.source)} prompts such as '{prompts.source[0]}', and {len(prompts.target)} such as "
            f"'{prompts.target[0]}'. One forward pass fits the map. Strength 0 is the unchanged model, and 1 the full "
            "effect."
        ),
        map_file=path,
        columns=("strength", "colour"),
        rows=sweep.measured(saturation),
        reading=(
            f"Mean saturation of {len(SUBJECTS)} pictures with a 95% interval; ink has none. The last row is a "
            "control: the same map with its channels shuffled."
        ),
        pictures=(
            ("sweep.png", "held-out subjects at increasing strength"),
            ("sweep.webp", "the same as an animation"),
            ("map.png", "how far the map shifts each site, in standard deviations of the source"),
        ),
        commands=(sweeping, ("inspect", str(path))),
    )
