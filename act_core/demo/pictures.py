"""The text-to-image part: the demo model is steered from plain captions to ink icons."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL.Image import Image

from ..errors import MapError
from ..maps import ActMap
from ..models.diffusers import DiffusersModel
from ..plots import effect_chart
from . import shipped
from .statistics import interval

PROMPT_SET = "plain_to_ink.txt"
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)
# Held-out subjects: not in the prompt set. The picture shows the first few, the table measures all of them.
SUBJECTS = (
    "cat",
    "rocket",
    "red apple",
    "castle",
    "octopus",
    "sunflower",
    "hamburger",
    "guitar",
    "umbrella",
    "snail",
    "alarm clock",
    "anchor",
    "penguin",
    "bell",
    "key",
    "crown",
)
SHOWN = 6
GUIDANCE = 3.0
# As good as 20 on the demo model, see `benchmarks.demo_model`.
STEPS = 8


@dataclass(frozen=True)
class Row:
    """The pictures of one strength.

    Attributes:
        strength: of the map.
        colour: mean saturation of their pixels, from 0 to 1; ink has none.
        interval: 95% bootstrap interval of `colour`, over the subjects.
    """

    strength: float
    colour: float
    interval: tuple[float, float]


def demo_model() -> DiffusersModel:
    """The tiny text-to-image model that ships.

    Raises:
        MapError: its folder is missing.
    """
    folder = shipped("demo_model")
    if not folder.is_dir():
        raise MapError("The demo model is not installed; run the demo in a checkout of the repository.")
    return DiffusersModel.from_pretrained(folder)


def measure(columns: Sequence[Sequence[Image]]) -> list[Row]:
    """One row for each strength.

    Args:
        columns: for each of `STRENGTHS`, the pictures of all subjects at that strength.
    """
    rows: list[Row] = []
    for strength, images in zip(STRENGTHS, columns, strict=True):
        colours = np.array([_saturation(image) for image in images])
        rows.append(Row(strength, float(colours.mean()), interval(colours)))
    return rows


def _saturation(image: Image) -> float:
    """Mean over the pixels of the difference between the largest and the smallest of red, green and blue."""
    values = np.asarray(image, dtype=np.float64) / 255
    return float((values.max(2) - values.min(2)).mean())


def write_page(folder: Path, title: str, rows: Sequence[Row], map_file: Path, act_map: ActMap) -> Path:
    """Write ``index.html``, which shows ``sweep.png`` and ``sweep.webp`` of the same folder, the numbers and the map.

    Args:
        folder: where the page goes.
        title: its heading.
        rows: what was measured.
        map_file: the map, in the same folder.
        act_map: the same map, loaded.

    Returns:
        The page.
    """
    effect_chart(act_map).save(folder / "map.png")
    prompts = f"{act_map.record.source_count} + {act_map.record.target_count}"
    lines = "\n".join(
        f"<tr><td>{row.strength:g}<td>{row.colour:.3f}<td>{row.interval[0]:.3f} to {row.interval[1]:.3f}"
        for row in rows
    )
    page = folder / "index.html"
    page.write_text(
        f"""<!doctype html>
<meta charset="utf-8">
<title>{html.escape(title)}</title>
<style>body {{ font: 16px sans-serif; margin: 2em auto; max-width: 70em }} td, th {{ padding: 0 1em }}</style>
<h1>{html.escape(title)}</h1>
<p>The same prompts from the same noise. Each column is a strength of the map.</p>
<img src="sweep.png" alt="pictures at increasing strength">
<p><img src="sweep.webp" alt="the same as an animation"></p>
<table>
<tr><th>strength<th>mean colour of {len(SUBJECTS)} pictures<th>95% interval
{lines}
</table>
<p>Colour is the mean saturation of the pixels; ink has none.</p>
<h2>The map</h2>
<p><a href="{html.escape(map_file.name)}">{html.escape(map_file.name)}</a>, {map_file.stat().st_size / 1e6:.2f} MB:
{len(act_map)} sites, fitted on {prompts} prompts. The bars show how far each site's mean activation is shifted, in
standard deviations of the source:</p>
<img src="map.png" alt="effect of each site">
""",
        encoding="utf-8",
    )
    return page
