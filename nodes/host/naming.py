"""Names pictures without captions, inside one sampling run of the host; see `act_core.naming`."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import comfy.model_management
import torch
from torch import Tensor

from ...act_core.naming import LEVEL, Likelihoods
from .denoiser import Denoiser
from .denoising_loss import EncodedPicture
from .progress import StepProgress
from .text_encoders import Conditioning, TextEncoders

# Words that the text encoders read at a time, and rows of the diffusion model.
_ENCODED_TOGETHER = 16
_NAMED_TOGETHER = 32
# Share of the free main memory that the conditionings of all words may take.
_SHARE = 0.5


@dataclass(frozen=True)
class EncodedWords:
    """Words that may become captions, with their conditionings."""

    words: Sequence[str] = ()
    conditionings: Sequence[Conditioning] = ()


def encoded_words(clip: Any, words: Sequence[str]) -> EncodedWords:
    """Words as a CLIP encodes them; none, with a warning, if main memory does not hold the conditionings of all."""
    encoders = TextEncoders(clip)
    parts = list(_parts(range(len(words)), _ENCODED_TOGETHER))
    progress = StepProgress(len(parts))
    found: list[Conditioning] = []
    for part in parts:
        found += encoders.encode_together([words[number] for number in part])
        remaining = (len(words) - len(found)) * _bytes_of(found[0])
        if remaining > _SHARE * comfy.model_management.get_free_memory(torch.device("cpu")):
            logging.warning(
                "ACT Steering: the pictures stay without captions, since the memory does not hold what the text "
                "encoders return for %d words.",
                len(words),
            )
            return EncodedWords()
        progress()
    return EncodedWords(words, found)


@torch.no_grad()
def named(
    denoiser: Denoiser, pictures: Sequence[EncodedPicture], words: EncodedWords, first: int
) -> list[EncodedPicture]:
    """Caption pictures with the words that are likeliest in the eyes of the model.

    Args:
        denoiser: the loaded model.
        pictures: with the conditioning of the empty caption.
        words: that may become captions; at least one.
        first: number of the first one's conditioning in the sampling run.
    """
    together = min(_NAMED_TOGETHER, max(1, denoiser.rows_in_memory(1)))
    sigma, noise = denoiser.sigma_of(LEVEL), denoiser.noise(0)
    cleans = [denoiser.process_latent_in(picture.latent) for picture in pictures]

    def denoised(clean: Tensor, conditionings: Sequence[int]) -> Tensor:
        rows = [denoiser.row(number, clean, noise, sigma) for number in conditionings]
        # Words with other numbers of tokens may not share a batch.
        found = {
            row: latent
            for group in denoiser.grouped(rows, together)
            for row, latent in zip(group, denoiser.denoised(group), strict=True)
        }
        return torch.stack([found[row] for row in rows])

    likelihoods = [
        Likelihoods(denoised(clean, [picture.conditioning]), clean)
        for picture, clean in zip(pictures, cleans, strict=True)
    ]
    parts = list(_parts(range(first, first + len(words.words)), together))
    progress = StepProgress(len(parts) * len(pictures))
    for part in parts:
        for clean, own in zip(cleans, likelihoods, strict=True):
            own.add(denoised(clean, part))
            progress()

    def captioned(picture: EncodedPicture, numbers: Sequence[int]) -> EncodedPicture:
        best, *others = [
            replace(picture, caption=words.words[number], conditioning=first + number) for number in numbers
        ]
        return replace(best, others=tuple(others))

    return [captioned(picture, own.likeliest()) for picture, own in zip(pictures, likelihoods, strict=True)]


def _parts(numbers: range, size: int) -> Iterator[range]:
    for at in range(0, len(numbers), size):
        yield numbers[at : at + size]


def _bytes_of(conditioning: Conditioning) -> int:
    cond, extra = conditioning
    return sum(value.nbytes for value in (cond, *extra.values()) if isinstance(value, Tensor))
