"""Tiny random text-to-image pipelines of each kind that the adapter supports, and helpers for them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
from helpers import byte_tokenizer, prompts, randomise, swapped
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from act_core import ActMap, fit
from act_core.models.diffusers import DiffusersModel

# Its annotations allow only one class where several are valid, and never None.
diffusers: Any = importlib.import_module("diffusers")

WIDTH = 32
TOKENS = 24
SIZE = (16, 16)
SOURCE, TARGET = prompts("source", 5), prompts("target", 5)


def stable_diffusion() -> Any:
    return diffusers.StableDiffusionPipeline(
        vae=_vae(4),
        text_encoder=_clip(CLIPTextModel),
        tokenizer=_tokenizer(),
        unet=_unet(),
        scheduler=diffusers.PNDMScheduler(skip_prk_steps=True, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stable_diffusion_xl() -> Any:
    return diffusers.StableDiffusionXLPipeline(
        vae=_vae(4),
        text_encoder=_clip(CLIPTextModel),
        tokenizer=_tokenizer(),
        text_encoder_2=_clip(CLIPTextModelWithProjection),
        tokenizer_2=_tokenizer(),
        unet=_unet(
            cross_attention_dim=2 * WIDTH,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + WIDTH,
        ),
        scheduler=diffusers.EulerDiscreteScheduler(timestep_spacing="leading", steps_offset=1),
        add_watermarker=False,
    )


def stable_diffusion_3() -> Any:
    return diffusers.StableDiffusion3Pipeline(
        vae=_vae(16),
        text_encoder=_clip(CLIPTextModelWithProjection),
        tokenizer=_tokenizer(),
        text_encoder_2=_clip(CLIPTextModelWithProjection),
        tokenizer_2=_tokenizer(),
        text_encoder_3=_t5(2 * WIDTH),
        tokenizer_3=_tokenizer(),
        transformer=_mmdit(2 * WIDTH),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def one_encoder() -> Any:
    """The kind of the demo model: SD3 with one text encoder as wide as the context."""
    return diffusers.StableDiffusion3Pipeline(
        vae=_vae(16),
        text_encoder=_clip(CLIPTextModelWithProjection),
        tokenizer=_tokenizer(),
        text_encoder_2=None,
        tokenizer_2=None,
        text_encoder_3=None,
        tokenizer_3=None,
        transformer=_mmdit(WIDTH),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def flux() -> Any:
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=True,
    )
    return diffusers.FluxPipeline(
        vae=_vae(4),
        text_encoder=_clip(CLIPTextModel),
        tokenizer=_tokenizer(),
        text_encoder_2=_t5(),
        tokenizer_2=_tokenizer(),
        transformer=_random(transformer),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
    )


PIPELINES: dict[str, Callable[[], Any]] = {
    "stable diffusion": stable_diffusion,
    "sdxl": stable_diffusion_xl,
    "sd3": stable_diffusion_3,
    "one encoder": one_encoder,
    "flux": flux,
}


def fitted(model: DiffusersModel, sites: str = "attention", **settings: Any) -> ActMap:
    return fit(model, SOURCE, TARGET, sites=sites, **settings)


def pixels(model: DiffusersModel, texts: list[str] | None = None, **settings: Any) -> Any:
    images = model.generate(texts or SOURCE[:2], steps=3, **settings)
    return np.stack([np.asarray(image) for image in images]).astype(int)


def all_swapped(model: DiffusersModel) -> list[str]:
    return [name for module in model.modules.values() for name in swapped(module)]


def _random(module: Any) -> Any:
    return randomise(module, scale=0.1).eval()


def _tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = "<end>"
    tokenizer.model_max_length = TOKENS
    return tokenizer


def _clip(kind: Any) -> Any:
    config = CLIPTextConfig(
        vocab_size=257,
        hidden_size=WIDTH,
        intermediate_size=48,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        bos_token_id=1,
        eos_token_id=0,
        pad_token_id=0,
    )
    return _random(kind(config))


def _t5(width: int = WIDTH) -> Any:
    config = T5Config(vocab_size=257, d_model=width, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    return _random(T5EncoderModel(config))


def _vae(latent_channels: int) -> Any:
    return _random(
        diffusers.AutoencoderTiny(
            latent_channels=latent_channels,
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1),
        )
    )


def _unet(**settings: Any) -> Any:
    sizes: dict[str, Any] = {"cross_attention_dim": WIDTH, **settings}
    return _random(
        diffusers.UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(16, 32),
            layers_per_block=1,
            norm_num_groups=8,
            attention_head_dim=8,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            **sizes,
        )
    )


def _mmdit(context: int) -> Any:
    return _random(
        diffusers.SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=16,
            out_channels=16,
            num_layers=3,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=context,
            caption_projection_dim=32,
            pooled_projection_dim=context,
            pos_embed_max_size=8,
            qk_norm="rms_norm",
        )
    )
