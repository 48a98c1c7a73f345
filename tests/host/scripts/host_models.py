"""Tiny models in the host's own classes, which get the weights that diffusers or transformers give them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import comfy.clip_model
import comfy.ops
import comfy.utils
import torch
from comfy.ldm.flux.model import Flux
from comfy.ldm.lumina.model import NextDiT
from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.ldm.qwen_image.model import QwenImageTransformer2DModel
from comfy.ldm.wan.model import WanModel
from comfy.model_detection import convert_diffusers_mmdit
from comfy.text_encoders.llama import Qwen3_4B
from comfy.text_encoders.t5 import T5
from raw_models import Inputs
from torch import Tensor, nn

BUILT: dict[str, Any] = {"dtype": torch.float32, "device": "cpu", "operations": comfy.ops.disable_weight_init}
TEXT = 32
UNET: dict[str, Any] = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": [2, 2],
    "channel_mult": [1, 2],
    "use_spatial_transformer": True,
    "context_dim": TEXT,
    "num_heads": 2,
    "num_head_channels": -1,
    "legacy": False,
}
SD15 = {
    "transformer_depth": [1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 0, 0, 0],
    "transformer_depth_middle": 1,
    "use_linear_in_transformer": False,
}
SDXL = {
    "transformer_depth": [0, 0, 2, 2],
    "transformer_depth_output": [0, 0, 0, 2, 2, 2],
    "transformer_depth_middle": 2,
    "use_linear_in_transformer": True,
    "num_classes": "sequential",
    "adm_in_channels": 16 + 6 * 8,
}
CLIP = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 2,
    "intermediate_size": 96,
    "hidden_act": "quick_gelu",
    "max_position_embeddings": 77,
    "eos_token_id": 49407,
}
T5_SIZES = {
    "vocab_size": 99,
    "d_model": 64,
    "d_kv": 32,
    "d_ff": 96,
    "num_layers": 2,
    "num_heads": 2,
    "dense_act_fn": "gelu_pytorch_tanh",
    "is_gated_act": True,
    "model_type": "t5",
}
QWEN3 = {
    "vocab_size": 99,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
STREAMS = {"in_channels": 16, "out_channels": 16, "patch_size": 2}

Weights = Mapping[str, Tensor]


def of_unet(settings: dict[str, Any], weights: Weights) -> tuple[nn.Module, Weights]:
    config = {**UNET, **settings}
    names = comfy.utils.unet_to_diffusers(config)
    if (
        "adm_in_channels" in config
    ):  # which that table leaves out; these names are those of `unet_config_from_diffusers`
        for end in ("weight", "bias"):
            names[f"add_embedding.linear_1.{end}"] = f"label_emb.0.0.{end}"
            names[f"add_embedding.linear_2.{end}"] = f"label_emb.0.2.{end}"
    return UNetModel(**config, **BUILT), {names[name]: tensor for name, tensor in weights.items()}


def of_sd3(weights: Weights) -> tuple[nn.Module, Weights]:
    model = OpenAISignatureMMDITWrapper(
        input_size=None,
        patch_size=2,
        in_channels=16,
        depth=2,
        adm_in_channels=16,
        context_embedder_config={"target": "torch.nn.Linear", "params": {"in_features": TEXT, "out_features": 128}},
        num_patches=256,
        pos_embed_max_size=16,
        qk_norm="rms",
        x_block_self_attn_layers=[0],
        **BUILT,
    )
    return model, convert_diffusers_mmdit(weights)


def of_flux(weights: Weights) -> tuple[nn.Module, Weights]:
    model = Flux(
        **STREAMS,
        image_model="flux",
        vec_in_dim=16,
        context_in_dim=TEXT,
        hidden_size=128,
        mlp_ratio=4.0,
        num_heads=1,
        depth=2,
        depth_single_blocks=2,
        axes_dim=[16, 56, 56],
        theta=10000,
        txt_ids_dims=[],
        qkv_bias=True,
        guidance_embed=True,
        **BUILT,
    )
    return model, convert_diffusers_mmdit(weights)


def of_qwen_image(weights: Weights) -> tuple[nn.Module, Weights]:
    sizes = {"in_channels": 64, "num_layers": 2, "num_attention_heads": 1, "joint_attention_dim": TEXT}
    return QwenImageTransformer2DModel(**sizes, **BUILT), weights


def of_z_image(weights: Weights) -> tuple[nn.Module, Weights]:
    model = NextDiT(
        patch_size=2,
        in_channels=16,
        dim=384,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=3,
        n_kv_heads=3,
        cap_feat_dim=TEXT,
        qk_norm=True,
        axes_dims=[32, 48, 48],
        axes_lens=[1536, 512, 512],
        rope_theta=256.0,
        ffn_dim_multiplier=8 / 3,
        multiple_of=32,
        z_image_modulation=True,
        time_scale=1000.0,
        pad_tokens_multiple=32,
        **BUILT,
    )
    return model, convert_diffusers_mmdit(dict(weights))


def of_wan(weights: Weights) -> tuple[nn.Module, Weights]:
    """The host has no table for the weights of Wan in diffusers."""
    changes = {
        "condition_embedder.time_embedder.linear_1": "time_embedding.0",
        "condition_embedder.time_embedder.linear_2": "time_embedding.2",
        "condition_embedder.time_proj": "time_projection.1",
        "condition_embedder.text_embedder.linear_1": "text_embedding.0",
        "condition_embedder.text_embedder.linear_2": "text_embedding.2",
        "proj_out": "head.head",
        "attn1.": "self_attn.",
        "attn2.": "cross_attn.",
        ".to_out.0": ".o",
        ".to_q": ".q",
        ".to_k": ".k",
        ".to_v": ".v",
        ".ffn.net.0.proj": ".ffn.0",
        ".ffn.net.2": ".ffn.2",
        ".norm2": ".norm3",
    }
    converted: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        own = name
        for theirs, ours in changes.items():
            own = own.replace(theirs, ours)
        if own.endswith("scale_shift_table"):
            own = own.replace("scale_shift_table", "modulation" if own.startswith("blocks.") else "head.modulation")
        converted[own] = tensor
    sizes = {"dim": 128, "ffn_dim": 256, "num_heads": 1, "num_layers": 2, "text_dim": TEXT}
    return WanModel(**sizes, **BUILT), converted


def of_text(kind: Callable[..., nn.Module], sizes: dict[str, Any], weights: Weights) -> tuple[nn.Module, Weights]:
    model = kind(sizes, torch.float32, "cpu", BUILT["operations"])
    names = model.state_dict()
    converted: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        fitting = [own for own in (name, f"model.{name}", f"text_model.{name}") if own in names]
        if fitting:
            converted[fitting[0]] = tensor
    # The small CLIP has no projection in transformers.
    identity = {"text_projection.weight": torch.eye(64)} if "text_projection.weight" in names else {}
    return model, {**identity, **converted}


def run_unet(model: Any, given: Inputs) -> Tensor:
    return model(given["x"], given["time"] * 1000, given["text"], y=given.get("pooled"))


def run_streams(model: Any, given: Inputs) -> Tensor:
    return model(given["x"], given["time"], given["text"], given["pooled"], given.get("guidance"))


def run_sd3(model: Any, given: Inputs) -> Tensor:
    return model(given["x"], given["time"] * 1000, given["text"], given["pooled"])


def run_qwen_image(model: Any, given: Inputs) -> Tensor:
    return model(given["x"].unsqueeze(2), given["time"], given["text"]).squeeze(2)


def run_z_image(model: Any, given: Inputs) -> Tensor:
    return -model(given["x"], given["time"], given["text"], given["text"].shape[1])


def run_wan(model: Any, given: Inputs) -> Tensor:
    return model(given["x"], given["time"] * 1000, given["text"])


def run_text(model: Any, given: Inputs) -> Tensor:
    return model(given["text"], None)[0]


FAMILIES: dict[str, tuple[str, Callable[[Weights], tuple[nn.Module, Weights]], Callable[[Any, Inputs], Tensor]]] = {
    "SD 1.5": ("diffusion_model", partial(of_unet, SD15), run_unet),
    "SDXL": ("diffusion_model", partial(of_unet, SDXL), run_unet),
    "SD3": ("diffusion_model", of_sd3, run_sd3),
    "Flux": ("diffusion_model", of_flux, run_streams),
    "Qwen-Image": ("diffusion_model", of_qwen_image, run_qwen_image),
    "Z-Image": ("diffusion_model", of_z_image, run_z_image),
    "Wan": ("diffusion_model", of_wan, run_wan),
    "CLIP": ("clip_l", partial(of_text, comfy.clip_model.CLIPTextModel, CLIP), run_text),
    "T5": ("t5xxl", partial(of_text, T5, T5_SIZES), run_text),
    "Qwen3": ("qwen3_4b", partial(of_text, Qwen3_4B, QWEN3), run_text),
    "Qwen3 with a head": ("qwen3_4b", partial(of_text, Qwen3_4B, QWEN3), run_text),
}
