"""Who judges the pictures of the demo model: small networks that have seen real emoji of other concepts only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor, nn
from torch.nn import functional

from act_core.demo.pictures import demo_model
from tools.train_demo_model.emoji import Emoji, load_emoji

from .common import ROOT, stop

TOOL = ROOT / "tools" / "train_demo_model"
STYLE_STEPS, STYLE_BATCH = 1500, 160
FEATURE_STEPS = 900
CONCEPTS = 48
FEATURES = 96


def emoji() -> Emoji:
    """The pictures that the demo model was trained on, and those that were held out."""
    (TOOL / "work").mkdir(exist_ok=True)
    try:
        return load_emoji(TOOL / "node_modules", TOOL / "work" / "emoji.npz")
    except FileNotFoundError as error:
        stop(f"{error.filename} is missing; run 'npm install --prefix {TOOL}' first.")


def as_tensor(images: Sequence[Image]) -> Tensor:
    """Pictures as uint8 ``[n, 3, height, width]``."""
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)


class Judge(nn.Module):
    """Tells the style of a picture, and how alike what two pictures show is.

    Two networks: one learns the style by its label, the other its features by recognising the same concept in another
    style. Both learn from three in four concepts (`studied`), and are to be asked about the others only.
    """

    def __init__(self, styles: int) -> None:
        super().__init__()
        widths = (32, 64, 96, 128)
        self.style = nn.Sequential(
            nn.Conv2d(3, widths[0], 3, padding=1),
            *(_Block(narrow, wide) for narrow, wide in pairwise(widths)),
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
        parts = [_scaled(part) for part in images.split(256)]
        return (
            torch.cat([self.style(part).softmax(1) for part in parts]),
            torch.cat([functional.normalize(self.features(part), dim=1) for part in parts]),
        )


class _Block(nn.Module):
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


def _scaled(images: Tensor) -> Tensor:
    """uint8 pictures from -1 to 1."""
    return images.float() / 127.5 - 1


def studied(concept: int) -> bool:
    """Whether the judge has learned from a concept, and so may not be asked about it."""
    return concept % 4 != 0


def train_judge(pictures: Emoji) -> Judge:
    """About a quarter of an hour on two cores; the same judge in every run."""
    torch.manual_seed(0)
    chance = torch.Generator().manual_seed(0)
    own = torch.tensor([concept for concept in range(pictures.images.shape[1]) if studied(concept)])
    judge = Judge(len(pictures.images))
    _learn_styles(judge.style, pictures, own, chance)
    _learn_features(judge.features, pictures, own, chance)
    return judge.eval()


def _learn_styles(net: nn.Module, pictures: Emoji, own: Tensor, chance: torch.Generator) -> None:
    """From real emoji, and from real emoji that went through the autoencoder as generated ones do."""
    real = pictures.images[:, own]
    seen = torch.stack([real, through_autoencoder(real.flatten(0, 1)).view_as(real)])
    net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def loss() -> Tensor:
        copy, style, concept = (torch.randint(n, (STYLE_BATCH,), generator=chance) for n in seen.shape[:3])
        images = _scaled(seen[copy, style, concept])
        x, y, flip = (int(n) for n in torch.randint(9, (3,), generator=chance))
        images = functional.pad(images, (4, 4, 4, 4), value=1.0)[:, :, y : y + 64, x : x + 64]
        images = images.flip(3) if flip % 2 else images
        with torch.autocast("cpu", torch.bfloat16):
            logits = net(images.contiguous(memory_format=torch.channels_last))
        return functional.cross_entropy(logits.float(), style, label_smoothing=0.05)

    _train(net, loss, STYLE_STEPS, 3e-3)


def _learn_features(net: nn.Module, pictures: Emoji, own: Tensor, chance: torch.Generator) -> None:
    styles = len(pictures.images)

    def loss() -> Tensor:
        drawn = own[torch.randperm(len(own), generator=chance)[:CONCEPTS]]
        pairs = torch.stack([torch.randperm(styles, generator=chance)[:2] for _ in drawn])
        images = torch.cat([pictures.images[pairs[:, side], drawn] for side in (0, 1)])
        features = functional.normalize(net(_scaled(_spoiled(images, chance))), dim=1)
        alike = features @ features.T / 0.1
        alike.fill_diagonal_(-torch.inf)
        return functional.cross_entropy(alike, torch.arange(len(images)).roll(len(drawn)))

    _train(net, loss, FEATURE_STEPS, 2e-3)


def _train(net: nn.Module, loss: Callable[[], Tensor], steps: int, rate: float) -> None:
    optimizer = torch.optim.AdamW(net.parameters(), rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        schedule.step()


@torch.inference_mode()
def through_autoencoder(images: Tensor) -> Tensor:
    """uint8 pictures ``[n, 3, 64, 64]``, encoded and decoded by the demo model."""
    autoencoder: Any = demo_model().pipeline.vae.to(memory_format=torch.channels_last)
    parts: list[Tensor] = []
    for part in images.split(64):
        with torch.autocast("cpu", torch.bfloat16):
            latents = autoencoder.encode(_scaled(part).contiguous(memory_format=torch.channels_last)).latents
            decoded = autoencoder.decode(latents).sample.float()
        parts.append(((decoded.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8))
    return torch.cat(parts)


def _spoiled(images: Tensor, chance: torch.Generator) -> Tensor:
    """Shifted, and some of them blurred or noisy: generated pictures are not as sharp as real ones."""
    rows: list[Tensor] = []
    for image in functional.pad(images.float(), (4, 4, 4, 4), value=255):
        x, y, blur = (int(torch.randint(9, (), generator=chance)) for _ in range(3))
        cropped = image[:, y : y + 64, x : x + 64]
        if blur > 3:
            cropped = functional.avg_pool2d(cropped[None], 3, 1, 1, count_include_pad=False)[0]
        noise = 4 * blur * torch.rand((), generator=chance)
        rows.append(cropped + noise * torch.randn(cropped.shape, generator=chance))
    return torch.stack(rows).clamp(0, 255)


def judge_of(path: Path, pictures: Emoji) -> Judge:
    """The judge, learned once and kept in a file."""
    judge = Judge(len(pictures.images))
    if path.is_file():
        judge.load_state_dict(torch.load(path, weights_only=True))
        return judge.eval()
    judge = train_judge(pictures)
    torch.save(judge.state_dict(), path)
    return judge
