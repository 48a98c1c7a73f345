"""The denoising loss of a MODEL on pictures, inside one sampling run of the host."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ...act_core.components import Component
from ...act_core.errors import NotDifferentiableError
from ...act_core.fitting import LossModel
from .denoiser import Denoiser, Row
from .text_encoders import Conditioning, TextEncoders

# What a row with gradients needs, relative to a row in sampling. An estimate, not a measurement.
WITH_GRADIENTS = 6
# The same where blocks are checkpointed.
_WITH_CHECKPOINTS = 3
# The very ends of a schedule, where noise levels are sentinels or zero, are left out.
_FIRST, _LAST = 0.001, 0.99
# Where in the schedule previews are made: its middle.
_PREVIEWED = 0.5


@dataclass(frozen=True, eq=False)
class EncodedPicture:
    """A sample of a refinement.

    Attributes:
        caption: what it shows; may be empty.
        latent: ``[1, channels, ...]``, as the VAE makes it.
        conditioning: number of the caption's conditioning in the sampling run.
        others: the same picture with captions that are likely, too; each step of a refinement draws one of all.
    """

    caption: str
    latent: Tensor
    conditioning: int
    others: tuple[EncodedPicture, ...] = ()


class DenoisingLoss(LossModel[EncodedPicture]):
    """A loaded diffusion model with its denoising loss.

    The loss is the squared error of the denoised latent over the squared noise level: that of the predicted noise, or
    of the velocity of a flow. Other kinds of prediction are weighted alike. Noise levels are drawn evenly over the
    sampling schedule.

    Args:
        denoiser: the loaded model.
        encoders: the text encoders of the captions, which follow the gradient, too; None to leave them alone.
        rows: pictures of a step; if their gradients do not fit into memory at once, blocks are checkpointed.

    Raises:
        NotDifferentiableError: some weights are offloaded, or the free memory does not hold the gradients of a single
            picture.
    """

    def __init__(self, denoiser: Denoiser, encoders: TextEncoders | None = None, *, rows: int = 1) -> None:
        if not denoiser.is_loaded_whole:
            # The host reuses the memory of offloaded weights before their gradient is computed.
            raise NotDifferentiableError(
                "The model does not fit into memory whole, so it cannot be differentiated",
                "use smaller pictures, a smaller model, or fit with transport",
            )
        self._denoiser = denoiser
        self._encoders = encoders
        self.patches = [*denoiser.patches, *(encoders.patches if encoders else ())]
        self.notes = tuple(encoders.notes) if encoders else ()
        self.max_rows = denoiser.rows_in_memory(WITH_GRADIENTS)
        self.checkpoints = self.max_rows < rows
        if self.checkpoints:
            self.max_rows = denoiser.rows_in_memory(_WITH_CHECKPOINTS)
        if not self.max_rows:
            raise NotDifferentiableError(
                "The free memory does not hold a single picture of this size with its gradients",
                "use smaller pictures, or fit with transport",
            )
        how = ", running blocks again for their gradients" if self.checkpoints else ""
        logging.info("ACT Steering: refining on up to %d pictures at a time%s.", self.max_rows, how)

    @property
    def components(self) -> Sequence[Component]:
        return [*(self._encoders.components if self._encoders else ()), *self._denoiser.components]

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        # A CLIP has parameters beside its text encoders.
        return {**super().modules, **({"clip": self._encoders.module} if self._encoders else {})}

    def describe(self, sample: EncodedPicture) -> str:
        return sample.caption

    def _run(self, samples: Sequence[EncodedPicture]) -> None:
        # The captions as one batch; the loss encodes each apart.
        if self._encoders:
            for batch in self._encoders.batches([sample.caption for sample in samples], len(samples)):
                batch.run()
        self._loss(samples, torch.Generator().manual_seed(0), {})

    def loss(self, samples: Sequence[EncodedPicture], generator: torch.Generator) -> Tensor:
        samples = [_drawn(sample, generator) for sample in samples]
        captions = list(dict.fromkeys(sample.caption for sample in samples)) if self._encoders else []
        encoded = self._encoders.encode_together(captions) if self._encoders else []
        return self._loss(samples, generator, dict(zip(captions, encoded, strict=True)))

    @torch.no_grad()
    def predicted(self, sample: EncodedPicture) -> Tensor:
        """What the model takes for the clean latent ``[1, channels, ...]`` of a picture with much noise."""
        captions = [sample.caption] if self._encoders else []
        encoded = self._encoders.encode(captions) if self._encoders else []
        sigma, generator = self._denoiser.sigma_at(_PREVIEWED), torch.Generator().manual_seed(0)
        row, _ = self._row(sample, sigma, generator, dict(zip(captions, encoded, strict=True)))
        return self._denoiser.denoised([_with_gradients(row)])

    def _loss(
        self, samples: Sequence[EncodedPicture], generator: torch.Generator, encoded: Mapping[str, Conditioning]
    ) -> Tensor:
        noises: dict[Row, tuple[Tensor, Tensor]] = {}
        for sample in samples:
            share = float(torch.rand((), generator=generator))
            sigma = self._denoiser.sigma_at(_FIRST + share * (_LAST - _FIRST))
            row, clean = self._row(sample, sigma, generator, encoded)
            noises[row] = clean, sigma
        errors: list[Tensor] = []
        for group in self._denoiser.grouped(list(noises), len(samples)):
            denoised = self._denoiser.denoised([_with_gradients(row) for row in group])
            clean = torch.cat([noises[row][0] for row in group])
            sigmas = torch.cat([noises[row][1] for row in group]).view(-1, *[1] * (clean.ndim - 1))
            errors.append((((denoised.float() - clean) / sigmas).square()).flatten(1).mean(1))
        return torch.cat(errors).mean()

    def _row(
        self, sample: EncodedPicture, sigma: Tensor, generator: torch.Generator, encoded: Mapping[str, Conditioning]
    ) -> tuple[Row, Tensor]:
        """A picture at a noise level, and its clean latent as the model samples it."""
        clean = self._denoiser.process_latent_in(sample.latent)
        noise = torch.randn(clean.shape, generator=generator).to(clean)
        row = self._denoiser.row(sample.conditioning, clean, noise, sigma, encoded=encoded.get(sample.caption))
        return row, clean


def _drawn(sample: EncodedPicture, generator: torch.Generator) -> EncodedPicture:
    """The picture with one of its captions; with a single one, no random number is used."""
    captioned = [sample, *sample.others]
    return captioned[int(torch.randint(len(captioned), (), generator=generator)) if sample.others else 0]


def _with_gradients(row: Row) -> Row:
    """The row with conditioning that gradients can pass by: that of the host was made in inference mode."""
    # The host's own way to make a conditioning with other values.
    conditioning = {name: cond._copy_with(_plain(cond.cond)) for name, cond in row.prepared.conditioning.items()}
    return replace(row, prepared=row.prepared._replace(conditioning=conditioning))


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone() if value.is_inference() else value
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(item) for item in value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value
