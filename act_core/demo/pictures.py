"""The tiny text-to-image model, the subjects that it draws, and what is measured on its pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL.Image import Image

from ..errors import MapError
from ..maps import ActMap
from ..models.diffusers import DiffusersModel
from ..models.sweep import sweep
from ..plots import grid
from ..progress import bar
from . import shipped
from .statistics import Measured, permuted

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


@dataclass(frozen=True)
class Sweep:
    """Pictures of subjects at increasing strength, and a control: the same map with its channels shuffled.

    Attributes:
        subjects: one row each.
        titles: of the columns, the strengths.
        images: rows of pictures.
        control: a picture of each subject, at strength 1.
    """

    subjects: Sequence[str]
    titles: Sequence[str]
    images: Sequence[Pictures]
    control: Pictures

    @classmethod
    def drawn(
        cls, model: DiffusersModel, act_map: ActMap, subjects: Sequence[str], strengths: Sequence[float], what: str
    ) -> Sweep:
        """Draw all pictures from the same noise, with a bar that names what is drawn."""
        with bar(f"Drawing {len(subjects)} {what} at each strength", len(strengths) + 1) as drawing:
            images = drawn(model, act_map, subjects, strengths, drawing.update)
            control = drawn(model, permuted(act_map), subjects, (1.0,), drawing.update)
        return cls(subjects, [f"{strength:g}" for strength in strengths], images, [row[0] for row in control])

    @property
    def shown(self) -> Sequence[Pictures]:
        """The rows that sheets show."""
        return self.images[:SHOWN]

    def save_sheet(self, file: Path) -> None:
        """Save a sheet of the first subjects at all strengths."""
        grid(self.shown, self.subjects[:SHOWN], self.titles, zoom=2).save(file)

    def measured(self, measure: Callable[[Image], float]) -> list[tuple[str, str]]:
        """A row for each strength and the control: its name, and a measure of its pictures."""
        columns = [*zip(self.titles, zip(*self.images, strict=True), strict=True)]
        columns.append(("1, channels shuffled", tuple(self.control)))
        return [(name, f"{Measured.of([measure(image) for image in own]):.3f}") for name, own in columns]


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
    step: Callable[[], object],
) -> list[list[Image]]:
    """The pictures of each subject at all strengths, from the same noise; `step` is called after each strength."""
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
