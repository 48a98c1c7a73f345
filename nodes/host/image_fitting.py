"""Fits a map on a MODEL from pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import comfy.model_management
import comfy.utils
import torch
from torch import Tensor

from ...act_core import ActMap
from ...act_core.errors import FitError
from ...act_core.fitting import fit_pictures, refine
from ...act_core.fitting.pictures import drawn_note
from ...act_core.naming import named_note
from ...act_core.settings import FitSettings, RefineSettings
from .denoiser import Denoiser, run_denoiser
from .denoising_loss import WITH_GRADIENTS, DenoisingLoss, EncodedPicture
from .drawing import drawn_latents
from .latents import empty_latent
from .naming import EncodedWords, named
from .noisy_pictures import LevelDenoiser
from .progress import FitProgress, StepProgress
from .refinement_progress import RefinementProgress
from .text_encoders import Conditioning, TextEncoders
from .training import training

# Parameters of text encoders that are refined: above those of CLIP, below those of T5-XXL and language models.
_MAX_ENCODERS = 1_000_000_000


@dataclass(frozen=True)
class EncodedPictures:
    """Pictures as the model needs them.

    Attributes:
        latents: ``[1, channels, ...]`` each, as a VAE makes them.
        captions: what each shows, for the record; empty texts if they have none.
        conditionings: of the captions.
    """

    latents: Sequence[Tensor]
    captions: Sequence[str]
    conditionings: Sequence[Conditioning]

    def samples(self, first: int = 0) -> list[EncodedPicture]:
        """A sample for each, whose conditionings are numbered from `first`."""
        pairs = zip(self.captions, self.latents, strict=True)
        return [EncodedPicture(caption, latent, first + number) for number, (caption, latent) in enumerate(pairs)]


@dataclass(frozen=True)
class ImageFit:
    """The inputs of Fit ACT Map From Images, for a refinement.

    Attributes:
        model: a MODEL, which is not changed.
        target: pictures in the style.
        settings: of the refinement.
        clip: the CLIP that reads the captions; None if the text encoders are left alone.
        start: a map that it starts from, if any.
        words: from which the model itself chooses captions for the pictures, which then have none; empty to leave them
            without.
    """

    model: Any
    target: EncodedPictures
    settings: RefineSettings
    clip: Any | None = None
    start: ActMap | None = None
    words: EncodedWords = field(default_factory=EncodedWords)

    def run(self) -> ActMap:
        """Refine the map.

        Raises:
            FitError: pictures or a model from which no map can be fitted.
        """
        fitted: list[ActMap] = []

        def use(denoiser: Denoiser) -> None:
            interrupt = comfy.model_management.InterruptProcessingException
            encoders = self._encoders()
            samples = self.target.samples()
            rows = min(self.settings.batch_size, len(samples))
            loss = DenoisingLoss(denoiser, encoders, rows=rows)
            with training([encoders.module] if encoders else []):
                if self.words.words:
                    samples = self._named(denoiser, loss, samples)
                progress = RefinementProgress(self.model, loss, samples[0], self.settings.steps)
                fitted.append(
                    refine(loss, samples, self.settings, start=self.start, progress=progress, keep_on=(interrupt,))
                )

        # An empty latent: some models take the latent of a run as a condition.
        empty = torch.zeros_like(self.target.latents[0])
        conditionings = [*self.target.conditionings, *self.words.conditionings]
        run_denoiser(self.model, empty, self.settings.seed, conditionings, use, reserve=WITH_GRADIENTS)
        (act_map,) = fitted
        return act_map

    def _named(
        self, denoiser: Denoiser, loss: DenoisingLoss, samples: Sequence[EncodedPicture]
    ) -> list[EncodedPicture]:
        """The pictures with captions that the model finds."""
        # That takes a while, so find out before whether a map can be refined at all.
        refine(loss, samples, replace(self.settings, steps=1, batch_size=1), start=self.start)
        found = named(denoiser, samples, self.words, len(samples))
        loss.notes = (*loss.notes, named_note(len(self.words.words)))
        return found

    def _encoders(self) -> TextEncoders | None:
        """The text encoders that are refined, too: not those of a size that takes longer than the diffusion model."""
        if self.clip is None:
            return None
        encoders = TextEncoders(self.clip)
        if not encoders.components or sum(p.numel() for p in encoders.module.parameters()) > _MAX_ENCODERS:
            return None
        encoders.leave_out_unused([*self.target.captions, *self.words.words])
        return encoders


@dataclass(frozen=True)
class ImageTransport:
    """The inputs of Fit ACT Map From Images, for a transport.

    Attributes:
        model: a MODEL, which is not changed.
        target: pictures in the style.
        source: pictures without it; if None, the model draws them from the captions of the target.
        levels: noise levels.
        settings: of the fit.
    """

    model: Any
    target: EncodedPictures
    source: EncodedPictures | None
    levels: Sequence[float]
    settings: FitSettings

    def run(self) -> ActMap:
        """Fit the map.

        Raises:
            FitError: pictures or a model from which no map can be fitted.
        """
        target, source, notes = self.target, self.source, ()
        empty, seed = torch.zeros_like(target.latents[0]), self.settings.seed
        if source is None:
            latents = drawn_latents(self.model, empty, target.conditionings, seed)
            source = replace(target, latents=latents)
            captioned = any(target.captions) or len({id(cond) for cond, _ in target.conditionings}) > 1
            notes = (drawn_note(captioned=captioned),)
        sources, targets = source.samples(), target.samples(len(source.latents))
        progress = FitProgress()
        fitted: list[ActMap] = []

        def use(denoiser: Denoiser) -> None:
            settings = replace(self.settings, memory_budget=denoiser.budget())
            model = LevelDenoiser(denoiser, notes)
            fitted.append(fit_pictures(model, targets, sources, settings, levels=self.levels, progress=progress))

        run_denoiser(self.model, empty, seed, [*source.conditionings, *target.conditionings], use)
        (act_map,) = fitted
        return act_map


def rows_of(model: Any, latent: Any) -> list[Tensor]:
    """The latents ``[1, channels, ...]`` in a latent of the graph; those of single frames if the model has frames.

    Raises:
        FitError: it is nested, as for video with sound.
    """
    samples = latent["samples"]
    if not isinstance(samples, Tensor):
        raise FitError("These latents have several parts, such as video and sound; connect latents of pictures.")
    if samples.ndim == getattr(model.get_model_object("latent_format"), "latent_dimensions", 2) + 1:
        samples = samples.unsqueeze(2)
    return list(samples.split(1))


def check_latents(model: Any, latents: Sequence[Tensor]) -> None:
    """Refuse latents that are not those of a MODEL, or from which no style can be learned.

    Raises:
        FitError: too few, all the same, of several sizes, not finite, or of another VAE.
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
    if not all(bool(latent.isfinite().all()) for latent in latents):
        raise FitError("Some latents are not finite; encode the pictures again, with a VAE in a wider dtype.")
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
    progress = StepProgress(len(images))
    latents: list[Tensor] = []
    for image in images:
        # One at a time: a video VAE takes a batch for the frames of one video.
        latents.append(vae.encode(_fitted(image, *size)))
        progress()
    return latents


def _fitted(image: Tensor, width: int, height: int) -> Tensor:
    """A picture ``[1, height, width, 3]``; transparent pixels are put on white.

    Raises:
        FitError: it is so thin that nothing is left of it after cropping, or has another number of channels.
    """
    rows, columns, channels = image.shape
    if min(rows, columns) * max(width, height) < max(rows, columns):
        raise FitError(f"A picture of {columns} x {rows} pixels is too thin to be cropped; leave it out.")
    if channels not in (1, 3, 4):
        raise FitError(f"A picture has {channels} channels; connect pictures in grey, RGB or RGBA.")
    if channels == 1:
        image = image.expand(rows, columns, 3)
    colours = image[..., :3]
    if image.shape[-1] == 4:
        colours = colours * image[..., 3:] + (1 - image[..., 3:])
    rows = colours[None].movedim(-1, 1).float()
    return comfy.utils.common_upscale(rows, width, height, "lanczos", "center").movedim(1, -1)
