"""Tiny random pipelines for video, which the adapter knows only by their signatures."""

from __future__ import annotations

from typing import Any

from pipeline_parts import WIDTH, diffusers, flow, hf, language_model, random, t5, umt5, word_tokenizer


def wan() -> Any:
    return diffusers.WanPipeline(
        tokenizer=word_tokenizer(),
        text_encoder=umt5(),
        vae=random(
            diffusers.AutoencoderKLWan(
                base_dim=4,
                z_dim=4,
                dim_mult=[1, 1, 1, 1],
                num_res_blocks=1,
                temperal_downsample=[False, True, True],
                latents_mean=[0.0] * 4,
                latents_std=[1.0] * 4,
            )
        ),
        transformer=random(
            diffusers.WanTransformer3DModel(
                in_channels=4,
                out_channels=4,
                num_attention_heads=2,
                attention_head_dim=12,
                text_dim=WIDTH,
                freq_dim=16,
                ffn_dim=32,
                num_layers=2,
                rope_max_seq_len=32,
            )
        ),
        scheduler=flow(),
    )


def ltx() -> Any:
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        patch_size=1,
        encoder_causal=True,
    )
    return diffusers.LTXPipeline(
        tokenizer=word_tokenizer(),
        text_encoder=t5(),
        vae=random(vae),
        transformer=random(
            diffusers.LTXVideoTransformer3DModel(
                in_channels=8,
                out_channels=8,
                num_attention_heads=2,
                attention_head_dim=16,
                cross_attention_dim=32,
                num_layers=2,
                caption_channels=WIDTH,
            )
        ),
        scheduler=flow(),
    )


def hunyuan_video() -> Any:
    vae = diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
    )
    clip = hf.CLIPTextConfig(
        vocab_size=64, hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    return diffusers.HunyuanVideoPipeline(
        tokenizer=word_tokenizer(),
        text_encoder=language_model("Llama", "LlamaModel", num_hidden_layers=4),
        tokenizer_2=word_tokenizer(),
        text_encoder_2=random(hf.CLIPTextModel(clip)),
        vae=random(vae),
        transformer=random(
            diffusers.HunyuanVideoTransformer3DModel(
                in_channels=4,
                out_channels=4,
                num_attention_heads=2,
                attention_head_dim=16,
                num_layers=1,
                num_single_layers=2,
                num_refiner_layers=1,
                patch_size=1,
                text_embed_dim=WIDTH,
                pooled_projection_dim=WIDTH,
                rope_axes_dim=(4, 4, 8),
            )
        ),
        scheduler=flow(),
    )
