"""Run by the host's own Python: how many parts of its full-size models match the presets, as JSON."""

from __future__ import annotations

import json

import inside  # noqa: F401  # pyright: ignore[reportUnusedImport]

# isort: split
import comfy.ops
import torch
from act_pack.act_core.architectures import architecture_of
from act_pack.act_core.components import Component
from act_pack.act_core.discovery import patterns_for
from act_pack.act_core.interception import submodules
from act_pack.act_core.sites import matches
from comfy.ldm.flux.model import Flux
from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.ldm.wan.model import WanModel

BUILT = {"dtype": torch.float16, "device": "meta", "operations": comfy.ops.disable_weight_init}
UNET = {"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "use_spatial_transformer": True}
MODELS = {
    "sdxl": lambda: UNetModel(
        **UNET,
        **BUILT,
        num_res_blocks=[2, 2, 2],
        channel_mult=[1, 2, 4],
        transformer_depth=[0, 0, 2, 2, 10, 10],
        transformer_depth_output=[0, 0, 0, 2, 2, 2, 10, 10, 10],
        transformer_depth_middle=10,
        num_head_channels=64,
        context_dim=2048,
        adm_in_channels=2816,
        num_classes="sequential",
        use_linear_in_transformer=True,
    ),
    "sd15": lambda: UNetModel(
        **UNET,
        **BUILT,
        num_res_blocks=[2, 2, 2, 2],
        channel_mult=[1, 2, 4, 4],
        transformer_depth=[1, 1, 1, 1, 1, 1, 0, 0],
        transformer_depth_output=[1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
        transformer_depth_middle=1,
        num_heads=8,
        context_dim=768,
        use_linear_in_transformer=False,
    ),
    "sd3": lambda: OpenAISignatureMMDITWrapper(
        **BUILT,
        input_size=None,
        patch_size=2,
        in_channels=16,
        depth=24,
        adm_in_channels=2048,
        context_embedder_config={"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 1536}},
        num_patches=192 * 192,
        pos_embed_max_size=192,
    ),
    "flux": lambda: Flux(
        **BUILT,
        image_model="flux",
        in_channels=16,
        out_channels=16,
        patch_size=2,
        vec_in_dim=768,
        context_in_dim=4096,
        hidden_size=3072,
        mlp_ratio=4.0,
        num_heads=24,
        depth=19,
        depth_single_blocks=38,
        axes_dim=[16, 56, 56],
        theta=10000,
        qkv_bias=True,
        guidance_embed=True,
        txt_ids_dims=[],
    ),
    "wan": lambda: WanModel(**BUILT, dim=1536, ffn_dim=8960, num_heads=12, num_layers=30),
}


def main() -> None:
    counts: dict[str, dict[str, int]] = {}
    for name, build in MODELS.items():
        module = build()
        component = Component("diffusion_model", module, architecture_of(module))
        counts[name] = {}
        for preset in component.architecture.presets:
            patterns = tuple(pattern.partition("#")[0] for pattern in patterns_for(component, preset))
            keys = [f"diffusion_model/{part}" for part in submodules(module) if part]
            counts[name][preset] = sum(matches(patterns, key) for key in keys)
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
