"""Run by the host's own Python: sites and sizes of maps of full-size models, on the meta device. Prints JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import inside  # noqa: F401  # pyright: ignore[reportUnusedImport]

# isort: split
import comfy.model_management
import comfy.supported_models
import torch
from act_pack.act_core.architectures import architecture_of
from act_pack.act_core.components import Component
from act_pack.act_core.discovery import discover
from act_pack.act_core.sites import Site
from comfy.ldm.qwen_image.model import QwenImageTransformer2DModel
from presets import BUILT, MODELS
from torch import Tensor, nn

PRESETS = "norms", "attention", "mlp", "blocks", "auto"
ROWS, PROMPTS, GIB = 2, 64, 1 << 30


class Size(NamedTuple):
    """A full-size model.

    Attributes:
        build: makes it.
        kind: class in the host's ``comfy.supported_models``.
        latent: of a picture of 1024 x 1024, without rows.
        context: tokens and width of a prompt.
        extra: further inputs.
    """

    build: Callable[[], nn.Module]
    kind: str
    latent: tuple[int, ...]
    context: tuple[int, int]
    extra: tuple[tuple[str, tuple[int, ...]], ...] = ()


def qwen_image() -> nn.Module:
    sizes = {"in_channels": 64, "num_layers": 60, "num_attention_heads": 24, "joint_attention_dim": 3584}
    return QwenImageTransformer2DModel(image_model="qwen_image", **sizes, **BUILT)


SIZES = {
    "SDXL": Size(MODELS["sdxl"], "SDXL", (4, 128, 128), (77, 2048), (("y", (2816,)),)),
    "Flux.1": Size(MODELS["flux"], "Flux", (16, 128, 128), (256, 4096), (("y", (768,)), ("guidance", ()))),
    "Qwen-Image": Size(qwen_image, "QwenImage", (16, 1, 128, 128), (40, 3584)),
}


def measured(size: Size) -> dict[str, Any]:
    module = size.build()

    def empty(*shape: int) -> Tensor:
        return torch.zeros(ROWS, *shape, dtype=torch.float16)

    def run() -> None:
        inputs = {name: empty(*shape) for name, shape in size.extra}
        module(empty(*size.latent), torch.zeros(ROWS), context=empty(*size.context), **inputs)

    component = Component("diffusion_model", module, architecture_of(module))
    found: dict[str, list[Site]] = {p: discover([component], p, run, ROWS) for p in PRESETS}
    config = getattr(comfy.supported_models, size.kind)
    area = PROMPTS * size.latent[-1] * size.latent[-2]
    return {
        "sites": {preset: len(sites) for preset, sites in found.items()},
        # Slope and offset in float32.
        "map": sum(8 * site.channels for site in found["auto"]),
        # As the host estimates the memory of a batch, in float16.
        "memory": area * 2 * 0.01 * config.memory_usage_factor * 1024 * 1024,
    }


def main() -> None:
    # Attention asks how much memory is free, and the meta device has none.
    comfy.model_management.get_free_memory = lambda device=None, torch_free_too=False: (
        (GIB, GIB) if torch_free_too else GIB
    )
    with torch.inference_mode(), torch.device("meta"):
        print(json.dumps({name: measured(size) for name, size in SIZES.items()}))


if __name__ == "__main__":
    main()
