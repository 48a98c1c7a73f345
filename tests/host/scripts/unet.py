"""Run by the host's own Python: the core on the host's own UNet. Prints JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import cast

import torch

PACK, HOST = Path(__file__).resolve().parents[3], Path(sys.argv[1])
sys.path[:0] = [str(PACK), str(HOST)]
sys.argv[1:] = ["--cpu"]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.ops  # noqa: E402
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel  # noqa: E402

import act_core  # noqa: E402
from act_core.architectures import architecture_of  # noqa: E402
from act_core.components import Component  # noqa: E402
from act_core.fitting import FitModel, MicroBatch  # noqa: E402
from act_core.interception import submodules  # noqa: E402
from benchmarks.lib.rerun import fit_by_rerunning  # noqa: E402


class TinyUNet(FitModel[str]):
    """A random UNet of the host; a prompt is a seed, and target prompts have a different mean."""

    def __init__(self) -> None:
        self.module = UNetModel(
            image_size=8,
            in_channels=4,
            out_channels=4,
            model_channels=32,
            num_res_blocks=1,
            channel_mult=[1, 2],
            num_heads=2,
            num_head_channels=-1,
            use_spatial_transformer=True,
            transformer_depth=[1, 1],
            transformer_depth_output=[1, 1, 1, 1],
            transformer_depth_middle=1,
            context_dim=16,
            use_linear_in_transformer=False,
            dtype=torch.float32,
            device="cpu",
            operations=comfy.ops.disable_weight_init,
        )
        generator = torch.Generator().manual_seed(0)
        for parameter in self.module.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2

    @property
    def components(self) -> list[Component]:
        return [Component("diffusion_model", self.module, architecture_of(self.module))]

    def batches(self, samples: Sequence[str], size: int) -> list[MicroBatch]:
        return [self._batch(samples[at : at + size]) for at in range(0, len(samples), size)]

    def _batch(self, prompts: Sequence[str]) -> MicroBatch:
        latents, contexts = [], []
        for prompt in prompts:
            side, seed = prompt.split()
            generator = torch.Generator().manual_seed(int(seed))
            latents.append(torch.randn(4, 8, 8, generator=generator))
            contexts.append(torch.randn(5, 16, generator=generator) + (side == "target"))
        timesteps = torch.full((len(prompts),), 999.0)
        run = partial(self.module, torch.stack(latents), timesteps, context=torch.stack(contexts))
        return MicroBatch(len(prompts), run)


def outputs(model: TinyUNet, prompts: Sequence[str]) -> torch.Tensor:
    return cast("torch.Tensor", model.batches(prompts, len(prompts))[0].run())


def main() -> None:
    model = TinyUNet()
    source, target = ([f"{side} {seed}" for seed in range(7)] for side in ("source", "target"))
    sites = "*norm*, *in_layers.0"
    with torch.inference_mode():
        act_map = act_core.fit(model, source, target, sites=sites, batch_size=3)
        again = fit_by_rerunning(model, source, target, sites, batch_size=3)
        plain = outputs(model, source)
        with act_core.steer(model.module, act_map, 0.0):
            off = outputs(model, source)
        with act_core.steer(model.module, act_map) as steering:
            on = outputs(model, source)
        after = outputs(model, source)
    print(
        json.dumps(
            {
                "layouts": sorted({site.layout for site in act_map.transports}),
                "sites": [site.name for site in act_map.transports],
                "registered": list(submodules(model.module)),
                "difference": max(act_map.difference(again).values()),
                "strength 0 is exact": torch.equal(plain, off),
                "after is exact": torch.equal(plain, after),
                "moved": float((on - plain).abs().max()),
                "fired": len(steering.coverage.fired),
                "left behind": sum("forward" in module.__dict__ for module in model.module.modules()),
            }
        )
    )


main()
