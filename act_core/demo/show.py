"""What ``act-steering demo`` does and prints."""

from __future__ import annotations

import shlex
import textwrap
from pathlib import Path

from ..mapfile import load_map, save_map
from ..maps import ActMap
from ..models.diffusers import DiffusersModel
from ..models.sweep import sweep
from ..models.transformers import TransformersModel
from ..plots import grid, save_animation
from ..progress import bar, fit_with_bar
from ..prompts import PromptSet, load_prompt_set
from . import language, pictures, shipped


def show_pictures(model: DiffusersModel, output: Path, command: str) -> None:
    """Fit a map on the demo model, draw a sweep, and write the page.

    Args:
        model: the demo model.
        output: an existing folder for the map, the pictures and the page.
        command: what to type to run ``act-steering``.
    """
    prompts = load_prompt_set(shipped("prompt_sets") / pictures.PROMPT_SET)
    act_map = fit_with_bar(model, prompts)
    path = save_map(
        act_map,
        output / "plain_to_ink.safetensors",
        title="Plain to ink",
        description="Turns what the demo model draws into black ink icons.",
        license="CC0-1.0",
        strength_range=(0.0, 1.0),
    )
    _print_fitted(path, act_map, prompts)
    titles = [f"{strength:g}" for strength in pictures.STRENGTHS]
    with bar(f"Drawing {len(pictures.SUBJECTS)} subjects at each strength", len(titles)) as drawing:
        drawn = sweep(
            model,
            load_map(path),
            pictures.SUBJECTS,
            pictures.STRENGTHS,
            guidance=pictures.GUIDANCE,
            steps=pictures.STEPS,
            step=drawing.update,
        )
    rows = pictures.measure(list(zip(*drawn, strict=True)))
    shown = drawn[: pictures.SHOWN]
    grid(shown, pictures.SUBJECTS[: pictures.SHOWN], titles, zoom=2).save(output / "sweep.png")
    save_animation(shown, titles, output / "sweep.webp", zoom=2)
    page = pictures.write_page(output, "Plain to ink", rows, path, act_map)
    print("\nstrength   colour (saturation, 95% interval)")
    for row in rows:
        low, high = row.interval
        print(f"{row.strength:8.2f}   {row.colour:.3f}  [{low:.3f}, {high:.3f}]")
    print(f"\nThe pictures are in {page}.")
    folder = shipped("demo_model")
    if folder.is_relative_to(Path.cwd()):
        folder = folder.relative_to(Path.cwd())
    drawing_again = ("sweep", "--model", str(folder), "--map", str(path), "--out", "snail.png")
    _print_next(command, (*drawing_again, "snail", "glowing star"), ("inspect", str(path)))


def show_language(model: TransformersModel, output: Path, command: str) -> None:
    """Fit a map on the language model, and let it continue openings.

    Args:
        model: the small default language model.
        output: an existing folder for the map.
        command: what to type to run ``act-steering``.
    """
    prompts = load_prompt_set(shipped("prompt_sets") / language.PROMPT_SET)
    act_map = fit_with_bar(model, prompts)
    path = save_map(
        act_map,
        output / "gloomy_to_cheerful.safetensors",
        title="Gloomy to cheerful",
        description="Makes continued sentences more cheerful; negative strengths make them gloomier.",
        license="CC0-1.0",
        strength_range=(-1.0, 1.0),
    )
    _print_fitted(path, act_map, prompts)
    with bar(f"Continuing {language.CONTINUATIONS} openings at each strength", len(language.STRENGTHS)) as writing:
        rows = language.measure(model, load_map(path), language.STRENGTHS, writing.update)
    print("\nstrength   mood (VADER, 95% interval)   perplexity of prose   one of the continuations")
    for row in rows:
        low, high = row.interval
        sample = textwrap.shorten(row.sample, 88)
        print(
            f"{row.strength:8.2f}   {row.mood:+.2f}  [{low:+.2f}, {high:+.2f}]   {row.perplexity:19.1f}      {sample}"
        )
    print(f"\nThe map is {path}.")
    generating = ("generate", "--map", str(path), "--strength", "-1", "--strength", "1")
    _print_next(
        command,
        (*generating, "The letter from my aunt said"),
        ("inspect", str(path)),
        ("fit", "--source", "calm.txt", "--target", "wild.txt", "--out", "wild.safetensors"),
    )
    print("For the last command, write the two text files yourself, one sentence per line.")


def _print_fitted(path: Path, act_map: ActMap, prompts: PromptSet) -> None:
    print(
        f"Fitted {len(act_map)} sites on {len(prompts.source)} + {len(prompts.target)} prompts; saved "
        f"{path} ({path.stat().st_size / 1e6:.2f} MB) and loaded it again."
    )


def _print_next(command: str, *commands: tuple[str, ...]) -> None:
    """Print commands to try next, quoted for a shell."""
    print("What to try next:")
    for arguments in commands:
        print(f"  {command} {shlex.join(arguments)}")
