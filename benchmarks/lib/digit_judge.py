"""A classifier of handwritten digits that is trained on other people's handwriting than the model that it judges."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

TRAINING_STEPS, BATCH, RATE = 700, 128, 2e-3
# Width and height of what the classifier sees, and of the pictures that it is trained on.
SIDE, COARSE = 16, 8
INK = 0.3
TESTED = 300


class DigitJudge:
    """Recognises digits; a small network, trained on the 8 x 8 pictures of scikit-learn.

    Attributes:
        accuracy: on pictures of scikit-learn that it was not trained on.
    """

    def __init__(self) -> None:
        from sklearn.datasets import load_digits

        data: Any = load_digits()
        images = _enlarged(torch.tensor(data.images / 16, dtype=torch.float32)[:, None])
        digits = torch.tensor(data.target)
        generator = torch.Generator().manual_seed(0)
        order = torch.randperm(len(images), generator=generator)
        tested, trained = order[:TESTED], order[TESTED:]
        torch.manual_seed(0)
        self._net = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(64 * (SIDE // 4) ** 2, 10),
        )
        optimizer = torch.optim.AdamW(self._net.parameters(), RATE, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=TRAINING_STEPS)
        for _ in range(TRAINING_STEPS):
            batch = trained[torch.randint(len(trained), (BATCH,), generator=generator)]
            logits = self._net(_varied(images[batch], generator))
            optimizer.zero_grad()
            functional.cross_entropy(logits, digits[batch], label_smoothing=0.05).backward()
            optimizer.step()
            schedule.step()
        self._net.eval()
        with torch.inference_mode():
            found = self._net(images[tested]).argmax(1)
        self.accuracy = float((found == digits[tested]).float().mean())

    @torch.inference_mode()
    def ask(self, images: Tensor) -> Tensor:
        """Probabilities of the digits ``[n, 10]`` of pictures ``[n, 1, height, width]`` from 0 to 1."""
        return self._net(torch.stack([_framed(image[0]) for image in images])).softmax(1)


def _varied(images: Tensor, generator: torch.Generator) -> Tensor:
    """Slanted, turned, stretched, moved, thinner and thicker: the digits to judge are slanted more, and thinner."""

    def between(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(len(images), generator=generator)

    width, height, slant, angle = between(0.75, 1.3), between(0.85, 1.2), between(-0.1, 0.7), between(-0.25, 0.25)
    rows = [
        torch.stack([angle.cos() / width, (slant - angle.sin()) / width, between(-0.15, 0.15)], dim=1),
        torch.stack([angle.sin() / height, angle.cos() / height, between(-0.15, 0.15)], dim=1),
    ]
    places = functional.affine_grid(torch.stack(rows, dim=1), list(images.shape), align_corners=False)
    moved = functional.grid_sample(images, places, align_corners=False)
    return moved.clamp(0, 1) ** between(0.5, 2)[:, None, None, None]


def _framed(image: Tensor) -> Tensor:
    """The smallest square around the ink, as coarse as the pictures of scikit-learn, ``[1, SIDE, SIDE]``."""
    ink = image > INK
    if not ink.any():
        return torch.zeros(1, SIDE, SIDE)
    (top, *_, bottom), (left, *_, right) = (ink.any(axis).nonzero().flatten().repeat(2).sort()[0] for axis in (1, 0))
    image = image[top : bottom + 1, left : right + 1]
    height, width = image.shape
    side = max(height, width)
    across, down = side - width, side - height
    image = functional.pad(image, (across // 2, across - across // 2, down // 2, down - down // 2))
    coarse = functional.interpolate(image[None, None], (COARSE, COARSE), mode="bilinear", antialias=True)
    return _enlarged(coarse)[0]


def _enlarged(images: Tensor) -> Tensor:
    return functional.interpolate(images, (SIDE, SIDE), mode="bilinear")
