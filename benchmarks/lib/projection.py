"""Removal by projection, to compare with transports: no gain and offset for each channel, but one direction per site.

Where an activation has more of the direction from target to source than the target has on average, the excess is
subtracted: ``a - max(d . (a - mean of target), 0) d``. Arditi et al., "Refusal in Language Models Is Mediated by a
Single Direction" (2024), subtract all of it.
"""

from __future__ import annotations

import importlib
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

from torch import Tensor

from act_core.gates import openness, row_means
from act_core.settings import Spatial
from act_core.sites import Layout
from act_core.transport import Transport, fit_transport


@contextmanager
def projecting() -> Generator[None, None, None]:
    """Inside the block, fits make projections in place of transports, and steering applies the maps so fitted."""
    fit, lockstep, composition = map(
        importlib.import_module,
        ("act_core.fitting.fit", "act_core.fitting.lockstep", "act_core.steering.composition"),
    )
    with (
        mock.patch.object(fit, "fit_transport", _fit_projection),
        mock.patch.object(lockstep, "displace_at", _project),
        mock.patch.object(composition, "displace_at", _project),
    ):
        yield


def _fit_projection(source: Tensor, target: Tensor, *arguments: Any, **settings: Any) -> Transport:
    """A projection in the fields of a transport, so that strengths act on it alike.

    The slope less 1 is the unit direction, and the offset is the share of each channel in the target's component.
    """
    transport = fit_transport(source, target, *arguments, **settings)
    assert transport.statistics is not None
    mean = transport.statistics.target_mean
    direction = transport.statistics.source_mean - mean
    direction = direction / direction.norm().clamp(min=1e-12)
    return replace(transport, omega=1 + direction, beta=direction * mean)


def _project(
    x: Tensor,
    layout: Layout,
    spatial: Spatial,
    gain: Tensor,
    offset: Tensor,
    low: Tensor | None = None,
    high: Tensor | None = None,
    gate: Tensor | None = None,
    present: Tensor | None = None,
) -> Tensor:
    """In place of `act_core.displacement.displace_at`, for vectors and tokens; the parameters are the same."""
    strength = gain.norm()
    excess = (x.float() @ (gain / strength) - offset.sum() / strength).clamp(min=0)
    moved = excess.unsqueeze(-1) * gain
    if gate is not None:
        opening = openness(row_means(x, layout, present).flatten(1), gate)
        moved = moved * opening.view(-1, *[1] * (x.ndim - 1))
    return x - moved.to(x.dtype)
