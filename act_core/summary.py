"""Describes a map in words."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from .calibration import Calibration
from .maps import ActMap
from .records import FitRecord
from .text import shorten

_WIDTH = 110
_BAR = 20


def describe(act_map: ActMap) -> str:
    """A description in several lines: the card, how the map was fitted and on what, and the effect at each site.

    Example:
        >>> site = Site("toy", "layer", None, "tokens", 2)
        >>> print(describe(ActMap({site: Transport(torch.ones(2), torch.ones(2), effect=0.5)})).splitlines()[0])
        fitted          linear, causal, unbounded support, exact walk
    """
    record, card = act_map.record, act_map.card
    rows = {
        "title": card.title,
        "author": card.author,
        "description": card.description,
        "license": card.license,
        "tags": card.tags,
        "use": card.usage_hint,
        "strength": card.strength_range and "{:g} to {:g} recommended".format(*card.strength_range),
        "calibrated": act_map.calibration and describe_calibration(act_map.calibration),
        "measured": ". ".join(map(str, act_map.evidence)),
        **_fitted(record),
        "noise levels": ", ".join(f"{level:g}" for level in act_map.levels),
        "versions": ", ".join(f"{name} {version}" for name, version in record.versions.items()),
        "notes": "; ".join((*record.notes, *record.patches, *record.edits)),
    }
    for name, base in record.base.items():
        rows[name] = f"{base.architecture}, weights {base.weights[:12] or 'none'}"
    lines = [
        textwrap.fill(f"{name:<15} {text}", _WIDTH, subsequent_indent=" " * 16) for name, text in rows.items() if text
    ]
    lines += [f"{'sites':<15} {len(act_map)}, channels without a slope: {act_map.fallbacks}", ""]

    most = max((t.effect or 0.0 for t in act_map.transports.values()), default=0.0)
    unit = "(effect: median shift of the mean, in standard deviations of the source)"
    lines.append(f"{'effect':>8}  {'slope':>6}  {'':{_BAR}}  site {unit}")
    for site, transport in act_map.transports.items():
        effect = transport.effect or 0.0
        number = f"{'unknown':>8}" if transport.effect is None else f"{effect:8.3f}"
        bar = "#" * round(_BAR * effect / most) if most else ""
        lines.append(f"{number}  {float(transport.omega.median()):6.3f}  {bar:{_BAR}}  {site.key}")
    return "\n".join(lines)


def describe_calibration(calibration: Calibration) -> str:
    """The recommended range of a map, and what a negative strength does.

    Example:
        >>> found = Calibration((-1.0, 0.0, 1.0), (0.1, 0.0, 1.0), (0.9, 1.0, 0.7), (0.0, 1.2), negative="none")
        >>> describe_calibration(found)
        '0 to 1 is strength 0 to 1.20; below 0 no usable opposite'
    """
    low, high = calibration.range
    text = f"0 to 1 is strength 0 to {high:.2f}"
    below = {
        "negated": f"-1 is strength {low:.2f}",
        "inverse": f"-1 is strength {-low:.2f} of the inverse map",
        "none": "below 0 no usable opposite",
    }
    return f"{text}; {below[calibration.negative]}"


def _fitted(record: FitRecord) -> dict[str, str]:
    """How the map was fitted, and on what."""
    if record.fitted_by == "refinement":
        samples = f"{record.target_count}{_such_as(record.target_prompts)}"
        return {"fitted": "by refinement on the loss of the model", "samples": samples}
    source = f"{record.source_count} source{_such_as(record.source_prompts)}"
    target = f"{record.target_count} target{_such_as(record.target_prompts)}"
    return {
        "fitted": f"{record.estimator}, {record.order}, {record.support} support, {record.walk} walk",
        "prompts": f"{source}; {target}",
    }


def _such_as(prompts: Sequence[str]) -> str:
    """The first of the prompts that a map keeps; those of pictures without captions are empty."""
    if not prompts:
        return ", none kept"
    first = next((prompt for prompt in prompts if prompt), "")
    return f", such as {shorten(first, 60)!r}" if first else " without captions"
