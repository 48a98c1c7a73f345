"""The demonstration: maps are fitted, saved and loaded, and real models are seen to follow them."""

from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats


def shipped(name: str) -> Path:
    """A folder that ships: beside the package in a checkout, inside it when installed."""
    inside = Path(__file__).parent.parent / name
    return inside if inside.is_dir() else inside.parent.parent / name


def interval(values: np.ndarray) -> tuple[float, float]:
    """95% bootstrap interval (percentiles of 2,000 resamples) of the mean."""
    drawn: Any = stats.bootstrap((values,), np.mean, n_resamples=2000, method="percentile", rng=0)
    return drawn.confidence_interval.low, drawn.confidence_interval.high
