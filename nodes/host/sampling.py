"""Samples the same noise at several strengths of a map."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import comfy.sample
import comfy.samplers
import comfy.utils
from torch import Tensor

from ...act_core import ActMap
from ...act_core.settings import Branch
from .latents import fixed_latent
from .steering import Applied, Window, steered


def samplers() -> list[str]:
    """Names of the host's samplers."""
    return comfy.samplers.KSampler.SAMPLERS


def schedulers() -> list[str]:
    """Names of the host's schedulers."""
    return comfy.samplers.KSampler.SCHEDULERS


class StrengthSweep:
    """The inputs of ACT Strength Sweep, and its run.

    Args:
        model: a MODEL, without the map.
        act_map: the map.
        positive, negative: conditioning.
        latent: an empty latent; its batch is sampled at each strength.
        clip: a CLIP whose text encoders are steered too, or None.
        prompt: the positive prompt that it encodes.
        branch: see `ModelSteering`.
        calibrated: whether strengths are positions on the even scale of the map's calibration.

    Attributes:
        report: after `run`, a line for each strength, notes and warnings.
    """

    def __init__(
        self,
        model: Any,
        act_map: ActMap,
        positive: Any,
        negative: Any,
        latent: dict[str, Any],
        clip: Any | None,
        prompt: str,
        *,
        branch: Branch = "positive",
        calibrated: bool = False,
    ) -> None:
        self._model, self._clip, self._act_map = model, clip, act_map
        self._positive, self._negative, self._prompt = positive, negative, prompt
        self._latent = latent
        self._branch: Branch = branch
        self._calibrated = calibrated
        self.report = ""

    def run(
        self, strengths: Sequence[float], seed: int, steps: int, cfg: float, sampler_name: str, scheduler: str
    ) -> Iterator[Tensor]:
        """The sampled latents ``[pictures, channels, ...]`` at each strength; settings as of KSampler.

        Raises:
            MapError: the map does not fit, or a strength is not a number.
        """
        empty = fixed_latent(self._model, self._latent)
        noise = comfy.sample.prepare_noise(empty, seed, self._latent.get("batch_index"))
        bar = comfy.utils.ProgressBar(len(strengths) * steps)
        lines: list[str] = []
        for column, strength in enumerate(strengths):
            window, calibrated = Window(), self._calibrated
            applied = steered(
                self._model, self._clip, self._act_map, strength, strength, window, self._branch, calibrated=calibrated
            )
            positive = self._positive
            if self._clip is not None:
                positive = applied.clip.encode_from_tokens_scheduled(applied.clip.tokenize(self._prompt))

            def step(number: int, *_: object, column: int = column) -> None:
                bar.update_absolute(column * steps + number + 1)

            yield comfy.sample.sample(
                applied.model,
                noise,
                steps,
                cfg,
                sampler_name,
                scheduler,
                positive,
                self._negative,
                empty,
                seed=seed,
                callback=step,
                disable_pbar=True,
            )
            lines.append(f"{strength:g}: {_outcome(applied) if strength else 'unsteered.'}")
            self.report = "\n".join([*lines, *_remarks(applied)])


def _outcome(applied: Applied) -> str:
    parts = [applied.on_model.outcome] if applied.on_model else []
    parts += [f"text encoders: {applied.on_clip.coverage}."] if applied.on_clip else []
    return " ".join(parts)


def _remarks(applied: Applied) -> list[str]:
    steerings = [applied.on_model.on(applied.model)] if applied.on_model else []
    steerings += [applied.on_clip] if applied.on_clip else []
    return [remark for steering in steerings for remark in (*steering.notes, *steering.warnings)]
