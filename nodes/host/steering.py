"""Applies a map to a MODEL and a CLIP at once, for the nodes that take both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

from ...act_core import ActMap
from ...act_core.components import DIFFUSION_MODEL
from ...act_core.errors import MapMismatchError
from ...act_core.selection import SiteSelection
from ...act_core.settings import Branch, as_strength
from ...act_core.steering import Steering
from .clip_steering import steered_clip
from .model_steering import ModelSteering
from .models import log_remarks
from .schedule import Window
from .weights import check_whole, folded, with_weights

__all__ = ["Applied", "NoCLIP", "Window", "on_even_scale", "steered", "steered_encoders"]


@dataclass(frozen=True)
class Applied:
    """A MODEL and a CLIP with an applied map.

    Attributes:
        model, clip: steered, or unchanged if the map or the strength does not affect them.
        report: the sites that were found, notes and warnings.
        on_model: the map on the model, if applied.
        on_clip: the map on the CLIP, if applied.
    """

    model: Any
    clip: Any
    report: str
    on_model: ModelSteering | None
    on_clip: Steering | None


def steered(
    model: Any,
    clip: Any | None,
    act_map: ActMap,
    strength: float,
    strength_clip: float,
    window: Window,
    branch: Branch = "positive",
    selection: SiteSelection | None = None,
    *,
    calibrated: bool = False,
    as_weights: bool = False,
) -> Applied:
    """Apply a map.

    Args:
        model: a MODEL.
        clip: a CLIP; None if none is connected.
        act_map: the map.
        strength, strength_clip: strengths on the diffusion model and on the text encoders.
        window, branch: see `ModelSteering`.
        selection: which of its sites act; None for all.
        calibrated: whether the strengths are positions on the even scale of the map's calibration.
        as_weights: whether the map is put into the weights, which act on both branches and at every step.

    Raises:
        MapError: the map does not fit, is not calibrated, cannot be put into weights, needs a CLIP that is not
            connected, or a strength is not a number.
    """
    strength, strength_clip = as_strength(strength), as_strength(strength_clip)
    lines: list[str] = []
    scale = ""
    if calibrated:
        scale = f" (calibrated: {strength:g} and {strength_clip:g})"
        act_map, strength, strength_clip = on_even_scale(act_map, strength, strength_clip)
    if selection is not None and str(selection):
        whole, act_map = act_map, selection.of(act_map)
        lines.append(f"Acts at {len(act_map)} of the {len(whole)} sites of the map: {selection}.")
    steers_model = DIFFUSION_MODEL in act_map.components
    steers_clip = clip is not None and any(name != DIFFUSION_MODEL for name in act_map.components)
    lines += _outside_range(act_map, strength * steers_model, strength_clip * steers_clip)
    if not steers_model and clip is None:
        raise MapMismatchError(
            f"This map steers {' and '.join(act_map.components)}, not the diffusion model; connect the CLIP that has "
            "it, or use ACT Steered Text if the map is for a language model."
        )
    if as_weights:
        check_whole(window, branch)
        lines.append(f"As weights, strength {strength:.3g} and {strength_clip:.3g}{scale}, both branches.")
        return _in_weights(model, clip, act_map, strength, strength_clip, lines)
    on_model, on_clip = None, None
    if steers_model:
        # The CLIP reports its own sites; without one, they are listed as not connected.
        own = act_map if clip is None else act_map.restrict(f"{DIFFUSION_MODEL}/*")
        on_model = ModelSteering(own, strength, window, branch)
        # Also at strength 0: a map for another model is refused at any strength.
        steering = on_model.on(model)
        log_remarks(steering)
        where = f", {window}" if str(window) else ""
        lines += _remarks(steering, f"strength {strength:.3g}{scale}, {branch} branch{where}")
        model = on_model.patched(model) if strength else model
    if steers_clip:
        clip, on_clip = steered_clip(clip, act_map, strength_clip)
        lines += _remarks(on_clip, f"strength {strength_clip:.3g}{scale}")
    return Applied(model, NoCLIP() if clip is None else clip, "\n".join(lines), on_model, on_clip)


def steered_encoders(clip: Any, act_map: ActMap, strength: float, *, calibrated: bool = False) -> tuple[Any, str]:
    """Apply the part of a map that steers text encoders to a CLIP; returns the steered CLIP and a report.

    Raises:
        MapError: as `steered` does.
    """
    strength, scale = as_strength(strength), ""
    if calibrated:
        scale = f" (calibrated: {strength:g})"
        act_map, _, strength = on_even_scale(act_map, 0.0, strength)
    lines = _outside_range(act_map, strength)
    clip, steering = steered_clip(clip, act_map, strength)
    return clip, "\n".join([*lines, *_remarks(steering, f"strength {strength:.3g}{scale}")])


def _in_weights(
    model: Any, clip: Any | None, act_map: ActMap, strength: float, strength_clip: float, lines: list[str]
) -> Applied:
    """Apply a map as patches of weights; the lines begin its report."""
    in_weights = folded(model, clip, act_map)
    model, clip = with_weights(model, clip, in_weights, strength, strength_clip)
    report = "\n".join([*lines, in_weights.report])
    return Applied(model, NoCLIP() if clip is None else clip, report, None, None)


def on_even_scale(act_map: ActMap, position: float, position_clip: float) -> tuple[ActMap, float, float]:
    """The map to apply and its strengths, for positions on the even scale of its calibration.

    Args:
        act_map: a calibrated map.
        position, position_clip: from -1 to 1, on the diffusion model and on the text encoders.

    Raises:
        MapError: the map is not calibrated, or has no usable opposite.
    """
    names = act_map.components
    positions = {name: as_strength(position if name == DIFFUSION_MODEL else position_clip) for name in names}
    act_map, raw = act_map.on_even_scale(positions)
    clip = next((strength for name, strength in raw.items() if name != DIFFUSION_MODEL), 0.0)
    return act_map, raw.get(DIFFUSION_MODEL, 0.0), clip


def _remarks(steering: Steering, setting: str) -> list[str]:
    """What a report says of an applied map."""
    return [f"{_found(steering)}, {setting}.", *steering.notes, *steering.warnings]


def _found(steering: Steering) -> str:
    coverage = steering.coverage
    components = [name for name in steering.act_map.components if name not in coverage.unconnected]
    found = len(coverage.expected) - len(coverage.missing)
    text = f"{' and '.join(components)}: {found} of {len(coverage.expected)} sites found"
    if coverage.missing:
        text += f" (first missing: {coverage.missing[0]})"
    if coverage.unconnected:
        text += f", {' and '.join(coverage.unconnected)} not connected"
    return text


def _outside_range(act_map: ActMap, *strengths: float) -> list[str]:
    """A line if strengths other than 0 lie outside the range that the map recommends."""
    if act_map.card.strength_range is None:
        return []
    low, high = sorted(act_map.card.strength_range)
    shown = [f"{strength:g}" for strength in strengths if strength]
    outside = dict.fromkeys(strength for strength in shown if not low <= float(strength) <= high)
    if not outside:
        return []
    return [f"Strength {' and '.join(outside)} is outside the recommended range of the map, {low:g} to {high:g}."]


class NoCLIP:
    """Placeholder output when no CLIP is connected, which raises an error when used; the host inspects all outputs."""

    def __getattr__(self, name: str) -> NoReturn:
        # Not a MapError: the host checks outputs for attributes, and treats an AttributeError as a missing one.
        raise AttributeError(
            "The node that applies the map has no CLIP to pass on, because none is connected to it; use the CLIP of "
            "the model's loader."
        )
