"""What a loader shows of the map that it loaded: its cover, and in a few lines what it is."""

from __future__ import annotations

import io as bytes_io
from typing import Any

from comfy_api.latest import io, ui
from PIL import Image

from ..act_core import ActMap
from ..act_core.summary import describe_calibration
from ..act_core.text import shorten
from .common import pixels_of

_MAX_TITLE, _MAX_TEXT = 60, 300  # characters


def summary_of(act_map: ActMap) -> str:
    """Title, range and use of the map, the model that it was fitted on, its calibration, and what was measured."""
    card, calibration = act_map.card, act_map.calibration
    title = shorten(card.title, _MAX_TITLE) or "This map"
    ends = card.strength_range
    lines = [f"{title}: no recommended range." if ends is None else f"{title}: {ends[0]:g} to {ends[1]:g} recommended."]
    if act_map.record.model:
        lines.append(f"For {act_map.record.model}.")
    if card.description:
        lines.append(shorten(card.description, _MAX_TEXT))
    if card.usage_hint:
        lines.append(shorten(card.usage_hint, _MAX_TEXT))
    if calibration is not None:
        lines.append(f"Calibrated: {describe_calibration(calibration)}.")
    lines += [f"Measured: {evidence}." for evidence in act_map.evidence]
    return "\n".join(lines)


def shown_card(act_map: ActMap, text: str, cls: type[io.ComfyNode]) -> dict[str, Any]:
    """What a node shows after a run: a text, and the cover of a map if it has one."""
    if not act_map.card.cover:
        return {"text": (text,)}
    with Image.open(bytes_io.BytesIO(act_map.card.cover)) as picture:
        pixels = pixels_of(picture.convert("RGB"))
    return {**ui.PreviewImage(pixels, cls=cls).as_dict(), "text": (text,)}
