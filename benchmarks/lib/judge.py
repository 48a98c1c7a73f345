"""The judge of the demo model's pictures: small networks that were trained on real emoji of other concepts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor, nn
from torch.nn import functional

from act_core.demo.pictures import demo_model
from tools.train_demo_model.emoji import Emoji, load_emoji

from .models import ROOT, stop

TRAINING = ROOT / "tools" / "train_demo_model"
# Steps and batch size of the training on styles: the judge of most benchmarks, and a weaker one with a quarter of the
# steps, for processors without bfloat16 instructions.
TRAININGS = {"full": (1500, 160), "short": (400, 96)}
FEATURE_STEPS = 900
CONCEPTS = 48
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
    style. Both are trained on three in four concepts (`is_training_concept`) and used on the others only.
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
        parts = [_as_input(part) for part in images.split(256)]
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


def _as_input(images: Tensor) -> Tensor:
    """uint8 pictures, scaled to the range from -1 to 1."""
    return images.float() / 127.5 - 1


def is_training_concept(concept: int) -> bool:
    """Whether the judge is trained on a concept, and so must not judge pictures of it."""
    return concept % 4 != 0


def train_judge(pictures: Emoji, training: str = "full") -> Judge:
    """Train a judge, the same one in every run; the full training takes about 15 minutes on two cores."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    concepts = torch.tensor([concept for concept in range(pictures.images.shape[1]) if is_training_concept(concept)])
    judge = Judge(len(pictures.images))
    _train_styles(judge.style, pictures, concepts, generator, *TRAININGS[training])
    _train_features(judge.features, pictures, concepts, generator)
    return judge.eval()


def _train_styles(
    net: nn.Module, pictures: Emoji, concepts: Tensor, generator: torch.Generator, steps: int, batch: int
) -> None:
    """Train on real emoji, both original and after encoding and decoding, since generated pictures are decoded too."""
    real = pictures.images[:, concepts]
    seen = torch.stack([real, through_autoencoder(real.flatten(0, 1)).view_as(real)])
    net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def loss() -> Tensor:
        copy, style, concept = (torch.randint(n, (batch,), generator=generator) for n in seen.shape[:3])
        images = _as_input(seen[copy, style, concept])
        x, y, flip = (int(n) for n in torch.randint(9, (3,), generator=generator))
        images = functional.pad(images, (4, 4, 4, 4), value=1.0)[:, :, y : y + 64, x : x + 64]
        images = images.flip(3) if flip % 2 else images
        with _half_precision():
            logits = net(images.contiguous(memory_format=torch.channels_last))
        return functional.cross_entropy(logits.float(), style, label_smoothing=0.05)

    _minimise(net, loss, steps, 3e-3)


def _train_features(net: nn.Module, pictures: Emoji, concepts: Tensor, generator: torch.Generator) -> None:
    styles = len(pictures.images)

    def loss() -> Tensor:
        drawn = concepts[torch.randperm(len(concepts), generator=generator)[:CONCEPTS]]
        pairs = torch.stack([torch.randperm(styles, generator=generator)[:2] for _ in drawn])
        images = torch.cat([pictures.images[pairs[:, side], drawn] for side in (0, 1)])
        features = functional.normalize(net(_as_input(_degraded(images, generator))), dim=1)
        alike = features @ features.T / 0.1
        alike.fill_diagonal_(-torch.inf)
        return functional.cross_entropy(alike, torch.arange(len(images)).roll(len(drawn)))

    _minimise(net, loss, FEATURE_STEPS, 2e-3)


def _minimise(net: nn.Module, loss: Callable[[], Tensor], steps: int, rate: float) -> None:
    optimizer = torch.optim.AdamW(net.parameters(), rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        schedule.step()


def _half_precision() -> torch.autocast:
    """Bfloat16 where the processor has instructions for it; elsewhere it is slower than float32."""
    return torch.autocast("cpu", torch.bfloat16, enabled=torch.ops.mkldnn._is_mkldnn_bf16_supported())


@torch.inference_mode()
def through_autoencoder(images: Tensor) -> Tensor:
    """Encode and decode uint8 pictures ``[n, 3, 64, 64]`` with the demo model."""
    autoencoder: Any = demo_model().pipeline.vae.to(memory_format=torch.channels_last)
    parts: list[Tensor] = []
    for part in images.split(64):
        with _half_precision():
            latents = autoencoder.encode(_as_input(part).contiguous(memory_format=torch.channels_last)).latents
            decoded = autoencoder.decode(latents).sample.float()
        parts.append(((decoded.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8))
    return torch.cat(parts)


def _degraded(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shifted, and some of them blurred or noisy, since generated pictures are less sharp than real ones."""
    rows: list[Tensor] = []
    for image in functional.pad(images.float(), (4, 4, 4, 4), value=255):
        x, y, blur = (int(torch.randint(9, (), generator=generator)) for _ in range(3))
        cropped = image[:, y : y + 64, x : x + 64]
        if blur > 3:
            cropped = functional.avg_pool2d(cropped[None], 3, 1, 1, count_include_pad=False)[0]
        noise = 4 * blur * torch.rand((), generator=generator)
        rows.append(cropped + noise * torch.randn(cropped.shape, generator=generator))
    return torch.stack(rows).clamp(0, 255)


def load_judge(pictures: Emoji, training: str = "full") -> Judge:
    """The judge for the autoencoder of the demo model, trained once and cached next to the emoji."""
    weights = sorted((ROOT / "demo_model" / "vae").glob("*.safetensors"))
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in weights)).hexdigest()
    path = TRAINING / "work" / f"judge-{training}-{digest[:8]}.pt"
    judge = Judge(len(pictures.images))
    if path.is_file():
        judge.load_state_dict(torch.load(path, weights_only=True))
        return judge.eval()
    judge = train_judge(pictures, training)
    torch.save(judge.state_dict(), path)
    return judge
