"""Maps that are fitted on pictures of a style, for the benchmarks."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from PIL.Image import fromarray
from torch import Tensor

from act_core import ActMap
from act_core.fitting import fit_pictures, refine
from act_core.image_files import Picture
from act_core.models.picture_loss import PictureModel
from act_core.settings import Branch, RefineSettings
from tools.train_demo_model.captions import caption

from .pictures import Judged, StyleBench, kept


class Learned(NamedTuple):
    """A map, the seconds that it took to encode the pictures and to fit it, and the steps of a refinement."""

    act_map: ActMap
    seconds: float
    steps: int


def examples(
    bench: StyleBench, images: Tensor, count: int, *, named: int | None, captions: bool = True
) -> list[Picture]:
    """Pictures of concepts that are not used for judging.

    Args:
        bench: whose concepts.
        images: uint8 ``[concepts, 3, height, width]``, all in one style.
        count: how many.
        named: the style that captions name; None for captions without any.
        captions: False for pictures without captions.
    """
    chosen = random.Random(0).sample(bench.fit_concepts, count)
    return [
        Picture(
            fromarray(images[concept].permute(1, 2, 0).numpy()),
            caption(bench.pictures.names[concept], (), named) if captions else "",
        )
        for concept in chosen
    ]


def refined(
    bench: StyleBench, pictures: Sequence[Picture], settings: RefineSettings | None = None, *, components: str = "both"
) -> Learned:
    """Refine a map on pictures."""
    steps = 0

    def progress(done: int, _total: int, _state: str) -> None:
        nonlocal steps
        steps = done

    start = time.perf_counter()
    act_map = refine(PictureModel(bench.models[components]), pictures, settings, progress=progress)
    return Learned(act_map, time.perf_counter() - start, steps)


def transported(bench: StyleBench, pictures: Sequence[Picture], **changes: Any) -> Learned:
    """Fit a transport from pictures at several noise levels; the model draws the source pictures."""
    start = time.perf_counter()
    act_map = fit_pictures(PictureModel(bench.model), pictures, **changes)
    return Learned(act_map, time.perf_counter() - start, 0)


def drawn_with(
    bench: StyleBench, act_map: ActMap, texts: Sequence[str], strength: float = 1.0, branch: Branch = "positive"
) -> Judged:
    """Every text with every seed, steered."""
    with bench.model.steer(act_map, strength, branch):
        return bench.draw(texts)


def content_kept(drawn: Judged, unsteered: Judged) -> Tensor:
    """Content kept of each picture ``[n]``: 1 if it shows what the unsteered one does, 0 if another concept.

    The judge's features were trained to be the same in every style.
    """
    return kept(drawn.features, unsteered.features)
