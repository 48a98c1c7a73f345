"""Tiny models as diffusers and transformers build them, which the host builds, too."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

Inputs = Mapping[str, Tensor]

diffusers: Any = importlib.import_module("diffusers")
hf: Any = transformers

TEXT, TOKENS = 32, 7


@dataclass(frozen=True)
class Family:
    """A model as diffusers or transformers builds it.

    Attributes:
        build: makes it.
        run: calls it on rows of the inputs.
        inputs: their shapes without the rows; a name that ends in ``.target`` is that of the target alone.
        component: its name in a pipeline of diffusers.
    """

    build: Callable[[], nn.Module]
    run: Callable[[Any, Inputs], Tensor]
    inputs: dict[str, tuple[int, ...]]
    component: str = "diffusion_model"


def unet(**settings: Any) -> nn.Module:
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        cross_attention_dim=TEXT,
        attention_head_dim=2,
        layers_per_block=2,
        **settings,
    )


def sd15() -> nn.Module:
    return unet(
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )


def sdxl() -> nn.Module:
    return unet(
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=16 + 6 * 8,
    )


def run_unet(model: Any, given: Inputs) -> Tensor:
    added = None
    if "pooled" in given:
        added = {"text_embeds": given["pooled"], "time_ids": given["sizes"]}
    time = given["time"] * 1000
    return model(given["x"], time, given["text"], added_cond_kwargs=added).sample


def sd3() -> nn.Module:
    return diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=2,
        attention_head_dim=64,
        num_attention_heads=2,
        joint_attention_dim=TEXT,
        caption_projection_dim=128,
        pooled_projection_dim=16,
        pos_embed_max_size=16,
        qk_norm="rms_norm",
        dual_attention_layers=(0,),
    )


def run_sd3(model: Any, given: Inputs) -> Tensor:
    return model(given["x"], given["text"], given["pooled"], given["time"] * 1000).sample


def flux() -> nn.Module:
    return diffusers.FluxTransformer2DModel(
        in_channels=64,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=128,
        num_attention_heads=1,
        joint_attention_dim=TEXT,
        pooled_projection_dim=16,
        guidance_embeds=True,
    )


def packed(x: Tensor) -> Tensor:
    """Latents ``[n, channels, height, width]`` as tokens of 2 x 2 positions."""
    rows, channels, height, width = x.shape
    x = x.view(rows, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return x.reshape(rows, -1, channels * 4)


def unpacked(x: Tensor, like: Tensor) -> Tensor:
    rows, channels, height, width = like.shape
    x = x.view(rows, height // 2, width // 2, channels, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return x.reshape(like.shape)


def run_flux(model: Any, given: Inputs) -> Tensor:
    x = given["x"]
    ids = torch.zeros(x.shape[2] // 2, x.shape[3] // 2, 3)
    ids[..., 1] += torch.arange(ids.shape[0])[:, None]
    ids[..., 2] += torch.arange(ids.shape[1])
    output = model(
        packed(x),
        given["text"],
        given["pooled"],
        given["time"],
        img_ids=ids.view(-1, 3),
        txt_ids=torch.zeros(given["text"].shape[1], 3),
        guidance=given["guidance"],
    ).sample
    return unpacked(output, x)


def qwen_image() -> nn.Module:
    return diffusers.QwenImageTransformer2DModel(
        in_channels=64,
        out_channels=16,
        num_layers=2,
        attention_head_dim=128,
        num_attention_heads=1,
        joint_attention_dim=TEXT,
    )


def run_qwen_image(model: Any, given: Inputs) -> Tensor:
    x = given["x"]
    shapes = [[(1, x.shape[2] // 2, x.shape[3] // 2)]] * len(x)
    output = model(packed(x), given["text"], timestep=given["time"], img_shapes=shapes).sample
    return unpacked(output, x)


def z_image() -> nn.Module:
    model = diffusers.ZImageTransformer2DModel(
        in_channels=16, dim=384, n_layers=2, n_refiner_layers=1, n_heads=3, n_kv_heads=3, cap_feat_dim=TEXT
    )
    # The host makes this layer no wider than the model.
    model.t_embedder = type(model.t_embedder)(256, mid_size=384)
    return model


def run_z_image(model: Any, given: Inputs) -> Tensor:
    """Time runs backwards there."""
    pictures = [x.unsqueeze(1) for x in given["x"]]
    return torch.stack(model(pictures, 1 - given["time"], list(given["text"])).sample).squeeze(2)


def wan() -> nn.Module:
    return diffusers.WanTransformer3DModel(
        num_attention_heads=1, attention_head_dim=128, text_dim=TEXT, ffn_dim=256, num_layers=2
    )


def run_wan(model: Any, given: Inputs) -> Tensor:
    return model(given["x"], given["time"] * 1000, given["text"]).sample


def clip() -> nn.Module:
    config = hf.CLIPTextConfig(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2)
    return hf.CLIPTextModel(config)


def t5() -> nn.Module:
    sizes = {"vocab_size": 99, "d_model": 64, "d_kv": 32, "d_ff": 96, "num_layers": 2, "num_heads": 2}
    return hf.T5EncoderModel(hf.T5Config(**sizes, feed_forward_proj="gated-gelu"))


def qwen3(kind: str) -> nn.Module:
    config = hf.Qwen3Config(
        vocab_size=99,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=128,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
    )
    return getattr(hf, kind)(config)


def run_text(model: Any, given: Inputs) -> Tensor:
    """Whole numbers of tokens, made of noise."""
    # The last layer of a language model with a head is not the logits.
    inner = getattr(model, "model", model)
    return inner(tokens_of(given["text"])).last_hidden_state


def tokens_of(noise: Tensor) -> Tensor:
    return (noise.abs() * 1000).long() % 97


_PICTURE = {"x": (16, 8, 8), "time": (), "text": (TOKENS, TEXT)}
_UNET = {**_PICTURE, "x": (4, 8, 8)}
_WORDS: dict[str, tuple[int, ...]] = {"text": (TOKENS,)}

FAMILIES = {
    "SD 1.5": Family(sd15, run_unet, _UNET),
    "SDXL": Family(sdxl, run_unet, {**_UNET, "pooled": (16,), "sizes": (6,)}),
    "SD3": Family(sd3, run_sd3, {**_PICTURE, "pooled": (16,)}),
    "Flux": Family(flux, run_flux, {**_PICTURE, "pooled": (16,), "guidance": ()}),
    "Qwen-Image": Family(qwen_image, run_qwen_image, _PICTURE),
    # Text and picture share a stream there, and the target has longer prompts.
    "Z-Image": Family(z_image, run_z_image, {**_PICTURE, "text.target": (40, TEXT)}),
    "Wan": Family(wan, run_wan, {**_PICTURE, "x": (16, 2, 8, 8)}),
    "CLIP": Family(clip, run_text, {"text": (77,)}, "clip_l"),
    "T5": Family(t5, run_text, _WORDS, "t5xxl"),
    "Qwen3": Family(lambda: qwen3("Qwen3Model"), run_text, _WORDS, "qwen3"),
    "Qwen3 with a head": Family(lambda: qwen3("Qwen3ForCausalLM"), run_text, _WORDS, "language_model"),
}
