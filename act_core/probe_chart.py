"""Pictures of what `act_core.probe` measures."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw
from torch import Tensor

from .fonts import draw_text, line_height, text_width

_GAP = 6
_TEXT = 13
_CELL = 38  # pixels; fits a number
_NOTHING, _MOST = (255, 255, 255), (240, 110, 30)


def heat_map(title: str, values: Tensor, rows: Sequence[str], columns: Sequence[str]) -> Image.Image:
    """A table of numbers, coloured from white for 0 to orange for the largest.

    Args:
        title: above it.
        values: ``[rows, columns]``; NaN leaves a cell empty, and what is infinite is coloured as the largest.
        rows, columns: their labels, in any script.

    Example:
        >>> import torch
        >>> heat_map("steps", torch.tensor([[0.0, 1.0]]), ["site"], ["1", "2"]).height
        63
    """
    line = line_height(_TEXT)
    left = 2 * _GAP + int(max(text_width(text, _TEXT) for text in rows))
    widths = [max(_CELL, int(text_width(text, _TEXT)) + _GAP) for text in columns]
    edges = [left + sum(widths[:number]) for number in range(len(widths) + 1)]
    width = max(edges[-1], int(text_width(title, _TEXT)) + _GAP) + _GAP
    chart = Image.new("RGB", (width, 2 * _GAP + line * (len(rows) + 2)), "white")
    draw = ImageDraw.Draw(chart)
    draw_text(draw, (_GAP, _GAP), title, _TEXT)
    for edge, text in zip(edges, columns, strict=False):
        draw_text(draw, (edge + 3, _GAP + line), text, _TEXT)
    most = _largest(values)
    for number, text in enumerate(rows):
        y = _GAP + line * (number + 2)
        draw_text(draw, (_GAP, y), text, _TEXT)
        for column, edge in enumerate(edges[:-1]):
            value = float(values[number, column])
            if math.isnan(value):
                continue
            draw.rectangle((edge, y, edges[column + 1] - 1, y + line - 1), _colour(value / most))
            draw_text(draw, (edge + 3, y), f"{value:.2f}", _TEXT)
    return chart


def position_map(title: str, values: Tensor, width: int = 256) -> Image.Image:
    """A picture of ``[height, width]`` values, coloured as in `heat_map`.

    Args:
        title: above it.
        values: of the positions; NaN is white.
        width: of the picture, in pixels.

    Example:
        >>> import torch
        >>> position_map("where", torch.eye(2), 64).size
        (76, 93)
    """
    top = _GAP + line_height(_TEXT)
    height = max(1, round(width * values.shape[0] / values.shape[1]))
    most = _largest(values)
    picture = Image.new("RGB", (values.shape[1], values.shape[0]))
    picture.putdata([_colour(float(value) / most) for value in values.flatten()])
    across = max(width, int(text_width(title, _TEXT)))
    sheet = Image.new("RGB", (across + 2 * _GAP, top + height + _GAP), "white")
    draw_text(ImageDraw.Draw(sheet), (_GAP, _GAP // 2), title, _TEXT)
    sheet.paste(picture.resize((width, height), Image.Resampling.NEAREST), (_GAP, top))
    return sheet


def one_below_the_other(pictures: Sequence[Image.Image]) -> Image.Image:
    """One picture of several, from top to bottom.

    Example:
        >>> one_below_the_other([Image.new("RGB", (8, 4)), Image.new("RGB", (6, 4))]).size
        (8, 8)
    """
    sheet = Image.new("RGB", (max(p.width for p in pictures), sum(p.height for p in pictures)), "white")
    top = 0
    for picture in pictures:
        sheet.paste(picture, (0, top))
        top += picture.height
    return sheet


def _largest(values: Tensor) -> float:
    """The largest finite value; 1 if all are 0 or none is finite."""
    return float(values.nan_to_num(0.0, posinf=0.0).max()) or 1.0


def _colour(share: float) -> tuple[int, int, int]:
    """From white for 0 or NaN to orange for 1 or more."""
    share = min(1.0, max(0.0, share))
    red, green, blue = (
        round(nothing + share * (most - nothing)) for nothing, most in zip(_NOTHING, _MOST, strict=True)
    )
    return red, green, blue
