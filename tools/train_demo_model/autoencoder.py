"""The autoencoder: pictures of 64 x 64 pixels, 16 x 8 x 8 latents, in the architecture of TAESD."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny
from torch import Tensor, nn

from .emoji import Emoji
from .training import Chance, Plan, train

CHANNELS = 16
BATCH = 16
PLAN = Plan(steps=5400, rate=1e-3, decay=0.998)
# Latents are kept near mean 0 and deviation 1, so that the flow model needs no scale and no shift.
MOMENTS = 0.01
# The decoder sees latents with noise of this deviation, since those that it will get are not exact.
NOISE = 0.05


class _Reconstruction(nn.Module):
    """The two halves with what the wrapper of diffusers leaves to the pipelines: latents are not clipped to bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.whole: Any = AutoencoderTiny(
            latent_channels=CHANNELS,
            encoder_block_out_channels=(64, 64, 64, 64),
            decoder_block_out_channels=(64, 64, 64, 64),
        )
        self.whole.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        latents = self.whole.encoder(images)
        return self.whole.decoder(latents + NOISE * noise), latents


def train_autoencoder(emoji: Emoji, work: Path) -> tuple[AutoencoderTiny, list[tuple[int, float]]]:
    """Train it on the seen pictures; returns it with its curve."""
    torch.manual_seed(0)
    seen = emoji.images[emoji.seen].contiguous(memory_format=torch.channels_last)

    def loss(model: nn.Module, chance: Chance) -> Tensor:
        rows = torch.randint(len(seen), (BATCH,), generator=chance.numbers)
        images = as_float(seen[rows])
        noise = torch.randn(BATCH, CHANNELS, 8, 8, generator=chance.numbers)
        output, latents = model(images, noise)
        output, latents = output.float(), latents.float()
        # Blurred copies weigh colours, which edges alone would leave till last.
        total = torch.zeros(())
        for _ in range(4):
            total = total + nn.functional.smooth_l1_loss(output, images, beta=0.1) * 10
            output, images = nn.functional.avg_pool2d(output, 2), nn.functional.avg_pool2d(images, 2)
        mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
        return total + MOMENTS * (mean.square().mean() + (deviation - 1).square().mean())

    average, curve = train(_Reconstruction(), loss, PLAN, work / "autoencoder.pt", "Autoencoder")
    return average.whole, curve


@torch.inference_mode()
def encode(autoencoder: AutoencoderTiny, images: Tensor) -> Tensor:
    """Latents ``[n, 16, 8, 8]`` of uint8 pictures ``[n, 3, 64, 64]``."""
    return torch.cat([autoencoder.encode(as_float(part)).latents for part in images.split(64)])


def as_float(images: Tensor) -> Tensor:
    """uint8 pictures as values from -1 to 1."""
    return images.float() / 127.5 - 1


def psnr(autoencoder: AutoencoderTiny, images: Tensor) -> float:
    """Peak signal-to-noise ratio in decibels of reconstructed uint8 pictures, over all of their values."""
    with torch.inference_mode():
        decoded = torch.cat([autoencoder.decode(part).sample for part in encode(autoencoder, images).split(64)])
    error = (decoded.clamp(-1, 1) - as_float(images)).square().mean() / 4
    return float(-10 * error.log10())
