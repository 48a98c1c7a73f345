"""Pictures of what a map does: grids and animations of pictures, and a chart of the effect at each site."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from .maps import ActMap

_GAP = 6
_TEXT = 13
_LEFT = 132
FRAME_MILLISECONDS = 160
_WEBP_SIDE = 16383  # pixels, by the format


def grid(
    images: Sequence[Sequence[Image.Image]], rows: Sequence[str], columns: Sequence[str], *, zoom: int = 1
) -> Image.Image:
    """One picture of many, with a text before each row and above each column.

    Args:
        images: rows of pictures of one size.
        rows, columns: their texts; those that are too long are wrapped.
        zoom: how many pixels wide each pixel is shown.
    """
    width, height = (side * zoom for side in images[0][0].size)
    font = ImageFont.load_default(_TEXT)
    left = _LEFT if any(rows) else _GAP
    above = [textwrap.fill(text, max(4, 2 * width // _TEXT)) for text in columns]
    top = _GAP + max(text.count("\n") + 1 for text in above) * (_TEXT + 4)
    across, down = width + _GAP, height + _GAP
    sheet = Image.new("RGB", (left + across * len(columns), top + down * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    for number, text in enumerate(above):
        draw.multiline_text((left + across * number, _GAP // 2), text, "black", font)
    for number, (text, pictures) in enumerate(zip(rows, images, strict=True)):
        y = top + down * number
        lines = textwrap.wrap(text, 2 * _LEFT // _TEXT, max_lines=max(1, height // (_TEXT + 4)), placeholder=" ...")
        draw.multiline_text((_GAP, y), "\n".join(lines), "black", font)
        for column, picture in enumerate(pictures):
            shown = picture.resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(shown, (left + across * column, y))
    return sheet


def save_animation(
    images: Sequence[Sequence[Image.Image]], columns: Sequence[str], path: str | os.PathLike[str], *, zoom: int = 1
) -> None:
    """An animated WebP that goes through the columns and back: all rows side by side, the column's text above."""
    frames: list[Image.Image] = []
    across = min(len(images), max(1, (_WEBP_SIDE - _GAP) // (images[0][0].width * zoom + _GAP)))
    for number, text in enumerate(columns):
        shown = [row[number] for row in images]
        lines = [shown[at : at + across] for at in range(0, len(shown), across)]
        frames.append(grid(lines, [""] * len(lines), [text, *[""] * (across - 1)], zoom=zoom))
    frames = [*frames, *frames[-2:0:-1]]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=FRAME_MILLISECONDS, loop=0, quality=85)


def effect_chart(act_map: ActMap) -> Image.Image:
    """A bar for each site, in the order they run: the median shift of the mean, in deviations of the source."""
    effects = {site.key: transport.effect or 0.0 for site, transport in act_map.transports.items()}
    font = ImageFont.load_default(_TEXT)
    line, left, bar = _TEXT + 4, _GAP + int(max(font.getlength(key) for key in effects)), 320
    most = max(effects.values()) or 1.0
    chart = Image.new("RGB", (left + bar + 60, 2 * _GAP + line * len(effects)), "white")
    draw = ImageDraw.Draw(chart)
    for number, (key, effect) in enumerate(effects.items()):
        y = _GAP + line * number
        draw.text((_GAP, y), key, "black", font)
        end = left + 2 * _GAP + bar * effect / most
        draw.rectangle((left + 2 * _GAP, y + 3, end, y + line - 3), "steelblue")
        draw.text((end + 4, y), f"{effect:.2f}", "black", font)
    return chart
