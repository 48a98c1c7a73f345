"""Train the judge of the demo model's pictures on real emoji: about an hour of one core."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from tools.train_demo_model.emoji import Emoji

from .judge import (
    AUTOENCODER,
    WEIGHTS,
    Judge,
    as_input,
    autoencoder_sha256,
    half_precision,
    is_training_concept,
    load_pictures,
    through_autoencoder,
)

STYLE_STEPS = 1500
# Styles are first learned at half the size, which takes a quarter of the time.
SMALL_STEPS = 1000
BATCH = 160
FEATURE_STEPS = 900
CONCEPTS = 48


def main(arguments: list[str] | None = None) -> int:
    argparse.ArgumentParser(prog="python -m benchmarks.lib.train_judge", description=__doc__).parse_args(arguments)
    pictures = load_pictures()
    judge = train_judge(pictures)
    # Half precision is as accurate, in half the bytes.
    weights = {
        name: value.contiguous().half() if value.is_floating_point() else value
        for name, value in judge.state_dict().items()
    }
    save_file(weights, WEIGHTS, {"format": "pt", AUTOENCODER: autoencoder_sha256()})
    print(f"It recognises the style of {judge.accuracy(pictures):.1%} of the real emoji of held-out concepts.")
    return 0


def train_judge(pictures: Emoji) -> Judge:
    """Train a judge, the same one in every run on the same machine."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    concepts = torch.tensor([concept for concept in range(pictures.images.shape[1]) if is_training_concept(concept)])
    judge = Judge(len(pictures.images))
    _train_styles(judge.style, pictures, concepts, generator)
    _train_features(judge.features, pictures, concepts, generator)
    return judge.eval()


def _train_styles(net: nn.Module, pictures: Emoji, concepts: Tensor, generator: torch.Generator) -> None:
    """Train on real emoji, both original and after encoding and decoding, since generated pictures are decoded too."""
    real = pictures.images[:, concepts]
    seen = torch.stack([real, through_autoencoder(real.flatten(0, 1)).view_as(real)])
    net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def loss(step: int) -> Tensor:
        copy, style, concept = (torch.randint(n, (BATCH,), generator=generator) for n in seen.shape[:3])
        images = as_input(seen[copy, style, concept])
        x, y, flip = (int(n) for n in torch.randint(9, (3,), generator=generator))
        images = functional.pad(images, (4, 4, 4, 4), value=1.0)[:, :, y : y + 64, x : x + 64]
        images = images.flip(3) if flip % 2 else images
        images = functional.avg_pool2d(images, 2) if step < SMALL_STEPS else images
        with half_precision():
            logits = net(images.contiguous(memory_format=torch.channels_last))
        return functional.cross_entropy(logits.float(), style, label_smoothing=0.05)

    _minimise(net, loss, STYLE_STEPS, 3e-3)


def _train_features(net: nn.Module, pictures: Emoji, concepts: Tensor, generator: torch.Generator) -> None:
    """Train to find the emoji of the same concept in another style among all of a batch."""
    styles = len(pictures.images)

    def loss(_: int) -> Tensor:
        drawn = concepts[torch.randperm(len(concepts), generator=generator)[:CONCEPTS]]
        pairs = torch.stack([torch.randperm(styles, generator=generator)[:2] for _ in drawn])
        images = torch.cat([pictures.images[pairs[:, side], drawn] for side in (0, 1)])
        features = functional.normalize(net(as_input(_degraded(images, generator))), dim=1)
        alike = features @ features.T / 0.1
        alike.fill_diagonal_(-torch.inf)
        return functional.cross_entropy(alike, torch.arange(len(images)).roll(len(drawn)))

    _minimise(net, loss, FEATURE_STEPS, 2e-3)


def _minimise(net: nn.Module, loss: Callable[[int], Tensor], steps: int, rate: float) -> None:
    optimizer = torch.optim.AdamW(net.parameters(), rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    for step in range(steps):
        optimizer.zero_grad()
        loss(step).backward()
        optimizer.step()
        schedule.step()


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


if __name__ == "__main__":
    raise SystemExit(main())
