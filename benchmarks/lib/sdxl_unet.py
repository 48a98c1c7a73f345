"""A random UNet of the shape of SDXL, built from ComfyUI's own classes, as a model that can be fitted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from act_core.architectures import architecture_of
from act_core.components import DIFFUSION_MODEL, Component
from act_core.fitting import FitModel, MicroBatch

from .sdxl import CHANNELS

TOKENS, CONTEXT, POOLED = 77, 2048, 2816
SIGMA_INDEX = 999.0
# The groups of a norm in SDXL, whose channels are all divisible by 32.
GROUPS = 32


class SdxlUNet(FitModel[int]):
    """The UNet with all its blocks, in float32 on the CPU.

    A sample is a seed: of its noise, and of the embeddings of its prompt. Those of negative seeds lie elsewhere.

    Args:
        share: its channels, as a share of those of SDXL.
        size: width and height of the latents.
    """

    def __init__(self, share: float, size: int) -> None:
        self._size = size
        self.module = _unet(round(share * CHANNELS[0]))
        self._component = Component(DIFFUSION_MODEL, self.module, architecture_of(self.module))

    @property
    def components(self) -> list[Component]:
        return [self._component]

    def batches(self, samples: Sequence[int], size: int) -> list[MicroBatch]:
        parts = [samples[at : at + size] for at in range(0, len(samples), size)]
        return [MicroBatch(len(part), partial(self._run, part)) for part in parts]

    def describe(self, sample: int) -> str:
        return f"seed {sample}"

    def _run(self, seeds: Sequence[int]) -> Any:
        noise, contexts, pooled = zip(*(self._inputs(seed) for seed in seeds), strict=True)
        times = torch.full((len(seeds),), SIGMA_INDEX)
        return self.module(torch.stack(noise), times, context=torch.stack(contexts), y=torch.stack(pooled))

    def _inputs(self, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(abs(seed))
        shapes = (4, self._size, self._size), (TOKENS, CONTEXT), (POOLED,)
        noise, context, pooled = (torch.randn(shape, generator=generator) for shape in shapes)
        shift = 0.5 if seed < 0 else 0.0
        return noise, context + shift, pooled + shift


def _unet(channels: int) -> nn.Module:
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    class Operations(comfy.ops.disable_weight_init):
        """Norms with fewer groups where the channels cannot be divided into 32."""

        class GroupNorm(comfy.ops.disable_weight_init.GroupNorm):
            def __init__(self, num_groups: int, num_channels: int, *args: Any, **kwargs: Any) -> None:
                super().__init__(math.gcd(num_groups, num_channels), num_channels, *args, **kwargs)

    torch.manual_seed(0)
    unet = UNetModel(
        image_size=32,
        in_channels=4,
        out_channels=4,
        model_channels=channels,
        num_res_blocks=[2, 2, 2],
        channel_mult=[1, 2, 4],
        transformer_depth=[0, 0, 2, 2, 10, 10],
        transformer_depth_output=[0, 0, 0, 2, 2, 2, 10, 10, 10],
        transformer_depth_middle=10,
        num_heads=-1,
        num_head_channels=64 * channels // CHANNELS[0],
        use_spatial_transformer=True,
        context_dim=CONTEXT,
        num_classes="sequential",
        adm_in_channels=POOLED,
        use_linear_in_transformer=True,
        dtype=torch.float32,
        device="cpu",
        operations=Operations,
    ).eval()
    for parameter in unet.parameters():
        fan = parameter[0].numel() if parameter.ndim > 1 else 0
        torch.nn.init.normal_(parameter, 0.0 if fan else 1.0, fan**-0.5 if fan else 0.01)
    return unet
