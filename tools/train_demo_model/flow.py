"""The text encoder and the flow model, trained together on the latents of the autoencoder."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, PreTrainedTokenizerFast

from .captions import LENGTH, SPECIAL, VOCABULARY, Captions
from .emoji import Emoji
from .training import Chance, Curve, Plan, train

WIDTH = 192
# Pictures in one of the parts of a batch.
PART = 128
PLAN = Plan(steps=6400, decay_steps=1600, rate=1e-3, muon_rate=0.02, average=0.9995, parts=2)


class _Flow(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.text_encoder = CLIPTextModelWithProjection(
            CLIPTextConfig(
                vocab_size=VOCABULARY,
                hidden_size=WIDTH,
                intermediate_size=4 * WIDTH,
                projection_dim=WIDTH,
                num_hidden_layers=2,
                num_attention_heads=3,
                max_position_embeddings=LENGTH,
                hidden_act="quick_gelu",
                pad_token_id=SPECIAL.index("<pad>"),
                bos_token_id=SPECIAL.index("<s>"),
                eos_token_id=SPECIAL.index("</s>"),
            )
        )
        self.text_encoder.set_attn_implementation("eager")
        self.transformer = SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=16,
            out_channels=16,
            num_layers=4,
            num_attention_heads=4,
            attention_head_dim=64,
            joint_attention_dim=WIDTH,
            caption_projection_dim=256,
            pooled_projection_dim=WIDTH,
            pos_embed_max_size=8,
            qk_norm="rms_norm",
        )

    def forward(self, ids: Tensor, noisy: Tensor, sigma: Tensor) -> Tensor:
        text = self.text_encoder(input_ids=ids)
        return self.transformer(
            hidden_states=noisy,
            encoder_hidden_states=text.last_hidden_state,
            pooled_projections=text.text_embeds,
            timestep=1000 * sigma,
            return_dict=False,
        )[0]


def train_flow(
    emoji: Emoji, latents: Tensor, tokenizer: PreTrainedTokenizerFast, checkpoint: Path, plan: Plan = PLAN
) -> tuple[CLIPTextModelWithProjection, SD3Transformer2DModel, Curve]:
    """Train both on ``latents [styles, concepts, 16, 8, 8]`` of the seen pictures; returns both and the curve.

    Rectified flow (Liu et al., arXiv 2209.03003): at ``x = (1 - sigma) * latent + sigma * noise`` the model
    predicts ``noise - latent``, with sigma from a logit-normal distribution (Esser et al., arXiv 2403.03206, 3.1).
    """
    torch.manual_seed(0)
    captions = Captions(emoji, tokenizer)
    pictures = [(int(style), int(concept)) for style, concept in emoji.seen.nonzero()]

    def loss(model: nn.Module, chance: Chance) -> Tensor:
        drawn = chance.words.choices(pictures, k=PART)
        ids = torch.tensor([captions.draw(style, concept, chance.words) for style, concept in drawn])
        styles, concepts = torch.tensor(drawn).T
        clean = latents[styles, concepts]
        noise = torch.randn(clean.shape, generator=chance.numbers)
        sigma = torch.randn(PART, generator=chance.numbers).sigmoid()
        weight = sigma.view(-1, 1, 1, 1)
        velocity = model(ids, (1 - weight) * clean + weight * noise, sigma)
        return nn.functional.mse_loss(velocity.float(), noise - clean)

    # The backward pass of fused attention takes a third of a step here.
    with sdpa_kernel(SDPBackend.MATH):
        average, curve = train(_Flow(), loss, plan, checkpoint, "Flow model")
    return average.text_encoder, average.transformer, curve
