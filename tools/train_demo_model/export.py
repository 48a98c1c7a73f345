"""The folder that ships: the pipeline in half precision, as diffusers loads it, and its model card."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from PIL import Image, ImageDraw, ImageFont
from transformers import CLIPTextModelWithProjection, PreTrainedTokenizerFast

from act_core.models.diffusers import DiffusersModel
from act_core.plots import grid

from .captions import caption
from .emoji import STYLES, Emoji

GUIDANCE = 3.0
SHIFT = 3.0
SHOWN = 16


def export(
    folder: Path,
    autoencoder: AutoencoderTiny,
    text_encoder: CLIPTextModelWithProjection,
    tokenizer: PreTrainedTokenizerFast,
    transformer: SD3Transformer2DModel,
) -> None:
    """Write the pipeline in half precision."""
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer.half(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        vae=autoencoder.half(),  # pyright: ignore[reportArgumentType]
        text_encoder=text_encoder.half(),
        tokenizer=tokenizer,  # pyright: ignore[reportArgumentType]
        text_encoder_2=None,  # pyright: ignore[reportArgumentType]
        tokenizer_2=None,  # pyright: ignore[reportArgumentType]
        text_encoder_3=None,  # pyright: ignore[reportArgumentType]
        tokenizer_3=None,  # pyright: ignore[reportArgumentType]
    )
    pipeline.save_pretrained(folder)
    # AutoencoderTiny writes an entry that it complains of when it reads it.
    config = folder / "vae" / "config.json"
    entries = json.loads(config.read_text(encoding="utf-8"))
    entries.pop("block_out_channels", None)
    config.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")


def draw_sheets(folder: Path, emoji: Emoji, curve: Sequence[tuple[int, float]]) -> None:
    """Beside the pipeline: its curve, and contact sheets of concepts it was trained on and of such it never saw."""
    model = DiffusersModel.from_pretrained(folder)
    trained = [int(concept) for concept in emoji.seen.all(0).nonzero()]
    for name, concepts in (("trained", trained), ("held_out", emoji.held_out)):
        chosen = random.Random(1).sample(concepts, SHOWN)
        rows: list[list[Image.Image]] = []
        for style in range(len(STYLES)):
            prompts = [caption(emoji.names[concept], (), style) for concept in chosen]
            rows.append(model.generate(prompts, guidance=GUIDANCE))
        sheet = grid(rows, [style.phrase for style in STYLES], [emoji.names[concept] for concept in chosen])
        sheet.save(folder / f"{name}.png", optimize=True)
    _draw_curve(curve).save(folder / "curve.png", optimize=True)


def _draw_curve(curve: Sequence[tuple[int, float]]) -> Image.Image:
    width, height, edge = 640, 240, 36
    image = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(11)
    steps, losses = zip(*curve, strict=True)
    low, high = min(losses), max(losses)

    def place(step: int, loss: float) -> tuple[float, float]:
        across, up = step / steps[-1], (loss - low) / (high - low)
        return edge + across * (width - 2 * edge), height - edge - up * (height - 2 * edge)

    draw.line([place(*point) for point in curve], "black", 2)
    draw.text((edge, 8), f"flow: mean squared error, {steps[-1]} steps", "black", font)
    for loss in (low, high):
        draw.text((2, place(0, loss)[1] - 6), f"{loss:.2f}", "black", font)
    return image


def as_trained(autoencoder: AutoencoderTiny) -> AutoencoderTiny:
    """The autoencoder with the rounding that it will be shipped with, so that latents are made by what ships."""
    return autoencoder.half().float()


@torch.no_grad()
def size_in_bytes(folder: Path) -> int:
    """Of everything in the folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
