"""Pictures in a loaded diffusion model at any noise level, inside one sampling run of the host."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from ...act_core.components import Component
from ...act_core.errors import FitError
from ...act_core.fitting import FitModel, LevelModel, MicroBatch
from .denoiser import Denoiser, Row
from .denoising_loss import EncodedPicture


class LevelDenoiser(LevelModel[EncodedPicture]):
    """A loaded diffusion model at any noise level. Both sides of a fit must be given.

    Args:
        denoiser: the loaded model.
        notes: on how the pictures were made, for the record.
    """

    def __init__(self, denoiser: Denoiser, notes: Sequence[str]) -> None:
        self._denoiser = denoiser
        self._notes = notes

    def at_level(self, level: float) -> FitModel[EncodedPicture]:
        return _NoisyPictures(self._denoiser, self._denoiser.sigma_of(level), self._notes)

    def check_samples(self, samples: Sequence[EncodedPicture]) -> None:
        """Nothing: `check_latents` has done so before the model was loaded."""


class _NoisyPictures(FitModel[EncodedPicture]):
    """Pictures at one noise level; picture n of either side gets the same noise."""

    def __init__(self, denoiser: Denoiser, sigma: Tensor, notes: Sequence[str]) -> None:
        self._denoiser = denoiser
        self._sigma = sigma
        self.patches = denoiser.patches
        self.notes = notes
        self.replicas = denoiser.replicas

    @property
    def components(self) -> Sequence[Component]:
        return self._denoiser.components

    def describe(self, sample: EncodedPicture) -> str:
        return sample.caption

    def batch_key(self, sample: EncodedPicture) -> Hashable:
        return self._denoiser.key_of(sample.conditioning)

    def check(self, source: Sequence[EncodedPicture], target: Sequence[EncodedPicture]) -> None:
        pairs = zip(source, target, strict=False)
        if len(source) == len(target) and all(torch.equal(one.latent, other.latent) for one, other in pairs):
            raise FitError("The source pictures and the target pictures are the same; change one of the two.")

    def batches(self, samples: Sequence[EncodedPicture], size: int) -> list[MicroBatch]:
        return self.some_batches(samples, range(len(samples)), size)

    def some_batches(self, samples: Sequence[EncodedPicture], numbers: Sequence[int], size: int) -> list[MicroBatch]:
        return self._denoiser.micro_batches([self._row(number, samples[number]) for number in numbers], size)

    def _row(self, number: int, sample: EncodedPicture) -> Row:
        clean = self._denoiser.process_latent_in(sample.latent)
        return self._denoiser.row(sample.conditioning, clean, self._denoiser.noise(number), self._sigma)
