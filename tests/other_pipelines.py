"""Tiny random pipelines of kinds that the adapter knows only by their signatures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipeline_parts import (
    WIDTH,
    diffusers,
    flow,
    gemma,
    hf,
    image_vae,
    language_model,
    random,
    sizes,
    t5,
    umt5,
    word_tokenizer,
)
from video_pipelines import hunyuan_video, ltx, wan


def pixart() -> Any:
    return diffusers.PixArtSigmaPipeline(
        tokenizer=word_tokenizer(),
        text_encoder=t5(),
        vae=image_vae(4),
        transformer=random(
            diffusers.PixArtTransformer2DModel(
                sample_size=8,
                num_layers=2,
                num_attention_heads=2,
                attention_head_dim=16,
                cross_attention_dim=32,
                caption_channels=WIDTH,
            )
        ),
        scheduler=diffusers.DPMSolverMultistepScheduler(),
    )


def lumina_2() -> Any:
    return diffusers.Lumina2Pipeline(
        tokenizer=word_tokenizer(),
        text_encoder=gemma(),
        vae=image_vae(16),
        transformer=random(
            diffusers.Lumina2Transformer2DModel(
                sample_size=8,
                hidden_size=24,
                num_layers=2,
                num_refiner_layers=1,
                num_attention_heads=2,
                num_kv_heads=1,
                multiple_of=8,
                axes_dim_rope=(4, 4, 4),
                axes_lens=(300, 32, 32),
                cap_feat_dim=WIDTH,
            )
        ),
        scheduler=flow(),
    )


def z_image() -> Any:
    return diffusers.ZImagePipeline(
        tokenizer=word_tokenizer(),
        text_encoder=language_model("Qwen3", "Qwen3Model"),
        vae=image_vae(16),
        transformer=random(
            diffusers.ZImageTransformer2DModel(
                in_channels=16,
                dim=32,
                n_layers=2,
                n_refiner_layers=1,
                n_heads=2,
                n_kv_heads=2,
                cap_feat_dim=WIDTH,
                axes_dims=[8, 4, 4],
                axes_lens=[256, 32, 32],
            )
        ),
        scheduler=flow(),
    )


def qwen_image() -> Any:
    text = sizes(rope_parameters={"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0})
    config = hf.Qwen2_5_VLConfig(
        text_config=text,
        vision_config={"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32},
    )
    return diffusers.QwenImagePipeline(
        tokenizer=word_tokenizer(),
        text_encoder=random(hf.Qwen2_5_VLForConditionalGeneration(config)),
        vae=random(
            diffusers.AutoencoderKLQwenImage(
                base_dim=8,
                z_dim=4,
                dim_mult=[1, 1],
                num_res_blocks=1,
                temperal_downsample=[False],
                latents_mean=[0.0] * 4,
                latents_std=[1.0] * 4,
            )
        ),
        transformer=random(
            diffusers.QwenImageTransformer2DModel(
                in_channels=16,
                out_channels=4,
                num_layers=2,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=WIDTH,
                axes_dims_rope=(8, 4, 4),
            )
        ),
        scheduler=flow(),
    )


def sana() -> Any:
    vae = diffusers.AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_types=("ResBlock", "ResBlock"),
        decoder_block_types=("ResBlock", "ResBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        upsample_block_type="interpolate",
        downsample_block_type="stride_conv",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
    )
    return diffusers.SanaPipeline(
        tokenizer=word_tokenizer(),
        text_encoder=gemma(),
        vae=random(vae),
        transformer=random(
            diffusers.SanaTransformer2DModel(
                in_channels=4,
                out_channels=4,
                num_attention_heads=2,
                attention_head_dim=16,
                num_layers=2,
                num_cross_attention_heads=2,
                cross_attention_head_dim=16,
                cross_attention_dim=32,
                caption_channels=WIDTH,
                sample_size=8,
            )
        ),
        scheduler=flow(),
    )


def chroma() -> Any:
    return diffusers.ChromaPipeline(
        tokenizer=word_tokenizer(),
        text_encoder=t5(),
        vae=image_vae(4),
        transformer=random(
            diffusers.ChromaTransformer2DModel(
                in_channels=16,
                num_layers=1,
                num_single_layers=2,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=WIDTH,
                axes_dims_rope=(4, 4, 8),
                approximator_num_channels=16,
                approximator_hidden_dim=32,
                approximator_layers=1,
            )
        ),
        scheduler=flow(),
    )


def flux_2_klein() -> Any:
    vae = diffusers.AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        block_out_channels=(8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
    )
    return diffusers.Flux2KleinPipeline(
        tokenizer=word_tokenizer(),
        # The pipeline reads the outputs of its layers 9, 18 and 27.
        text_encoder=language_model("Qwen3", "Qwen3ForCausalLM", num_hidden_layers=27),
        vae=random(vae),
        transformer=random(
            diffusers.Flux2Transformer2DModel(
                in_channels=16,
                num_layers=1,
                num_single_layers=2,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=3 * WIDTH,
                timestep_guidance_channels=16,
                axes_dims_rope=(4, 4, 4, 4),
                guidance_embeds=False,
            )
        ),
        scheduler=flow(),
    )


def aura_flow() -> Any:
    return diffusers.AuraFlowPipeline(
        tokenizer=word_tokenizer(),
        text_encoder=umt5(),
        vae=image_vae(4),
        transformer=random(
            diffusers.AuraFlowTransformer2DModel(
                sample_size=8,
                num_mmdit_layers=1,
                num_single_dit_layers=2,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=WIDTH,
                caption_projection_dim=32,
                pos_embed_max_size=64,
            )
        ),
        scheduler=flow(),
    )


def cogview_4() -> Any:
    return diffusers.CogView4Pipeline(
        tokenizer=word_tokenizer(),
        text_encoder=language_model("Glm", "GlmModel"),
        vae=image_vae(4),
        transformer=random(
            diffusers.CogView4Transformer2DModel(
                in_channels=4,
                out_channels=4,
                num_layers=2,
                attention_head_dim=16,
                num_attention_heads=2,
                text_embed_dim=WIDTH,
                time_embed_dim=16,
                condition_dim=8,
                pos_embed_max_size=8,
                sample_size=8,
                rope_axes_dim=(8, 8),
            )
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(
            base_shift=0.25, max_shift=0.75, base_image_seq_len=256, use_dynamic_shifting=True, time_shift_type="linear"
        ),
    )


OTHER_PIPELINES: dict[str, Callable[[], Any]] = {
    "pixart": pixart,
    "lumina 2": lumina_2,
    "z-image": z_image,
    "qwen-image": qwen_image,
    "sana": sana,
    "chroma": chroma,
    "flux 2 klein": flux_2_klein,
    "auraflow": aura_flow,
    "wan": wan,
    "ltx": ltx,
    "hunyuanvideo": hunyuan_video,
    "cogview 4": cogview_4,
}
