"""Fits a map on a MODEL and a CLIP: first the text encoders, then the diffusion model, joined into one map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import Any

from torch import Tensor

from ...act_core import ActMap, fit
from ...act_core.errors import FitError
from ...act_core.fitting import Progress
from ...act_core.fitting.record import prompts_recorded
from ...act_core.settings import Components, FitSettings
from .denoiser import Denoiser, encoded_sides, run_denoiser
from .latents import empty_latent, fixed_latent
from .models import is_steered
from .progress import FitProgress
from .text_encoders import Conditioning, TextEncoders


@dataclass(frozen=True)
class PromptFit:
    """The inputs of Fit ACT Map.

    Attributes:
        model, clip: MODEL and CLIP; neither is changed.
        source, target: prompts.
        components: which of the two the map steers.
        samples: pictures per side.
        settings: of the fit.
    """

    model: Any
    clip: Any
    source: Sequence[str]
    target: Sequence[str]
    components: Components
    samples: int
    settings: FitSettings

    def run(self, width: int, height: int, latent: dict[str, Any] | None = None) -> ActMap:
        """Fit the map.

        Args:
            width, height: of the pictures in pixels; 0 for the model's usual size.
            latent: an empty latent that sets the size instead.

        Raises:
            FitError: prompts, settings, a model or a size from which no map can be fitted.
        """
        # Check before anything runs, since encoding many prompts takes a while.
        empty = None if self.components == "text" else self._empty_latent(width, height, latent)
        progress = FitProgress(parts=2 if self.components == "both" else 1)
        text_map = None
        if self.components != "model":
            text_map = fit_text(self.clip, *self._used, self.settings, progress)
        if empty is None:
            assert text_map is not None
            return text_map
        model_map = self._fit_model(empty, text_map, progress)
        return model_map if text_map is None else text_map.joined(model_map)

    @property
    def unused(self) -> str:
        """A line about prompts beyond the number of samples; empty if there are none."""
        given = {"source": self.source, "target": self.target}
        counts = [f"{self.samples} of {len(side)} {name}" for name, side in given.items() if len(side) > self.samples]
        return f"Used only the first {' and '.join(counts)} prompts; raise samples to use more." if counts else ""

    @property
    def _used(self) -> tuple[Sequence[str], Sequence[str]]:
        return self.source[: self.samples], self.target[: self.samples]

    def _empty_latent(self, width: int, height: int, latent: dict[str, Any] | None) -> Tensor:
        check_model(self.model)
        return empty_latent(self.model, width, height) if latent is None else fixed_latent(self.model, latent)[:1]

    def _fit_model(self, empty: Tensor, text_map: ActMap | None, progress: Progress) -> ActMap:
        # In a causal fit, the text encoders before the diffusion model are steered for the source prompts.
        source_map = text_map if self.settings.order == "causal" else None
        encoders = TextEncoders(self.clip)
        sides: list[tuple[list[str], list[Conditioning]]] = []
        for own, act_map in zip(self._used, (source_map, None), strict=True):
            encoded = encoders.encode(own, act_map)
            # With more samples than prompts, prompts are repeated.
            sides.append((list(islice(cycle(own), self.samples)), list(islice(cycle(encoded), self.samples))))
        (source, source_conds), (target, target_conds) = sides
        samples = encoded_sides(source, target)
        fitted: list[ActMap] = []

        def use(denoiser: Denoiser) -> None:
            settings = replace(self.settings, memory_budget=denoiser.budget())
            fitted.append(fit(denoiser, *samples, settings, progress=progress))

        run_denoiser(self.model, empty, self.settings.seed, [*source_conds, *target_conds], use)
        (act_map,) = fitted
        # Each prompt once, however often it was repeated.
        return replace(act_map, record=replace(act_map.record, **prompts_recorded(*self._used)))


def fit_text(
    clip: Any, source: Sequence[str], target: Sequence[str], settings: FitSettings, progress: Progress
) -> ActMap:
    """Fit the map of the text encoders of a CLIP.

    Raises:
        FitError: there are none, or the CLIP is already steered.
    """
    encoders = TextEncoders(clip)
    if not encoders.components:
        raise FitError("This CLIP has no text encoder that Fit ACT Map can steer; set components to model.")
    return fit(encoders, source, target, settings, progress=progress)


def check_model(model: Any) -> None:
    """Refuse a MODEL on which no map can be fitted.

    Raises:
        FitError: it is already steered.
    """
    if is_steered(model):
        raise FitError("This model is already steered by a map; connect the model from before Apply ACT Steering.")
