"""The judge of the demo model's pictures: small networks that were trained on real emoji of other concepts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional

from act_core.demo.pictures import demo_model
from tools.train_demo_model.emoji import STYLES, Emoji, load_emoji

from .models import DATA, ROOT, stop

TRAINING = ROOT / "tools" / "train_demo_model"
WEIGHTS = DATA / "judge.safetensors"
AUTOENCODER = "autoencoder_sha256"
FEATURES = 96


def load_pictures() -> Emoji:
    """The emoji that the demo model was trained on, and those that were held out."""
    (TRAINING / "work").mkdir(exist_ok=True)
    try:
        return load_emoji(TRAINING / "node_modules", TRAINING / "work" / "emoji.npz")
    except FileNotFoundError as error:
        stop(f"{error.filename} is missing; run 'npm install --prefix {TRAINING.relative_to(ROOT)}' first.")


def as_tensor(images: Sequence[Image]) -> Tensor:
    """Pictures as uint8 ``[n, 3, height, width]``."""
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)


class Judge(nn.Module):
    """Recognises the style of a picture, and measures how similar the contents of two pictures are.

    Two networks: one learns styles from labels, the other learns features by recognising the same concept in another
    style. `train_judge` trains both on three in four concepts (`is_training_concept`). They judge the others only.
    """

    def __init__(self, styles: int) -> None:
        super().__init__()
        widths = (32, 64, 96, 128)
        self.style = nn.Sequential(
            nn.Conv2d(3, widths[0], 3, padding=1),
            *(_HalvingBlock(narrow, wide) for narrow, wide in pairwise(widths)),
            nn.BatchNorm2d(widths[-1]),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(widths[-1], styles),
        )
        widths = (3, 32, 64, 128, 192)
        layers: list[nn.Module] = []
        for narrow, wide in pairwise(widths):
            layers += [nn.Conv2d(narrow, wide, 3, stride=2, padding=1), nn.GroupNorm(8, wide), nn.ReLU()]
        last = nn.Conv2d(widths[-1], widths[-1], 3, padding=1), nn.ReLU(), nn.Flatten()
        self.features = nn.Sequential(*layers, *last, nn.Linear(widths[-1] * 16, FEATURES))

    @torch.inference_mode()
    def ask(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities of the styles ``[n, styles]`` and features ``[n, 96]`` of length 1, of uint8 pictures."""
        parts = [as_input(part) for part in images.split(256)]
        return (
            torch.cat([self.style(part).softmax(1) for part in parts]),
            torch.cat([functional.normalize(self.features(part), dim=1) for part in parts]),
        )

    def accuracy(self, pictures: Emoji) -> float:
        """Share of the real emoji of held-out concepts whose style it recognises."""
        held_out = [concept for concept in range(pictures.images.shape[1]) if not is_training_concept(concept)]
        right = [self.ask(images[held_out])[0].argmax(1) == style for style, images in enumerate(pictures.images)]
        return float(torch.stack(right).double().mean())


class _HalvingBlock(nn.Module):
    """A residual block that halves height and width."""

    def __init__(self, narrow: int, wide: int) -> None:
        super().__init__()
        self.path = nn.Sequential(
            nn.BatchNorm2d(narrow),
            nn.ReLU(),
            nn.Conv2d(narrow, wide, 3, stride=2, padding=1),
            nn.BatchNorm2d(wide),
            nn.ReLU(),
            nn.Conv2d(wide, wide, 3, padding=1),
        )
        self.skip = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(narrow, wide, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.skip(x) + self.path(x)


def as_input(images: Tensor) -> Tensor:
    """uint8 pictures, scaled to the range from -1 to 1."""
    return images.float() / 127.5 - 1


def is_training_concept(concept: int) -> bool:
    """Whether the judge is trained on a concept, and so must not judge pictures of it."""
    return concept % 4 != 0


def half_precision() -> torch.autocast:
    """Bfloat16 where the processor has instructions for it; elsewhere it is slower than float32."""
    return torch.autocast("cpu", torch.bfloat16, enabled=torch.ops.mkldnn._is_mkldnn_bf16_supported())


@torch.inference_mode()
def through_autoencoder(images: Tensor) -> Tensor:
    """Encode and decode uint8 pictures ``[n, 3, 64, 64]`` with the demo model."""
    autoencoder: Any = demo_model().pipeline.vae.to(memory_format=torch.channels_last)
    parts: list[Tensor] = []
    for part in images.split(64):
        with half_precision():
            latents = autoencoder.encode(as_input(part).contiguous(memory_format=torch.channels_last)).latents
            decoded = autoencoder.decode(latents).sample.float()
        parts.append(((decoded.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8))
    return torch.cat(parts)


def load_judge() -> Judge:
    """The judge, which was trained once for the autoencoder of the demo model."""
    judge = Judge(len(STYLES))
    with safe_open(WEIGHTS, "pt") as file:
        if file.metadata()[AUTOENCODER] != autoencoder_sha256():
            stop("The judge was trained for another demo model; run 'python -m benchmarks.lib.train_judge'.")
        judge.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    return judge.eval()


def autoencoder_sha256() -> str:
    """Of the autoencoder of the demo model, through which the judge has seen pictures."""
    return hashlib.sha256(
        (ROOT / "demo_model" / "vae" / "diffusion_pytorch_model.safetensors").read_bytes()
    ).hexdigest()
