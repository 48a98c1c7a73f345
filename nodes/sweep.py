"""ACT Strength Sweep: the same picture at rising strength."""

from __future__ import annotations

from typing import Any

import comfy.sample
import comfy.samplers
import comfy.utils
import numpy as np
import torch
from comfy_api.latest import io, ui
from PIL import Image

from ..act_core import ActMap, MapError
from ..act_core.plots import grid
from .apply import ApplyACTSteering
from .common import CATEGORY, ACTMapIO, aliases
from .host.fitting import fixed_latent


class ACTStrengthSweep(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ACTStrengthSweep",
            display_name="ACT Strength Sweep",
            category=CATEGORY,
            **aliases("activation transport", "xy plot", "compare strengths", "style slider"),
            description="Draws the same noise at several strengths of a map: one labelled picture, and the pictures.",
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="Unsteered: the sweep applies the map itself."),
                ACTMapIO.Input("act_map"),
                io.Conditioning.Input("positive", tooltip="Used as it is, unless clip and prompt are given."),
                io.Conditioning.Input("negative"),
                io.Latent.Input("latent", tooltip="An empty latent; each of its pictures is a row."),
                io.Vae.Input("vae"),
                io.String.Input("strengths", default="0, 0.25, 0.5, 0.75, 1, 1.25", tooltip="Numbers with commas."),
                io.Int.Input("seed", default=0, min=0, max=2**64 - 1, control_after_generate=True),
                io.Int.Input("steps", default=20, min=1, max=10000),
                io.Float.Input("cfg", default=4.0, min=0.0, max=100.0, step=0.1),
                io.Combo.Input("sampler_name", options=comfy.samplers.KSampler.SAMPLERS, default="euler"),
                io.Combo.Input("scheduler", options=comfy.samplers.KSampler.SCHEDULERS, default="simple"),
                io.Clip.Input(
                    "clip", optional=True, tooltip="With prompt: the text encoders are steered, too, at each strength."
                ),
                io.String.Input("prompt", default="", multiline=True, optional=True, tooltip="The positive prompt."),
            ],
            outputs=[
                io.Image.Output(display_name="grid"),
                io.Image.Output(display_name="images", tooltip="All pictures, or frames, strength after strength."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        act_map: ActMap,
        positive: Any,
        negative: Any,
        latent: dict[str, Any],
        vae: Any,
        strengths: str,
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        clip: Any = None,
        prompt: str = "",
    ) -> io.NodeOutput:
        numbers = _numbers(strengths)
        if (clip is None) == bool(prompt.strip()):
            raise MapError(
                "ACT Strength Sweep steers text encoders only where it has both clip and prompt; give both, or neither."
            )
        empty = fixed_latent(model, latent)
        noise = comfy.sample.prepare_noise(empty, seed, latent.get("batch_index"))
        bar = comfy.utils.ProgressBar(len(numbers) * steps)
        columns: list[torch.Tensor] = []
        for column, strength in enumerate(numbers):
            applied = ApplyACTSteering.execute(model, act_map, strength, strength, 0.0, 1.0, "positive", clip)
            steered, steered_clip = applied.result
            if clip is not None:
                positive = steered_clip.encode_from_tokens_scheduled(steered_clip.tokenize(prompt))

            def step(number: int, *_: object, column: int = column) -> None:
                bar.update_absolute(column * steps + number + 1)

            samples = comfy.sample.sample(
                steered,
                noise,
                steps,
                cfg,
                sampler_name,
                scheduler,
                positive,
                negative,
                empty,
                seed=seed,
                callback=step,
                disable_pbar=True,
            )
            columns.append(vae.decode(samples))
        sheet = grid(
            [[_picture(column[row]) for column in columns] for row in range(columns[0].shape[0])],
            [""] * columns[0].shape[0],
            [f"{number:g}" for number in numbers],
        )
        pictured = torch.from_numpy(np.asarray(sheet, dtype=np.float32) / 255)[None]
        images = torch.cat(columns)
        return io.NodeOutput(pictured, images.reshape(-1, *images.shape[-3:]), ui=ui.PreviewImage(pictured, cls=cls))


def _numbers(text: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.replace(";", ",").split(",") if part.strip()]
    except ValueError:
        numbers = []
    if not numbers:
        raise MapError(f"The strengths {text!r} are no numbers with commas; give some, such as 0, 0.5, 1.")
    return numbers


def _picture(pixels: torch.Tensor) -> Image.Image:
    """Of ``[height, width, 3]``, or the middle one of the ``[frames, height, width, 3]`` of a video."""
    if pixels.ndim == 4:
        pixels = pixels[len(pixels) // 2]
    return Image.fromarray((pixels.cpu().numpy().clip(0, 1) * 255).round().astype(np.uint8))
