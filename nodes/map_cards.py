"""What a loader shows of the map that it loaded: its cover, and in a few lines what it is."""

from __future__ import annotations

import io as bytes_io
import logging
from typing import Any

from comfy_api.latest import io, ui
from PIL import Image

from ..act_core import ActMap
from ..act_core.summary import describe_calibration
from ..act_core.text import shorten
from .common import pixels_of

_MAX_TITLE, _MAX_TEXT = 60, 300  # characters
_MAX_SIDE = 2048  # pixels


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
    picture = _cover(act_map.card.cover)
    if picture is None:
        return {"text": (text,)}
    return {**ui.PreviewImage(pixels_of(picture), cls=cls).as_dict(), "text": (text,)}


def _cover(data: bytes) -> Image.Image | None:
    """A cover in RGB; None if there is none, or if it cannot be shown, since the map is of use without it."""
    if not data:
        return None
    try:
        with Image.open(bytes_io.BytesIO(data)) as picture:
            # A small file may hold a picture that fills the memory.
            return picture.convert("RGB") if max(picture.size) <= _MAX_SIDE else None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        logging.warning("ACT Steering: the cover of the map is damaged, so it is not shown.")
        return None
