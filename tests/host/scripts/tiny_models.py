"""Run by the host's own Python: tiny random models in the host's own formats, as files that its loaders accept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import inside

# isort: split
import comfy.clip_model
import comfy.ops
import torch
from comfy.ldm.flux.model import Flux
from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.ldm.wan.model import WanModel
from safetensors.torch import save_file

MODELS = Path(inside.ARGUMENTS[0])
BUILT: dict[str, Any] = {"dtype": torch.float32, "device": "meta", "operations": comfy.ops.disable_weight_init}


def sd15(*widths: int) -> torch.nn.Module:
    """320 channels times a width at each level, since FreeU, for example, acts only on 640 and 1280 channels."""
    each = [1] * len(widths)
    return UNetModel(
        image_size=32,
        in_channels=4,
        out_channels=4,
        model_channels=320,
        num_res_blocks=each,
        channel_mult=list(widths),
        transformer_depth=each,
        transformer_depth_output=2 * each,
        transformer_depth_middle=1,
        num_heads=8,
        num_head_channels=-1,
        use_spatial_transformer=True,
        context_dim=768,
        use_linear_in_transformer=False,
        **BUILT,
    )


def sd3() -> torch.nn.Module:
    return OpenAISignatureMMDITWrapper(
        input_size=None,
        patch_size=2,
        in_channels=16,
        depth=2,
        adm_in_channels=2048,
        context_embedder_config={
            "target": "torch.nn.Linear",
            "params": {"in_features": 4096, "out_features": 128},
        },
        num_patches=16 * 16,
        pos_embed_max_size=16,
        **BUILT,
    )


def flux() -> torch.nn.Module:
    return Flux(
        image_model="flux",
        in_channels=16,
        out_channels=16,
        patch_size=2,
        vec_in_dim=768,
        context_in_dim=4096,
        hidden_size=256,
        mlp_ratio=4.0,
        num_heads=2,
        depth=1,
        depth_single_blocks=1,
        axes_dim=[16, 56, 56],
        theta=10000,
        txt_ids_dims=[],
        qkv_bias=True,
        guidance_embed=False,
        **BUILT,
    )


def wan() -> torch.nn.Module:
    return WanModel(dim=128, ffn_dim=256, num_heads=1, num_layers=2, **BUILT)


def clip_l() -> torch.nn.Module:
    config = {
        "num_hidden_layers": 12,
        "hidden_size": 768,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "hidden_act": "quick_gelu",
        "max_position_embeddings": 77,
        "eos_token_id": 49407,
    }
    return comfy.clip_model.CLIPTextModel(config, torch.float32, "meta", BUILT["operations"])


def filled(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Seeded noise, scaled so that activations neither vanish nor explode; norms keep their initial values."""
    generator = torch.Generator().manual_seed(0)
    weights: dict[str, torch.Tensor] = {}
    for name, meta in module.state_dict().items():
        if meta.ndim == 1:
            ones = torch.ones(meta.shape) if name.endswith(("weight", "scale")) else torch.zeros(meta.shape)
            weights[name] = ones + 0.1 * torch.randn(meta.shape, generator=generator)
        else:
            width = meta[0].numel() if meta.ndim > 1 else 1
            weights[name] = torch.randn(meta.shape, generator=generator) / width**0.5
    return {name: weight.half() for name, weight in weights.items()}


def main() -> None:
    for folder, name, module in (
        ("diffusion_models", "tiny_sd15", sd15(1)),
        ("diffusion_models", "tiny_sd15_wide", sd15(1, 2)),
        ("diffusion_models", "tiny_sd3", sd3()),
        ("diffusion_models", "tiny_flux", flux()),
        ("diffusion_models", "tiny_wan", wan()),
        ("text_encoders", "clip_l", clip_l()),
    ):
        (MODELS / folder).mkdir(parents=True, exist_ok=True)
        save_file(filled(module), MODELS / folder / f"{name}.safetensors")
    # What a LoRA of full rank is to the host: a difference of weights.
    name = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_out.0.diff"
    difference = torch.randn(320, 320, generator=torch.Generator().manual_seed(1)) / 20
    (MODELS / "loras").mkdir()
    save_file({name: difference}, MODELS / "loras" / "tiny.safetensors")


if __name__ == "__main__":
    main()
