"""The autoencoder: 64 x 64 pixels to 16 x 8 x 8 latents and back, in the architecture of TAESD."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny
from torch import Tensor, nn
from torch.nn import functional

from .emoji import SIZE, Emoji
from .training import Chance, Curve, Plan, train

CHANNELS = 16
# Whole pictures in one of the parts of a batch, or crops of as many pixels in all.
PART = 8
# Most parts hold crops: more pictures for the same time, and less white.
CROPPED = 0.75
CROP = 32
PLAN = Plan(steps=8000, decay_steps=2000, rate=1e-3, muon_rate=0.01, average=0.999, parts=2)
# Latents are kept near mean 0 and deviation 1, so that the flow model needs no scale and no shift.
MOMENTS = 0.01
# The decoder sees latents with noise of this deviation, since those that the flow model draws are not exact.
NOISE = 0.05
# Weight of decoding halved latents to halved pictures.
HALVED = 0.2
# Pixels that a picture is shifted by at most.
SHIFT = 3
# Of the pictures, how many have their colour channels in another order.
RECOLOURED = 0.1


class _Reconstruction(nn.Module):
    """Encoder and decoder without what diffusers leaves to its pipelines: latents are not clipped to bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.whole: Any = AutoencoderTiny(
            latent_channels=CHANNELS,
            encoder_block_out_channels=(64, 64, 64, 64),
            decoder_block_out_channels=(64, 64, 64, 64),
        )
        self.whole.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the pictures decoded, half of them decoded from halved latents, and the latents."""
        latents = self.whole.encoder(images)
        halved = functional.avg_pool2d(latents[::2], 2)
        return self.whole.decoder(latents + NOISE * noise), self.whole.decoder(halved), latents


def train_autoencoder(emoji: Emoji, work: Path, plan: Plan = PLAN) -> tuple[AutoencoderTiny, Curve]:
    """Train it on the seen pictures; returns it with its curve.

    The loss is the squared and absolute error at three scales. Halved latents must decode to halved pictures, which
    keeps the latents smooth and so easier to draw (EQ-VAE; Kouzelis et al., arXiv 2502.09509).
    """
    torch.manual_seed(0)
    seen = emoji.images[emoji.seen]

    def loss(model: nn.Module, chance: Chance) -> Tensor:
        size = CROP if chance.words.random() < CROPPED else SIZE
        count = PART * (SIZE // size) ** 2
        drawn = seen[torch.randint(len(seen), (count,), generator=chance.numbers)]
        images = as_float(augmented(drawn, size, chance.words)).contiguous(memory_format=torch.channels_last)
        noise = torch.randn(count, CHANNELS, size // 8, size // 8, generator=chance.numbers)
        output, halved, latents = (result.float() for result in model(images, noise))
        total = HALVED * _error(halved, functional.avg_pool2d(images[::2], 2))
        for _ in range(3):
            # Blurred copies weigh colours, which edges alone would leave till last.
            total = total + _error(output, images)
            output, images = functional.avg_pool2d(output, 2), functional.avg_pool2d(images, 2)
        mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
        return total + MOMENTS * (mean.square().mean() + (deviation - 1).square().mean())

    average, curve = train(_Reconstruction(), loss, plan, work / "autoencoder.pt", "Autoencoder")
    return average.whole, curve


def _error(output: Tensor, images: Tensor) -> Tensor:
    difference = output - images
    return 10 * difference.square().mean() + difference.abs().mean()


def augmented(images: Tensor, size: int, chance: random.Random) -> Tensor:
    """Cut a square out of each picture and mirror and recolour some of them.

    Args:
        images: uint8 ``[n, 3, height, width]``.
        size: of the square; that of whole pictures may reach up to `SHIFT` pixels over their white edge.
        chance: where the squares lie.

    Returns:
        uint8 ``[n, 3, size, size]``.
    """
    padded = functional.pad(images, (SHIFT,) * 4, value=255)
    rows: list[Tensor] = []
    for image in padded:
        x, y = (chance.randint(0, padded.shape[2] - size) for _ in range(2))
        row = image[:, y : y + size, x : x + size]
        if chance.random() < 0.5:
            row = row.flip(2)
        if chance.random() < RECOLOURED:
            row = row[chance.sample(range(3), 3)]
        rows.append(row)
    return torch.stack(rows)


@torch.inference_mode()
def encode(autoencoder: AutoencoderTiny, images: Tensor) -> Tensor:
    """Return the latents ``[n, 16, 8, 8]`` of uint8 pictures ``[n, 3, 64, 64]``, computed in bfloat16."""
    parts: list[Tensor] = []
    for part in images.split(64):
        with torch.autocast("cpu", torch.bfloat16):
            latents = autoencoder.encode(as_float(part).contiguous(memory_format=torch.channels_last)).latents
        parts.append(latents.float().contiguous())
    return torch.cat(parts)


def as_float(images: Tensor) -> Tensor:
    """Map uint8 pictures to values from -1 to 1."""
    return images.float() / 127.5 - 1


def psnr(autoencoder: AutoencoderTiny, images: Tensor) -> float:
    """Return the peak signal-to-noise ratio in dB of reconstructed uint8 pictures, over all values."""
    squares: list[Tensor] = []
    for part in images.split(64):
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            decoded = autoencoder.decode(encode(autoencoder, part)).sample.float()
        squares.append((decoded.clamp(-1, 1) - as_float(part)).square().flatten(1).mean(1) / 4)
    return float(-10 * torch.cat(squares).mean().log10())
