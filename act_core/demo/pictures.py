"""The tiny text-to-image model, the subjects that it draws, and what is measured on its pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from PIL.Image import Image

from ..errors import MapError
from ..maps import ActMap
from ..models.diffusers import DiffusersModel
from ..models.sweep import sweep
from . import shipped
from .statistics import interval

# Held-out subjects: in no prompt set. Sheets show the first few, the tables measure all of them.
SUBJECTS = (
    "cat",
    "rocket",
    "red apple",
    "castle",
    "octopus",
    "sunflower",
    "hamburger",
    "guitar",
    "umbrella",
    "snail",
    "alarm clock",
    "anchor",
    "penguin",
    "bell",
    "key",
    "crown",
)
SHOWN = 6
GUIDANCE = 3.0
# As good as 20 on the demo model, see `benchmarks.demo_model`.
STEPS = 8
# Quantiles of colours that are compared.
_QUANTILES = 65

Pictures = Sequence[Image]


class Measured(NamedTuple):
    """The mean of a measure over pictures, and its 95% bootstrap interval."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Measured:
        """From one value for each picture."""
        return cls(float(np.mean(values)), *interval(np.array(values)))

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def demo_model() -> DiffusersModel:
    """The tiny text-to-image model that ships.

    Raises:
        MapError: its folder is missing.
    """
    folder = shipped("demo_model")
    if not folder.is_dir():
        raise MapError("The demo model is not installed; run the demo in a checkout of the repository.")
    return DiffusersModel.from_pretrained(folder)


def drawn(
    model: DiffusersModel,
    act_map: ActMap,
    subjects: Sequence[str],
    strengths: Sequence[float],
    step: Callable[[], object] = lambda: None,
) -> list[list[Image]]:
    """The pictures of each subject at all strengths, from the same noise."""
    return sweep(model, act_map, subjects, strengths, step=step, guidance=GUIDANCE, steps=STEPS)


def saturation(image: Image) -> float:
    """Mean over the pixels of the difference between the largest and the smallest of red, green and blue."""
    values = _values(image)
    return float((values.max(2) - values.min(2)).mean())


def palette_distance(image: Image, others: Pictures) -> float:
    """How far the colours of a picture are from those of others, from 0 to 1.

    The one-dimensional Wasserstein distance between their pixels, mean over red, green and blue.

    Example:
        >>> from PIL import Image
        >>> white, black = Image.new("RGB", (4, 4), "white"), Image.new("RGB", (8, 8), "black")
        >>> palette_distance(white, [white]), palette_distance(white, [black])
        (0.0, 1.0)
    """
    own = _quantiles(_values(image).reshape(-1, 3))
    all_others = _quantiles(np.concatenate([_values(other).reshape(-1, 3) for other in others]))
    return float(np.abs(own - all_others).mean())


def change(image: Image, before: Image) -> float:
    """How much a picture has changed: the mean absolute difference of the pixels, from 0 to 1."""
    return float(np.abs(_values(image) - _values(before)).mean())


def _values(image: Image) -> np.ndarray:
    return np.asarray(image, dtype=np.float64) / 255


def _quantiles(pixels: np.ndarray) -> np.ndarray:
    return np.quantile(pixels, np.linspace(0, 1, _QUANTILES), axis=0)
