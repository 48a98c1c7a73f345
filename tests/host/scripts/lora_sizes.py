"""Run by the host's own Python: sizes of LoRAs with the shapes of full-size models, on the meta device. Prints JSON."""

from __future__ import annotations

import json

import inside  # noqa: F401  # pyright: ignore[reportUnusedImport]

# isort: split
import safetensors.torch
import torch
from act_pack.act_core import ActMap
from act_pack.act_core.architectures import architecture_of
from act_pack.act_core.components import DIFFUSION_MODEL, Component
from act_pack.act_core.discovery import patterns_for
from act_pack.act_core.interception import submodules
from act_pack.act_core.interop.lora import lora_tensors
from act_pack.act_core.layers import output_channels
from act_pack.act_core.records import FitRecord
from act_pack.act_core.sites import Site, matches
from act_pack.act_core.steering.weights import fold_map
from act_pack.act_core.transport import Transport
from presets import MODELS
from torch import nn


def size_of(module: nn.Module, preset: str) -> dict[str, int]:
    """Sites that are folded, and bytes, of the LoRA of a random map at all sites of a preset."""
    component = Component(DIFFUSION_MODEL, module, architecture_of(module))
    patterns = tuple(pattern.partition("#")[0] for pattern in patterns_for(component, preset))
    generator = torch.Generator().manual_seed(0)
    transports: dict[Site, Transport] = {}
    for name, part in submodules(module).items():
        channels = output_channels(part)
        if channels is not None and matches(patterns, f"{DIFFUSION_MODEL}/{name}"):
            layout = "spatial" if isinstance(part, (nn.GroupNorm, nn.Conv2d)) else "tokens"
            omega, beta = torch.randn(2, channels, generator=generator)
            transports[Site(DIFFUSION_MODEL, name, None, layout, channels)] = Transport(omega, beta)
    shapes = {name: parameter.shape for name, parameter in module.named_parameters()}

    def stored(component: str, name: str) -> torch.Tensor:
        # Of the size of the weight, in the memory of one number.
        return torch.ones(()).expand(shapes[name])

    act_map = ActMap(transports, FitRecord(spatial="pointwise"))
    folded = fold_map(act_map, {DIFFUSION_MODEL: module}, parameters=stored)
    tensors = lora_tensors(folded)
    return {"sites": len(act_map), "folded": len(folded.folds), "bytes": len(safetensors.torch.save(tensors))}


def main() -> None:
    sdxl = MODELS["sdxl"]()
    print(json.dumps({preset: size_of(sdxl, preset) for preset in ("norms", "attention")}))


if __name__ == "__main__":
    main()
