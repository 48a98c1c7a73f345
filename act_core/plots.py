"""Pictures of what a map does: sheets of labelled pictures, animations, and the effect at each site."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from PIL import Image, ImageDraw

from .calibration import Calibration
from .files import write_whole
from .fonts import draw_text, line_height, text_width, wrapped
from .maps import ActMap
from .text import shorten

_GAP = 6
_TEXT = 13
_LEFT = 132
FRAME_MILLISECONDS = 160
_WEBP_SIDE = 16383  # pixels, by the format
# Above what maps of today's models have; a file of a stranger may name thousands of sites, of 500 characters each.
MAX_ROWS = 400
MAX_LABEL = 60


def grid(
    images: Sequence[Sequence[Image.Image]], rows: Sequence[str], columns: Sequence[str], *, zoom: int = 1
) -> Image.Image:
    """Arrange pictures in a grid, with a label for each row and column.

    Args:
        images: rows of pictures of one size.
        rows, columns: their labels, in any script; long ones are wrapped.
        zoom: how many pixels wide each pixel is shown.

    Example:
        >>> tile = Image.new("RGB", (40, 40))
        >>> grid([[tile, tile]], ["a cat"], ["0", "1"]).size
        (224, 69)
    """
    width, height = (side * zoom for side in images[0][0].size)
    left = _LEFT if any(rows) else _GAP
    above = [wrapped(text, width, _TEXT) for text in columns]
    top = _GAP + max(text.count("\n") + 1 for text in above) * line_height(_TEXT)
    across, down = width + _GAP, height + _GAP
    sheet = Image.new("RGB", (left + across * len(columns), top + down * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    for number, text in enumerate(above):
        draw_text(draw, (left + across * number, _GAP // 2), text, _TEXT)
    for number, (text, pictures) in enumerate(zip(rows, images, strict=True)):
        y = top + down * number
        most = max(1, height // line_height(_TEXT))
        draw_text(draw, (_GAP, y), wrapped(text, _LEFT - 2 * _GAP, _TEXT, most), _TEXT)
        for column, picture in enumerate(pictures):
            shown = picture.resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(shown, (left + across * column, y))
    return sheet


def save_chart(chart: Image.Image, path: Path) -> None:
    """Write a chart as PNG; if that fails, an existing file stays as it was.

    Raises:
        OSError: the folder cannot be written, or the disk is full.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_chart(Image.new("RGB", (4, 3)), Path(folder, "chart.png"))
        ...     [file.name for file in Path(folder).iterdir()]
        ['chart.png']
    """
    data = io.BytesIO()
    chart.save(data, "PNG")
    write_whole(path, data.getvalue())


def save_animation(
    images: Sequence[Sequence[Image.Image]],
    columns: Sequence[str],
    file: str | os.PathLike[str] | BinaryIO,
    *,
    zoom: int = 1,
) -> None:
    """An animated WebP that goes through the columns and back: all rows side by side, with the column's label above.

    Args:
        images: rows of pictures of one size.
        columns: their labels.
        file: a path, or an open binary file.
        zoom: how many pixels wide each pixel is shown.

    Example:
        >>> import io
        >>> tiles = [Image.new("RGB", (40, 40), colour) for colour in ("red", "green")]
        >>> save_animation([tiles], ["0", "1"], file := io.BytesIO())
        >>> Image.open(file).n_frames
        2
    """
    frames: list[Image.Image] = []
    across = min(len(images), max(1, (_WEBP_SIDE - _GAP) // (images[0][0].width * zoom + _GAP)))
    for number, text in enumerate(columns):
        shown = [row[number] for row in images]
        lines = [shown[at : at + across] for at in range(0, len(shown), across)]
        frames.append(grid(lines, [""] * len(lines), [text, *[""] * (across - 1)], zoom=zoom))
    frames = [*frames, *frames[-2:0:-1]]
    frames[0].save(
        file, "WEBP", save_all=True, append_images=frames[1:], duration=FRAME_MILLISECONDS, loop=0, quality=85
    )


def row_labels(names: Sequence[str]) -> tuple[list[str], str]:
    """Labels for the rows of a chart: shortened names, at most `MAX_ROWS`, and a note on how many are left out.

    Example:
        >>> row_labels(["layer.0", "layer.1"])
        (['layer.0', 'layer.1'], '')
    """
    left_out = max(0, len(names) - MAX_ROWS)
    note = f"{left_out} more are not shown" if left_out else ""
    return [shorten(name, MAX_LABEL) for name in names[:MAX_ROWS]], note


def effect_chart(act_map: ActMap) -> Image.Image:
    """A bar for each site in execution order: the median shift of the mean, in standard deviations of the source.

    Example:
        >>> site = Site("toy", "layer", None, "tokens", 2)
        >>> effect_chart(ActMap({site: Transport(torch.ones(2), torch.ones(2), effect=0.5)})).height
        29
    """
    effects = [transport.effect or 0.0 for transport in act_map.transports.values()]
    labels, note = row_labels([site.key for site in act_map.transports])
    line, left, bar = line_height(_TEXT), _GAP + int(max(text_width(label, _TEXT) for label in labels)), 320
    most = max(effects) or 1.0
    rows = len(labels) + bool(note)
    chart = Image.new("RGB", (left + bar + 60, 2 * _GAP + line * rows), "white")
    draw = ImageDraw.Draw(chart)
    draw_text(draw, (_GAP, _GAP + line * len(labels)), note, _TEXT)
    for number, (label, effect) in enumerate(zip(labels, effects, strict=False)):
        y = _GAP + line * number
        draw_text(draw, (_GAP, y), label, _TEXT)
        end = left + 2 * _GAP + bar * effect / most
        draw.rectangle((left + 2 * _GAP, y + 3, end, y + line - 3), "steelblue")
        draw_text(draw, (end + 4, y), f"{effect:.2f}", _TEXT)
    return chart


def calibration_chart(calibration: Calibration) -> Image.Image:
    """The measured curves over the strength: effect and content kept, with the recommended range and its even steps.

    Example:
        >>> found = Calibration((-1.0, 0.0, 1.0), (0.1, 0.0, 1.0), (0.9, 1.0, 0.7), (0.0, 1.0), negative="none")
        >>> calibration_chart(found).size
        (480, 320)
    """
    width, height, edge, line = 480, 320, 34, line_height(_TEXT)
    curves = {"effect": (calibration.effects, "firebrick"), "content kept": (calibration.kept, "steelblue")}
    values = [value for curve, _ in curves.values() for value in curve]
    left, right = calibration.strengths[0], calibration.strengths[-1]
    bottom, top = min(0.0, *values), max(1.0, *values)

    def place(strength: float, value: float) -> tuple[float, float]:
        x = edge + (width - 2 * edge) * (strength - left) / ((right - left) or 1.0)
        return x, height - edge - (height - 3 * edge) * (value - bottom) / (top - bottom)

    chart = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(chart)
    low, high = calibration.range
    draw.rectangle((place(low, top), place(high, bottom)), "honeydew")
    for knot in (*calibration.down, *calibration.up):  # even steps
        draw.line((place(knot, bottom), place(knot, bottom + 0.04 * (top - bottom))), "seagreen")
    draw.line((place(left, 0.0), place(right, 0.0)), "silver")
    for strength in calibration.strengths[::2]:
        draw_text(draw, (place(strength, bottom)[0] - 10, height - edge + 4), f"{strength:g}", _TEXT)
    for number, (name, (curve, colour)) in enumerate(curves.items()):
        draw.line([place(*point) for point in zip(calibration.strengths, curve, strict=True)], colour, 2)
        draw.line((edge, 10 + line * number + line / 2, edge + 20, 10 + line * number + line / 2), colour, 2)
        draw_text(draw, (edge + 26, 10 + line * number), name, _TEXT)
    draw_text(draw, (edge + 140, 10), f"recommended: {low:.2f} to {high:.2f}", _TEXT)
    return chart
