"""A diffusers pipeline on pictures: its denoising loss for `refine`, and its activations for `fit_pictures`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..components import DIFFUSION_MODEL, Component
from ..errors import FitError
from ..fitting import LevelModel, LossModel, Progress
from ..image_files import Picture, as_values, check_pictures
from ..naming import LEVEL, Likelihoods, named_note, subjects
from .diffusers import DiffusersModel
from .noisy_pictures import NoisyPictures
from .pipelines import denoiser, uncompiled
from .schedules import counts, schedule_of

# Words that are put to the model at a time.
_NAMED_TOGETHER = 32
# Names that the noisy latents have in diffusion models.
LATENTS = ("hidden_states", "sample")
# How source pictures are drawn: so many at a time, in so many steps.
_DRAWN_TOGETHER = 8
_DRAWING_STEPS = 12


class PictureModel(LossModel[Picture], LevelModel[Picture]):
    """A text-to-image pipeline with the loss of its diffusion model on pictures and their captions.

    The loss is the squared error of what the model predicts: the noise, the velocity, or the flow. Noise levels are
    drawn as often as a sampler visits them. Text encoders follow the gradient, too, where they are components.

    Args:
        model: the pipeline, such as Stable Diffusion 1 to 3 or SDXL.

    Raises:
        FitError: the scheduler is of an unknown kind. The first loss raises it for a pipeline that packs its latents or
            counts time in its own way, and for a VAE that returns values that are not finite.

    Example::

        act_map = refine(PictureModel(DiffusersModel.from_pretrained("demo_model")), read_pictures("my_style"))
    """

    def __init__(self, model: DiffusersModel) -> None:
        self._model = model
        self._pipeline = model.pipeline
        self._denoiser: Any = uncompiled(denoiser(self._pipeline))
        schedule = schedule_of(self._pipeline)
        if schedule is None:
            raise FitError(
                f"The loss of a pipeline with a {type(self._pipeline.scheduler).__name__} is not known, so it cannot "
                "learn from pictures; fit from prompts."
            )
        self._schedule = schedule
        self.notes = model.notes
        self._latents: WeakKeyDictionary[Picture, Tensor] = WeakKeyDictionary()

    @property
    def components(self) -> list[Component]:
        return self._model.components

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        return {**self._model.modules, "vae": self._pipeline.vae}

    def describe(self, sample: Picture) -> str:
        return sample.caption

    def check_samples(self, samples: Sequence[Picture]) -> None:
        check_pictures(list(samples))

    def loss(self, samples: Sequence[Picture], generator: torch.Generator) -> Tensor:
        call, clean = self._prepared(samples, [_drawn_caption(sample, generator) for sample in samples])
        noise = torch.randn(clean.shape, generator=generator).to(clean)
        level = self._schedule.sampled(torch.rand(len(samples), generator=generator))
        output, wanted = self._denoised(call, clean, noise, level)
        return nn.functional.mse_loss(_prediction(output, wanted).float(), wanted.float())

    def at_level(self, level: float) -> NoisyPictures:
        def run(pictures: Sequence[Picture], seeds: Sequence[int]) -> None:
            call, clean = self._prepared(pictures, [picture.caption for picture in pictures])
            noises = [torch.randn(clean.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in seeds]
            self._denoised(call, clean, torch.stack(noises).to(clean), torch.full([len(pictures)], level))

        # Text encoders see no pictures.
        parts = [part for part in self.components if part.name == DIFFUSION_MODEL]
        return NoisyPictures(self._model, parts, self.modules, run)

    def drawn(self, samples: Sequence[Picture], seed: int) -> list[Picture]:
        captions = [sample.caption for sample in samples]
        found: list[Picture] = []
        for at in range(0, len(captions), _DRAWN_TOGETHER):
            part = captions[at : at + _DRAWN_TOGETHER]
            images = self._model.generate(part, seed=seed + at, steps=_DRAWING_STEPS)
            found += [Picture(image, caption) for image, caption in zip(images, part, strict=True)]
        return found

    @torch.no_grad()
    def named(
        self,
        pictures: Sequence[Picture],
        words: Sequence[str] | None = None,
        progress: Progress = lambda done, total, word: None,
    ) -> list[Picture]:
        """Caption the pictures that have no caption, with the words that are likeliest in the eyes of the model.

        Args:
            pictures: those with captions are returned as they are.
            words: that may become captions; by default `act_core.naming.subjects`.
            progress: called as ``progress(done, total, word)``; an exception that it raises ends the search.

        Raises:
            FitError: the pipeline cannot be used, see the class, or `words` is empty.

        Example::

            model.named(read_pictures("my_style"))
        """
        known = list(dict.fromkeys(subjects() if words is None else words))
        plain = [picture for picture in pictures if not picture.caption]
        if not plain:
            return list(pictures)
        if not known:
            raise FitError("There are no words to name pictures with; give some.")
        found = [Likelihoods(*self._predicted(self._first([""]), picture)) for picture in plain]
        for at in range(0, len(known), _NAMED_TOGETHER):
            part = known[at : at + _NAMED_TOGETHER]
            call = self._first(part)
            for picture, likelihoods in zip(plain, found, strict=True):
                likelihoods.add(self._predicted(call, picture)[0])
            progress(at + len(part), len(known), part[-1])
        self.notes = (*self.notes, named_note(len(known)))
        captions = {
            picture: [known[number] for number in likelihoods.likeliest()]
            for picture, likelihoods in zip(plain, found, strict=True)
        }
        return [self._captioned(picture, captions[picture]) if picture in captions else picture for picture in pictures]

    def _captioned(self, picture: Picture, captions: Sequence[str]) -> Picture:
        captioned = Picture(picture.image, captions[0], tuple(captions[1:]))
        self._latents[captioned] = self._latents[picture]
        return captioned

    def _predicted(self, call: Mapping[str, Any], picture: Picture) -> tuple[Tensor, Tensor]:
        """What the model predicts ``[rows, ...]`` for a picture at the level of naming, and what it should predict."""
        given = call[self._input(call)]
        clean = self._latent(picture, given)[None].to(given).expand_as(given)
        noise = torch.randn(clean.shape[1:], generator=torch.Generator().manual_seed(0)).to(clean).expand_as(clean)
        output, wanted = self._denoised(call, clean, noise, torch.full([len(given)], LEVEL))
        return _prediction(output, wanted), wanted[0]

    def _first(self, captions: Sequence[str]) -> dict[str, Any]:
        """What the diffusion model gets first for captions."""
        return dict(self._model.first_call(captions))

    def _prepared(self, samples: Sequence[Picture], captions: Sequence[str]) -> tuple[dict[str, Any], Tensor]:
        """What the diffusion model gets for the captions of pictures, and the clean latents ``[rows, ...]``."""
        call = self._first(captions)
        given = call[self._input(call)]
        return call, torch.stack([self._latent(sample, given) for sample in samples]).to(given)

    def _denoised(self, call: Mapping[str, Any], clean: Tensor, noise: Tensor, level: Tensor) -> tuple[Any, Tensor]:
        """What the diffusion model returns at noise levels ``[rows]``, and what it should predict."""
        noisy, wanted, time = self._schedule.at(level, clean, noise)
        given = {**call, self._input(call): noisy, "timestep": time.to(call["timestep"])}
        return self._denoiser(**given), wanted

    def _input(self, call: Mapping[str, Any]) -> str:
        """The name of the noisy latents among the arguments of a call."""
        name = next((name for name in LATENTS if name in call), "")
        given = call.get(name)
        kind = type(self._pipeline).__name__
        if not isinstance(given, Tensor) or given.ndim != 4 or "timestep" not in call:
            raise FitError(
                f"A {kind} packs its latents, so pictures cannot be put in; fit from prompts, or use Fit ACT Map From "
                "Images in ComfyUI."
            )
        # Others count time from 0 to 1, some of them backwards.
        if not counts(self._schedule, call["timestep"]):
            raise FitError(f"A {kind} counts time in its own way, so its loss is not known; fit from prompts.")
        return name

    def _latent(self, picture: Picture, like: Tensor) -> Tensor:
        """The latent of a picture, ``[channels, height, width]``, encoded once."""
        if picture not in self._latents:
            vae: Any = self._pipeline.vae
            scale = int(self._pipeline.vae_scale_factor)
            values = as_values(picture.image, like.shape[-1] * scale, like.shape[-2] * scale)
            with torch.no_grad():
                encoded = vae.encode(torch.from_numpy(values)[None].to(vae.device, vae.dtype))
            latent = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
            if not bool(latent.isfinite().all()):
                raise FitError("The VAE returns values that are not finite; load the pipeline in float32 or bfloat16.")
            shift = getattr(vae.config, "shift_factor", None) or 0.0
            self._latents[picture] = ((latent - shift) * vae.config.scaling_factor)[0]
        return self._latents[picture]


def _drawn_caption(picture: Picture, generator: torch.Generator) -> str:
    """One of the captions of a picture; with a single one, no random number is used."""
    captions = [picture.caption, *picture.others]
    return captions[int(torch.randint(len(captions), (), generator=generator)) if picture.others else 0]


def _prediction(output: Any, wanted: Tensor) -> Tensor:
    """What a model predicts, as in `wanted`: some also predict a variance, in further channels."""
    predicted = cast("Tensor", output[0] if isinstance(output, tuple) else output.sample)
    return predicted[:, : wanted.shape[1]]
