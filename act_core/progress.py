"""Progress bars of the command line."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from .fitting import FitModel, LevelModel, LossModel, fit, fit_pictures, refine
from .fitting.samples import Sample
from .image_files import Picture
from .levels import LEVELS
from .maps import ActMap
from .naming import subjects
from .prompts import PromptSet
from .settings import FitSettings, RefineSettings

if TYPE_CHECKING:
    from .models.picture_loss import PictureModel


def bar(label: str, total: int) -> tqdm[Any]:
    """A bar on standard output.

    Example::

        with bar("Drawing", 6) as drawing:
            drawing.update()
    """
    return tqdm(desc=label, total=total, bar_format="{desc}: {bar:30} {n_fmt}/{total_fmt} [{elapsed}]", file=sys.stdout)


def fit_with_bar(
    model: FitModel[str], prompts: PromptSet, settings: FitSettings | None = None, **changes: Any
) -> ActMap:
    """`fit`, with a bar that counts the sites.

    Example::

        act_map = fit_with_bar(model, load_prompt_set("gloomy_to_cheerful.txt"), sites="norms")
    """
    with ExitStack() as stack:
        bars: list[tqdm[Any]] = []

        def progress(done: int, total: int, _site: str) -> None:
            if not bars:  # opened only now, below what the fit may have logged
                bars.append(stack.enter_context(bar(f"Fitting {prompts.source_name} to {prompts.target_name}", total)))
            bars[0].total = total
            bars[0].update(done - bars[0].n)

        return fit(model, prompts.source, prompts.target, settings, progress=progress, **changes)


def fit_pictures_with_bar(
    model: LevelModel[Sample],
    target: Sequence[Sample],
    source: Sequence[Sample] | None = None,
    settings: FitSettings | None = None,
    levels: Sequence[float] = LEVELS,
) -> ActMap:
    """`fit_pictures`, with a bar that counts the sites at all levels.

    Example::

        act_map = fit_pictures_with_bar(PictureModel(pipeline), read_pictures("my_style"))
    """
    with ExitStack() as stack:
        bars: list[tqdm[Any]] = []

        def progress(done: int, total: int, _site: str) -> None:
            if not bars:  # opened only now, after the source pictures are drawn
                bars.append(stack.enter_context(bar(f"Fitting {len(target)} pictures", total)))
            bars[0].total = total  # grows if memory runs out
            bars[0].update(done - bars[0].n)

        return fit_pictures(model, target, source, settings, levels=levels, progress=progress)


def refine_with_bar(
    model: LossModel[Sample], samples: Sequence[Sample], settings: RefineSettings | None = None, label: str = "Refining"
) -> ActMap:
    """`refine`, with a bar that counts the steps.

    Example::

        act_map = refine_with_bar(PictureModel(pipeline), read_pictures("my_style"))
    """
    settings = settings or RefineSettings()
    with bar(label, settings.steps) as steps:

        def progress(done: int, _total: int, _state: str) -> None:
            steps.update(done - steps.n)

        return refine(model, samples, settings, progress=progress)


def named_with_bar(model: PictureModel, pictures: Sequence[Picture]) -> list[Picture]:
    """`PictureModel.named`, with a bar that counts the words.

    Example::

        pictures = named_with_bar(PictureModel(pipeline), read_pictures("my_style"))
    """
    if all(picture.caption for picture in pictures):
        return list(pictures)
    with bar("Naming what the pictures show", len(subjects())) as words:

        def progress(done: int, _total: int, _word: str) -> None:
            words.update(done - words.n)

        return model.named(pictures, progress=progress)
