"""Run by the host's own Python: factors of windows of each shape on the host's own schedules, as JSON."""

from __future__ import annotations

import json
from typing import Any

import inside

# isort: split
import comfy.model_sampling as sampling
import torch
from act_pack.nodes.host.schedule import Window

assert inside.PACK
KINDS = {
    "discrete": sampling.ModelSamplingDiscrete,
    "edm": sampling.ModelSamplingContinuousEDM,
    "flow": sampling.ModelSamplingDiscreteFlow,
    "flux": sampling.ModelSamplingFlux,
}
WINDOWS = {
    "constant": Window(0.25, 0.75),
    "in": Window(shape="fade in"),
    "out": Window(shape="fade out"),
    "in_part": Window(0.15, 0.75, "fade in"),
    "curve": Window(0.5, 1.0, "fade in", lambda position: 3 * position**2),
}
PERCENTS = [0.0, 0.1, 0.2, 0.45, 0.7, 0.95]


class _NoConfig:
    """A model configuration that leaves all settings at their defaults."""

    sampling_settings: dict[str, Any] = {}  # noqa: RUF012


def main() -> None:
    found: dict[str, dict[str, list[float | None]]] = {}
    for kind, cls in KINDS.items():
        schedule = cls(_NoConfig())
        # At 0 percent the host's schedulers begin with the largest sigma; its own function returns a huge one.
        sigmas = [float(schedule.percent_to_sigma(percent) if percent else schedule.sigma_max) for percent in PERCENTS]
        found[kind] = {
            name: [window.factor(schedule, {"sigmas": torch.tensor([sigma])}) for sigma in sigmas]
            for name, window in WINDOWS.items()
        }
    print(json.dumps({"percents": PERCENTS, "found": found}))


if __name__ == "__main__":
    main()
