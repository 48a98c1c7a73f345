"""Fits a map on a MODEL from pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.utils
import torch
from torch import Tensor

from ...act_core import ActMap
from ...act_core.errors import FitError
from ...act_core.fitting import refine
from ...act_core.settings import RefineSettings
from .denoiser import Denoiser, run_denoiser
from .fitting import check_model
from .latents import empty_latent
from .picture_loss import EncodedPicture, PictureLoss
from .progress import FitProgress
from .text_encoders import Conditioning


@dataclass(frozen=True)
class ImageFit:
    """The inputs of Fit ACT Map From Images.

    Attributes:
        model: a MODEL, which is not changed.
        latents: of the pictures, ``[1, channels, ...]`` each, as a VAE makes them.
        captions: what each shows, for the record.
        conditionings: of the captions.
        settings: of the refinement.
    """

    model: Any
    latents: Sequence[Tensor]
    captions: Sequence[str]
    conditionings: Sequence[Conditioning]
    settings: RefineSettings

    def run(self) -> ActMap:
        """Fit the map.

        Raises:
            FitError: pictures or a model from which no map can be fitted.
        """
        check_model(self.model)
        check_latents(self.model, self.latents)
        fitted: list[ActMap] = []
        samples = [
            EncodedPicture(caption, latent, number)
            for number, (caption, latent) in enumerate(zip(self.captions, self.latents, strict=True))
        ]

        def use(denoiser: Denoiser) -> None:
            progress = FitProgress()
            fitted.append(refine(PictureLoss(denoiser), samples, self.settings, progress=progress, stop=_interrupted))

        run_denoiser(self.model, self.latents[0], self.settings.seed, self.conditionings, use)
        (act_map,) = fitted
        return act_map


def check_latents(model: Any, latents: Sequence[Tensor]) -> None:
    """Refuse latents that are not those of a MODEL, or from which no style can be learned.

    Raises:
        FitError: too few, all the same, of several sizes, or of another VAE.
    """
    if len(latents) < 2:
        count = "is 1 picture" if latents else "are no pictures"
        raise FitError(f"There {count}; a style needs at least two, and a dozen or more work better.")
    if any(latent.shape[0] != 1 for latent in latents):
        raise FitError("This model takes several latents for one picture or video, so it cannot learn from pictures.")
    if len({latent.shape for latent in latents}) > 1:
        raise FitError("The latents have several sizes; make all pictures the same size first.")
    if all(torch.equal(latent, latents[0]) for latent in latents[1:]):
        raise FitError("All pictures are the same; give at least two different ones.")
    wanted = model.get_model_object("latent_format").latent_channels
    if latents[0].shape[1] != wanted:
        raise FitError(
            f"These latents have {latents[0].shape[1]} channels, but the model samples {wanted}; connect the VAE that "
            "belongs to the model."
        )


def encode_images(model: Any, vae: Any, images: Sequence[Tensor], width: int, height: int) -> list[Tensor]:
    """The latents ``[1, channels, ...]`` of pictures, resized and cropped around their centre.

    Args:
        model: a MODEL, whose usual size is used where a side is 0.
        vae: its VAE.
        images: ``[height, width, channels]`` each, from 0 to 1.
        width, height: in pixels.
    """
    latent = empty_latent(model, width, height)
    ratio = vae.spacial_compression_decode()
    size = latent.shape[-1] * ratio, latent.shape[-2] * ratio
    # One at a time: a video VAE takes a batch for the frames of one video.
    return [vae.encode(_fitted(image, *size)) for image in images]


def _fitted(image: Tensor, width: int, height: int) -> Tensor:
    """A picture ``[1, height, width, 3]``; transparent pixels are put on white."""
    if image.shape[-1] == 1:
        image = image.expand(*image.shape[:-1], 3)
    colours = image[..., :3]
    if image.shape[-1] == 4:
        colours = colours * image[..., 3:] + (1 - image[..., 3:])
    rows = colours[None].movedim(-1, 1).float()
    return comfy.utils.common_upscale(rows, width, height, "lanczos", "center").movedim(1, -1)


def _interrupted() -> bool:
    """Whether the user has interrupted the run, which then goes on with the map so far."""
    if not comfy.model_management.processing_interrupted():
        return False
    comfy.model_management.interrupt_current_processing(False)
    return True
