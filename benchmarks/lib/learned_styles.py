"""Maps that are refined on pictures of a style, for the benchmarks."""

from __future__ import annotations

import random
import time
from typing import NamedTuple

import torch
from PIL.Image import fromarray

from act_core import ActMap
from act_core.fitting import refine
from act_core.image_files import Picture
from act_core.models.picture_loss import PictureModel
from act_core.settings import RefineSettings

from .pictures import Judged, StyleBench, kept


class Learned(NamedTuple):
    """A map, and the seconds that it took to encode the pictures and to refine it."""

    act_map: ActMap
    seconds: float


def pictures_of(bench: StyleBench, style: int, count: int, *, captions: bool) -> list[Picture]:
    """Real emoji of a style, of concepts that are not used for judging."""
    chosen = random.Random(style).sample(bench.fit_concepts, count)
    images = bench.pictures.images[style]
    names = bench.pictures.names
    return [
        Picture(fromarray(images[concept].permute(1, 2, 0).numpy()), names[concept] if captions else "")
        for concept in chosen
    ]


def learned(
    bench: StyleBench, style: int, count: int, settings: RefineSettings | None = None, *, captions: bool = True
) -> Learned:
    """Refine a map on pictures of a style."""
    pictures = pictures_of(bench, style, count, captions=captions)
    start = time.perf_counter()
    act_map = refine(PictureModel(bench.model), pictures, settings)
    return Learned(act_map, time.perf_counter() - start)


def content_kept(bench: StyleBench, drawn: Judged, source: int) -> torch.Tensor:
    """Content kept of each picture: 1 if it shows what the unsteered one does, 0 if another concept.

    The judge's features were trained to be the same in every style.
    """
    return kept(drawn.features, bench.prompted(source).features)
