"""Pictures of maps: where one acts, by depth and kind of part, and how two differ at each site."""

from __future__ import annotations

from typing import get_args

import torch
from PIL import Image, ImageDraw

from .architectures.kinds import Kind, kind_of
from .comparison import MapComparison, SiteComparison, squared_displacements
from .fonts import draw_text, line_height, text_width
from .maps import ActMap
from .plots import row_labels
from .probe_chart import heat_map
from .selection import block_of

_GAP = 6
_TEXT = 13
_BAR = 200  # pixels of the longest bar
_CELL = 52
_FIRST, _SECOND = "steelblue", "firebrick"
_SAME, _OPPOSITE = (70, 160, 90), (200, 70, 70)


def depth_chart(act_map: ActMap) -> Image.Image:
    """How far a map moves each kind of part in each block, in execution order.

    A cell is the root mean square displacement over the channels, see `act_core.comparison.squared_displacements`, and
    of several sites their mean.

    Example:
        >>> site = Site("toy", "layers.0.mlp", None, "tokens", 2)
        >>> depth_chart(ActMap({site: Transport(torch.ones(2), torch.ones(2), effect=0.5)})).height
        63
    """
    squares, unit = squared_displacements(act_map)
    cells: dict[tuple[str, Kind], list[float]] = {}
    for site, values in squares.items():
        base = act_map.record.base.get(site.component)
        row = f"{site.component}/{block_of(site.name)}"
        cells.setdefault((row, kind_of(site, base.architecture if base else "")), []).append(
            float(values.mean()) ** 0.5
        )
    rows = list(dict.fromkeys(row for row, _ in cells))
    numbers = {row: number for number, row in enumerate(rows)}
    kinds = [kind for kind in get_args(Kind) if any(kind == own for _, own in cells)]
    table = torch.full((len(rows), len(kinds)), torch.nan, dtype=torch.float64)
    for (row, kind), sizes in cells.items():
        table[numbers[row], kinds.index(kind)] = sum(sizes) / len(sizes)
    labels, note = row_labels(rows)
    title = f"displacement by depth and kind, {unit}{note and f'; {note}'}"
    return heat_map(title, table[: len(labels)], labels, kinds)


def comparison_chart(comparison: MapComparison) -> Image.Image:
    """A row for each site that two maps share: the cosine of their displacements, and a bar for the size of each.

    Green is the same direction, red the opposite one, and white a right angle.

    Example:
        >>> shared = SiteComparison(Site("toy", "layer", None, "tokens", 2), 0.5, 1.0, 2.0, "")
        >>> comparison_chart(MapComparison(("ink", "night"), (shared,), (), (), ())).height > 50
        True
    """
    line, shared = line_height(_TEXT), comparison.shared
    labels, note = row_labels([one.site.key for one in shared] or ["no site in both maps"])
    left = 2 * _GAP + int(max(text_width(label, _TEXT) for label in labels))
    names = [f"{letter}: {name}" for letter, name in zip("AB", comparison.names, strict=True)]
    width = max(left + _CELL + _BAR + 2 * _GAP + 60, _GAP + 30 + int(max(text_width(name, _TEXT) for name in names)))
    top = _GAP + 3 * line
    chart = Image.new("RGB", (width, top + line * (len(labels) + bool(note)) + _GAP), "white")
    draw = ImageDraw.Draw(chart)
    for number, (name, colour) in enumerate(zip(names, (_FIRST, _SECOND), strict=True)):
        y = _GAP + line * number
        draw.rectangle((_GAP, y + 3, _GAP + 12, y + line - 5), colour)
        draw_text(draw, (_GAP + 20, y), name, _TEXT)
    draw_text(draw, (left, _GAP + 2 * line), "cosine", _TEXT)
    draw_text(draw, (left + _CELL + _GAP, _GAP + 2 * line), "size", _TEXT)
    for number, label in enumerate([*labels, note]):
        draw_text(draw, (_GAP, top + line * number), label, _TEXT)
    # Maps with and without statistics have sizes in different units.
    most: dict[str, float] = {}
    for one in shared:
        most[one.unit] = max(most.get(one.unit, 0.0), one.first, one.second)
    for number, one in enumerate(shared[: len(labels)]):
        _draw_row(draw, left, top + line * number, one, _BAR / (most[one.unit] or 1.0))
    return chart


def _draw_row(draw: ImageDraw.ImageDraw, left: int, y: int, one: SiteComparison, scale: float) -> None:
    line = line_height(_TEXT)
    known = one.cosine == one.cosine
    colour = _SAME if one.cosine > 0 else _OPPOSITE
    share = abs(one.cosine) if known else 0.0
    red, green, blue = (round(255 + share * (channel - 255)) for channel in colour)
    draw.rectangle((left, y, left + _CELL - 1, y + line - 1), (red, green, blue))
    draw_text(draw, (left + 3, y), f"{one.cosine:.2f}" if known else "-", _TEXT)
    start, middle = left + _CELL + _GAP, y + line // 2
    draw.rectangle((start, y + 2, start + one.first * scale, middle - 1), _FIRST)
    draw.rectangle((start, middle, start + one.second * scale, y + line - 3), _SECOND)
    ratio = f"x {one.ratio:.2f}" if one.first or one.second else "-"
    draw_text(draw, (int(start + max(one.first, one.second) * scale) + 4, y), ratio, _TEXT)
