"""Probe ACT Map: how far a map moves each token and each site, for one prompt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from comfy_api.latest import io, ui
from PIL import Image
from torch import Tensor

from ..act_core import ActMap
from ..act_core.probe import in_picture
from ..act_core.probe_chart import heat_map, one_below_the_other, position_map
from ..act_core.settings import MAX_SEED
from .common import (
    CATEGORY,
    STRENGTH,
    ACTMapIO,
    WithStrengths,
    aliases,
    one_text,
    pixels_of,
    size_inputs,
    strength_input,
)
from .host.probing import ModelMoves, TextMoves, probe_model, probe_text

_NAME = "Probe ACT Map"
_UNIT = "in units of the activation"
# More columns are left out, evenly.
_MAX_STEPS, _MAX_TOKENS = 24, 80


class ProbeACTMap(WithStrengths, io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ProbeACTMap",
            display_name=_NAME,
            category=CATEGORY,
            **aliases("activation transport", "before after", "token heat map", "compare activations"),
            description="Shows how far a map moves each token of a prompt and each site of the model, from one run "
            "before and one after.",
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The unsteered model: the probe applies the map itself."),
                io.Clip.Input("clip", tooltip="The unsteered text encoders."),
                ACTMapIO.Input("act_map", tooltip="A map from Load ACT Map or Fit ACT Map."),
                io.String.Input("prompt", default="", multiline=True, tooltip="The prompt."),
                strength_input("strength", f"Strength of the map. {STRENGTH}"),
                io.Int.Input(
                    "seed", default=0, min=0, max=MAX_SEED, control_after_generate=True, tooltip="Seed of the noise."
                ),
                io.Int.Input("steps", default=8, min=1, max=10000, tooltip="Denoising steps; each takes two calls."),
                *size_inputs(),
            ],
            outputs=[
                io.Image.Output(
                    display_name="moves",
                    tooltip="A row for each site: the tokens of the prompt in the text encoders, and the denoising "
                    "steps in the diffusion model; below, where in the picture it moves.",
                ),
                io.String.Output(display_name="report", tooltip="What moves most, and what the map found."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        act_map: ActMap,
        prompt: str,
        strength: float,
        seed: int,
        steps: int,
        width: int,
        height: int,
    ) -> io.NodeOutput:
        prompt = one_text(prompt, "prompt", _NAME)
        texts = probe_text(clip, act_map, prompt, strength)
        drawn, report = probe_model(model, clip, act_map, prompt, strength, seed, steps, (width, height))
        charts = [chart for name, found in texts.items() for chart in _text_charts(name, found)]
        lines = [_text_line(name, found) for name, found in texts.items()]
        if drawn is not None:
            charts += _model_charts(drawn)
            lines.append(_model_line(drawn))
        report = "\n".join([*lines, report])
        picture = one_below_the_other(charts) if charts else Image.new("RGB", (64, 64), "white")
        pixels = pixels_of(picture)
        return io.NodeOutput(pixels, report, ui={**ui.PreviewImage(pixels, cls=cls).as_dict(), "text": (report,)})


def _text_charts(name: str, found: TextMoves) -> Iterator[Image.Image]:
    tokens = _spread(len(found.tokens), _MAX_TOKENS)
    values = torch.stack([values[tokens] for values in found.moves.values()])
    yield heat_map(f"{name}: by token, {_UNIT}", values, list(found.moves), [found.tokens[at] for at in tokens])
    if found.pooled:
        vectors = torch.tensor(list(found.pooled.values()))[:, None]
        yield heat_map(f"{name}: of the whole prompt, {_UNIT}", vectors, list(found.pooled), [""])


def _model_charts(found: ModelMoves) -> Iterator[Image.Image]:
    by_step = _by_step(found)
    steps = _spread(max(len(values) for values in by_step.values()), _MAX_STEPS)
    table = torch.stack([values[steps] for values in by_step.values() if len(values) > max(steps)])
    rows = [key for key, values in by_step.items() if len(values) > max(steps)]
    yield heat_map(f"diffusion model: by step, {_UNIT}", table, rows, [str(step + 1) for step in steps])
    where = in_picture(found.moves, *found.size)
    if where is not None:
        yield position_map(f"where in the picture: up to {float(where.max()):.2f}", where)


def _by_step(found: ModelMoves) -> dict[str, Tensor]:
    """The mean over the tokens of each site, by call of the model."""
    return {site.key: torch.stack([move.mean() for move in calls]) for site, calls in found.moves.items()}


def _text_line(name: str, found: TextMoves) -> str:
    tokens = torch.stack(list(found.moves.values())).mean(0).tolist()
    ranked = sorted(zip(tokens, found.tokens, strict=True), reverse=True)[:3]
    most = ", ".join(f"{word} {value:.2f}" for value, word in ranked)
    moves = {key: float(values.mean()) for key, values in found.moves.items()}
    return f"{name}: {_sites({**moves, **found.pooled})} Tokens: {most}."


def _model_line(found: ModelMoves) -> str:
    by_step = _by_step(found)
    text = f"diffusion model: {_sites({key: float(values.mean()) for key, values in by_step.items()})}"
    first, last = (sum(float(values[at]) for values in by_step.values()) / len(by_step) for at in (0, -1))
    return f"{text} First step {first:.2f}, last step {last:.2f}."


def _sites(moves: Mapping[str, float]) -> str:
    most = max(moves, key=lambda key: moves[key])
    mean = sum(moves.values()) / len(moves)
    return f"{len(moves)} sites move by {mean:.2f} on average {_UNIT}, most at {most} ({moves[most]:.2f})."


def _spread(count: int, most: int) -> list[int]:
    """At most so many of the numbers from 0 to ``count - 1``, evenly spread."""
    return list(range(count)) if count <= most else [round(at * (count - 1) / (most - 1)) for at in range(most)]
