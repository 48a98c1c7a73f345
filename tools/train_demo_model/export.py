"""Export: the pipeline in half precision, as diffusers loads it, with its curves and contact sheets."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from PIL import Image, ImageDraw, ImageFont
from transformers import CLIPTextModelWithProjection, PreTrainedTokenizerFast

from act_core.models.diffusers import DiffusersModel
from act_core.plots import grid

from .captions import caption
from .emoji import STYLES, Emoji
from .training import Curve

GUIDANCE = 3.0
SHIFT = 3.0
# Concepts on a contact sheet.
SHOWN = 16
# Width and height of a curve.
PANEL = (640, 240)


def export(
    folder: Path,
    autoencoder: AutoencoderTiny,
    text_encoder: CLIPTextModelWithProjection,
    tokenizer: PreTrainedTokenizerFast,
    transformer: SD3Transformer2DModel,
) -> None:
    """Write the pipeline in half precision."""
    # Calls of the tokenizer set these, and they would be saved: other hosts truncate and pad in their own way.
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
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
    # AutoencoderTiny warns about this entry of its own when it loads the file.
    config = folder / "vae" / "config.json"
    entries = json.loads(config.read_text(encoding="utf-8"))
    entries.pop("block_out_channels", None)
    config.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")


def draw_sheets(folder: Path, emoji: Emoji, curves: Mapping[str, Curve]) -> None:
    """Draw contact sheets beside the pipeline, of trained and of held-out concepts, and the curves by their titles."""
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
    _draw_curves(curves).save(folder / "curve.png", optimize=True)


def _draw_curves(curves: Mapping[str, Curve]) -> Image.Image:
    """Draw one panel per curve."""
    image = Image.new("RGB", (PANEL[0], PANEL[1] * len(curves)), "white")
    for number, (title, curve) in enumerate(curves.items()):
        image.paste(_draw_curve(title, curve), (0, number * PANEL[1]))
    return image


def _draw_curve(title: str, curve: Curve) -> Image.Image:
    """Draw a curve with its losses on a logarithmic scale."""
    (width, height), edge = PANEL, 36
    image = Image.new("RGB", PANEL, "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(11)
    steps, losses = zip(*curve, strict=True)
    low, high = min(losses), max(losses)
    span = max(math.log(high / low), 1e-9)

    def place(step: int, loss: float) -> tuple[float, float]:
        across, up = step / steps[-1], math.log(loss / low) / span
        return edge + across * (width - 2 * edge), height - edge - up * (height - 2 * edge)

    draw.line([place(*point) for point in curve], "black", 2)
    draw.text((edge, 8), f"{title}, {steps[-1]} steps", "black", font)
    for loss in (low, high):
        draw.text((2, place(0, loss)[1] - 6), f"{loss:.2f}", "black", font)
    return image


def as_trained(autoencoder: AutoencoderTiny) -> AutoencoderTiny:
    """Round the autoencoder to half precision, so that the latents come from the weights that ship."""
    return autoencoder.half().float()


@torch.no_grad()
def size_in_bytes(folder: Path) -> int:
    """Return the size of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
