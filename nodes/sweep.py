"""ACT Strength Sweep: the same noise at several strengths."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from comfy_api.latest import io, ui
from PIL import Image

from ..act_core import ActMap, MapError
from ..act_core.plots import grid
from ..act_core.settings import Branch
from .common import CATEGORY, ACTMapIO, aliases, branch_input, calibrated_input, one_text
from .host.sampling import StrengthSweep, samplers, schedulers

_NAME = "ACT Strength Sweep"


class ACTStrengthSweep(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ACTStrengthSweep",
            display_name=_NAME,
            category=CATEGORY,
            **aliases("activation transport", "xy plot", "compare strengths", "style slider"),
            description="Samples the same noise at several strengths of a map, and returns a labelled grid.",
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The unsteered model: the sweep applies the map itself."),
                ACTMapIO.Input("act_map", tooltip="A map from Load ACT Map or Fit ACT Map."),
                io.Conditioning.Input("positive", tooltip="Used unless clip and prompt are given."),
                io.Conditioning.Input("negative", tooltip="The negative prompt, from an unsteered CLIP."),
                io.Latent.Input("latent", tooltip="An empty latent; each of its pictures becomes a row."),
                io.Vae.Input("vae", tooltip="The autoencoder that decodes the pictures."),
                io.String.Input(
                    "strengths", default="0, 0.25, 0.5, 0.75, 1, 1.25", tooltip="Numbers, separated by commas."
                ),
                io.Int.Input(
                    "seed", default=0, min=0, max=2**64 - 1, control_after_generate=True, tooltip="Seed of the noise."
                ),
                io.Int.Input("steps", default=20, min=1, max=10000, tooltip="Denoising steps of each picture."),
                io.Float.Input("cfg", default=4.0, min=0.0, max=100.0, step=0.1, tooltip="Guidance scale."),
                io.Combo.Input("sampler_name", options=samplers(), default="euler", tooltip="As in KSampler."),
                io.Combo.Input("scheduler", options=schedulers(), default="simple", tooltip="As in KSampler."),
                io.Clip.Input(
                    "clip", optional=True, tooltip="With prompt: the text encoders are steered too, at each strength."
                ),
                io.String.Input(
                    "prompt", default="", multiline=True, optional=True, tooltip="With clip: the positive prompt."
                ),
                calibrated_input(),
                branch_input(optional=True),
            ],
            outputs=[
                io.Image.Output(display_name="grid", tooltip="A column for each strength, a row for each picture."),
                io.Image.Output(
                    display_name="images", tooltip="All pictures, or frames, ordered by strength, then by row."
                ),
                io.String.Output(display_name="report", tooltip="How many sites of the map fired, and warnings."),
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
        calibrated: bool = False,
        branch: Branch = "positive",
    ) -> io.NodeOutput:
        numbers = _numbers(one_text(strengths, "strengths", _NAME))
        if (clip is None) == bool(one_text(prompt, "prompt", _NAME).strip()):
            raise MapError(f"{_NAME} steers text encoders only with both clip and prompt; give both, or neither.")
        conditioning = positive, negative, latent, clip, prompt
        sweep = StrengthSweep(model, act_map, *conditioning, branch=branch, calibrated=calibrated)
        columns = [vae.decode(samples) for samples in sweep.run(numbers, seed, steps, cfg, sampler_name, scheduler)]
        rows = range(columns[0].shape[0])
        sheet = grid(
            [[_picture(column[row]) for column in columns] for row in rows],
            [""] * len(rows),
            [_label(act_map, number, calibrated=calibrated) for number in numbers],
        )
        pictured = torch.from_numpy(np.asarray(sheet, dtype=np.float32) / 255)[None]
        images = torch.cat(columns)
        shown = {**ui.PreviewImage(pictured, cls=cls).as_dict(), "text": (sweep.report,)}
        return io.NodeOutput(pictured, images.reshape(-1, *images.shape[-3:]), sweep.report, ui=shown)


def _numbers(text: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.replace(";", ",").split(",") if part.strip()]
    except ValueError:
        numbers = []
    if not numbers:
        raise MapError(f"The strengths {text!r} are not numbers; give numbers separated by commas, such as 0, 0.5, 1.")
    return numbers


def _label(act_map: ActMap, number: float, *, calibrated: bool) -> str:
    """A strength, on both scales if the map is calibrated."""
    return f"{number:g} (raw {act_map.calibrated.raw(number):.2f})" if calibrated else f"{number:g}"


def _picture(pixels: torch.Tensor) -> Image.Image:
    """A picture ``[height, width, 3]``, or the middle frame of a video ``[frames, height, width, 3]``."""
    if pixels.ndim == 4:
        pixels = pixels[len(pixels) // 2]
    return Image.fromarray((pixels.cpu().numpy().clip(0, 1) * 255).round().astype(np.uint8))
