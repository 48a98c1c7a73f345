"""Writes ``docs/icon.png`` and ``docs/banner.jpg``, which the Comfy registry shows.

    python -m tools.make_registry_pictures

The demo model draws subjects between its plain style and ink, above the slider that would do so.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from act_core import load_map
from act_core.demo.pictures import GUIDANCE, STEPS, demo_model
from act_core.models.sweep import sweep

from .results import ROOT

ICON, BANNER = ROOT / "docs" / "icon.png", ROOT / "docs" / "banner.jpg"
SIDE = 400  # the largest that the registry takes
WIDTH, HEIGHT = 1260, 540  # 21:9
SUBJECT = "rocket"
BANNER_SUBJECTS = "sunflower", "rocket"
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
PAPER, INK, GREY, ORANGE = (255, 255, 255), (24, 24, 27), (128, 128, 128), (245, 140, 40)
# The larger picture that is drawn before it is scaled down, so that edges are smooth.
OVERSAMPLED = 4


def main(arguments: list[str] | None = None) -> int:
    argparse.ArgumentParser(prog="python -m tools.make_registry_pictures", description=__doc__).parse_args(arguments)
    act_map = load_map(ROOT / "pretrained_maps" / "plain_to_ink.safetensors")
    subjects = list(BANNER_SUBJECTS)
    drawn = sweep(demo_model(), act_map, subjects, STRENGTHS, guidance=GUIDANCE, steps=STEPS)
    rows = dict(zip(subjects, drawn, strict=True))
    icon(rows[SUBJECT][0], rows[SUBJECT][-1]).save(ICON, optimize=True)
    banner([rows[subject] for subject in subjects]).save(BANNER, quality=88, optimize=True)
    for path in (ICON, BANNER):
        print(f"wrote {path.relative_to(ROOT)}")
    return 0


def icon(plain: Image.Image, inked: Image.Image) -> Image.Image:
    """One subject, plain on the left and inked on the right, above a slider."""
    side = SIDE * OVERSAMPLED
    picture = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    ImageDraw.Draw(picture).rounded_rectangle((0, 0, side - 1, side - 1), side // 6, fill=PAPER)
    inner = round(side * 0.74)
    left, top = (side - inner) // 2, round(side * 0.05)
    half = inner // 2
    picture.paste(_scaled(plain, inner).crop((0, 0, half, inner)), (left, top))
    picture.paste(_scaled(inked, inner).crop((half, 0, inner, inner)), (left + half, top))
    _slider(picture, (left, round(side * 0.88)), inner, thickness=side // 22, at=0.5)
    return picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def banner(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Subjects at rising strength, a row for each, beside the name of the pack."""
    picture = Image.new("RGB", (WIDTH * 2, HEIGHT * 2), PAPER)
    size = 300
    left, top = WIDTH * 2 - len(rows[0]) * size - 60, 110
    for number, row in enumerate(rows):
        for column, drawing in enumerate(row):
            picture.paste(_scaled(drawing, size - 24), (left + size * column, top + number * (size + 60)))
    _slider(picture, (left, 880), len(rows[0]) * size - 24, thickness=44, at=0.5)
    draw = ImageDraw.Draw(picture)
    for line, (text, height) in enumerate((("ACT", 220), ("Steering", 150))):
        draw.text((90, 190 + 240 * line), text, fill=INK, font=ImageFont.load_default(height))
    words = "style sliders from\ntwo lists of prompts"
    draw.multiline_text((95, 660), words, fill=GREY, font=ImageFont.load_default(62), spacing=18)
    return picture.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)


def _scaled(drawing: Image.Image, side: int) -> Image.Image:
    return drawing.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)


def _slider(picture: Image.Image, corner: tuple[int, int], length: int, thickness: int, at: float) -> None:
    """A track from grey to orange with a knob, in the colours of the strengths on the nodes."""
    left, top = corner
    shades = Image.new("RGB", (256, 1))
    for x in range(256):
        shades.putpixel((x, 0), tuple(round(a + (b - a) * x / 255) for a, b in zip(GREY, ORANGE, strict=True)))
    mask = Image.new("L", (length, thickness), 0)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, length - 1, thickness - 1), thickness // 2, fill=255)
    picture.paste(shades.resize((length, thickness)), corner, mask)
    x, y, radius = left + round(at * length), top + thickness // 2, thickness
    draw = ImageDraw.Draw(picture)
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=PAPER, outline=INK, width=thickness // 4)


if __name__ == "__main__":
    raise SystemExit(main())
