"""Fits a map from pictures: a transport for each of several noise levels.

Unlike a prompt, a picture can be put into a diffusion model at any noise level, and a style shows at all of them. So
there is one walk for each level (the walks do not depend on each other), and their transports become the bins of one
map, of which the nearest acts in sampling.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Generic

from ..errors import FitError, NotDifferentiableError
from ..levels import LEVELS, as_levels
from ..maps import ActMap
from ..records import Walk
from ..settings import FitSettings, changed
from ..text import plain_text
from ..transport import stacked
from .fit import fit
from .samples import FitModel, Progress, Sample, no_progress


class LevelModel(Generic[Sample]):
    """A diffusion model that runs pictures at any noise level, such as `act_core.models.picture_loss.PictureModel`."""

    def at_level(self, level: float) -> FitModel[Sample]:
        """The model as one that can be fitted on pictures with noise of a level."""
        raise NotImplementedError

    def check_samples(self, samples: Sequence[Sample]) -> None:
        """Refuse pictures from which no style can be learned.

        Raises:
            FitError: fewer than two, or pictures that cannot be used.
        """
        raise NotImplementedError

    def drawn(self, samples: Sequence[Sample], seed: int) -> list[Sample]:
        """Pictures that the model itself draws from the captions of others, or without captions if they have none."""
        raise NotImplementedError


def fit_pictures(
    model: LevelModel[Sample],
    target: Iterable[Sample],
    source: Iterable[Sample] | None = None,
    settings: FitSettings | None = None,
    *,
    levels: Iterable[object] = LEVELS,
    progress: Progress = no_progress,
    **changes: Any,
) -> ActMap:
    """Fit the map that moves the activations of source pictures onto those of target pictures, at each noise level.

    Needs no gradients, so it works on quantised, compiled and offloaded models; where the model can be differentiated,
    `act_core.fitting.refine` comes closer to the style.

    Args:
        model: an adapter.
        target: pictures in the style, at least two.
        source: pictures without it. If None, the model draws them: from the captions of the target pictures where they
            have some, so that the two sides show the same things.
        settings: how to fit, see `act_core.fit`.
        levels: noise levels, at most `act_core.levels.MAX_LEVELS`.
        progress: called as ``progress(done, total, site)`` after each site at each level.
        **changes: individual settings, by their names in `FitSettings`.

    Raises:
        MapError: levels that are not numbers above 0 and up to 1.
        FitError: as `act_core.fit`, or gates or projections.

    Example::

        model = PictureModel(DiffusersModel.from_pretrained("demo_model"))
        act_map = fit_pictures(model, read_pictures("my_style", captions=True))
    """
    found = as_levels(levels)
    settings = changed(settings or FitSettings(), changes)
    check_for_pictures(settings)
    targets = list(target)
    model.check_samples(targets)
    notes: list[str] = []
    if source is None:
        sources = model.drawn(targets, settings.seed)
        captioned = any(model.at_level(found[0]).describe(sample) for sample in targets)
        notes.append(drawn_note(captioned=captioned))
    else:
        sources = list(source)
        try:
            model.check_samples(sources)
        except FitError as error:
            raise FitError(f"The source pictures cannot be used. {error}") from error
    maps: list[ActMap] = []
    for level in found:

        def at_level(done: int, total: int, site: str) -> None:
            progress(len(maps) * total + done, len(found) * total, site)

        maps.append(fit(model.at_level(level), sources, targets, settings, progress=at_level))
    return _joined(found, maps, notes)


def check_for_pictures(settings: FitSettings) -> None:
    """Refuse settings that only a fit from prompts can have.

    Raises:
        FitError: there are some.

    Example:
        >>> check_for_pictures(FitSettings(estimator="mean"))
    """
    if settings.support == "gated" or settings.estimator == "project":
        raise FitError("Gates and projections tell prompts apart, not pictures; choose another support and estimator.")
    if settings.estimator == "end_to_end":
        raise FitError("The estimator end_to_end is for prompts; choose linear, or refine the map on the pictures.")


def drawn_note(*, captioned: bool) -> str:
    """A note for the record on source pictures that the model has drawn.

    Example:
        >>> drawn_note(captioned=False)
        'source pictures drawn by the model without captions'
    """
    return f"source pictures drawn by the model {'from the same' if captioned else 'without'} captions"


def fallback(act_map: ActMap, error: NotDifferentiableError) -> ActMap:
    """A map that was fitted because it could not be refined, with a note of the reason."""
    reason = error.reason[:1].lower() + error.reason[1:]
    note = f"fitted by transport rather than refined, since {plain_text(reason)}"
    return replace(act_map, record=replace(act_map.record, notes=(note, *act_map.record.notes)))


def _joined(levels: tuple[float, ...], maps: Sequence[ActMap], notes: Sequence[str]) -> ActMap:
    """One map with a bin for each of several."""
    first = maps[0]
    transports = {site: stacked([one.transports[site] for one in maps]) for site in first.transports}
    walk: Walk = "streamed" if any(one.record.walk == "streamed" for one in maps) else "exact"
    listed = tuple(dict.fromkeys([*notes, *(note for one in maps for note in one.record.notes)]))
    return ActMap(transports, replace(first.record, walk=walk, notes=listed), levels=levels)
