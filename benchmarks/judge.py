"""Who judges the pictures of the demo model: a small network that has seen real emoji of other concepts only."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor, nn
from torch.nn import functional

from tools.train_demo_model.emoji import Emoji, load_emoji

from .common import ROOT, stop

TOOL = ROOT / "tools" / "train_demo_model"
STEPS = 900
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

    Both are learned together on half of the concepts (`studied`): the style by its label, the features by
    recognising the same concept in another style. It is to be asked about the other half only.
    """

    def __init__(self, styles: int) -> None:
        super().__init__()
        widths = (3, 32, 64, 128, 192)
        layers: list[nn.Module] = []
        for narrow, wide in pairwise(widths):
            layers += [nn.Conv2d(narrow, wide, 3, stride=2, padding=1), nn.GroupNorm(8, wide), nn.ReLU()]
        self.trunk = nn.Sequential(*layers, nn.Conv2d(widths[-1], widths[-1], 3, padding=1), nn.ReLU())
        self.style = nn.Linear(widths[-1], styles)
        self.features = nn.Linear(widths[-1] * 16, FEATURES)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the styles ``[n, styles]`` and features ``[n, 96]`` of length 1, of uint8 pictures."""
        x = self.trunk(images.float() / 127.5 - 1)
        return self.style(x.mean((2, 3))), functional.normalize(self.features(x.flatten(1)), dim=1)

    @torch.inference_mode()
    def ask(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities of the styles and features of pictures."""
        parts = [self(part) for part in images.split(256)]
        return torch.cat([style.softmax(1) for style, _ in parts]), torch.cat([features for _, features in parts])


def studied(concept: int) -> bool:
    """Whether the judge has learned from a concept, and so may not be asked about it."""
    return concept % 2 == 1


def train_judge(pictures: Emoji, steps: int = STEPS) -> Judge:
    """About a minute on two cores; the same judge in every run."""
    torch.manual_seed(0)
    chance = torch.Generator().manual_seed(0)
    styles, concepts = pictures.images.shape[:2]
    own = torch.tensor([concept for concept in range(concepts) if studied(concept)])
    judge = Judge(styles)
    optimizer = torch.optim.AdamW(judge.parameters(), 2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in range(steps):
        drawn = own[torch.randperm(len(own), generator=chance)[:CONCEPTS]]
        pairs = torch.stack([torch.randperm(styles, generator=chance)[:2] for _ in drawn])
        images = torch.cat([pictures.images[pairs[:, side], drawn] for side in (0, 1)])
        logits, features = judge(_spoiled(images, chance))
        alike = features @ features.T / 0.1
        alike.fill_diagonal_(-torch.inf)
        partner = torch.arange(len(images)).roll(len(drawn))
        loss = functional.cross_entropy(logits, pairs.T.flatten()) + functional.cross_entropy(alike, partner)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return judge.eval()


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
