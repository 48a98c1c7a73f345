"""Run by the host's own Python: outputs of the demo model in the host's own classes, as a file of tensors."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

import inside

# isort: split
import torch
from act_pack.act_core.fitting.frozen import frozen
from act_pack.act_core.interception import intercepted
from act_pack.nodes.host.demo_model import load_demo_model
from act_pack.nodes.host.text_encoders import TextEncoders
from act_pack.nodes.host.training import training
from safetensors.torch import save_file

OUT, *PROMPTS = inside.ARGUMENTS


def captions(clip: Any, method: str) -> dict[str, torch.Tensor]:
    """The conditioning of captions by a method of the text encoders, and the gradient of an offset inside of them."""
    encoders = TextEncoders(clip)
    layer = clip.cond_stage_model.clip_l.transformer.text_model.encoder.layers[0].mlp
    roots = [encoders.module]
    with torch.inference_mode(False), torch.enable_grad(), frozen(roots), training(roots):
        offset = torch.zeros(layer.fc2.out_features, requires_grad=True)
        with intercepted({layer: lambda output: output + offset}):
            encoded = getattr(encoders, method)([*PROMPTS, "a (red:1.5) cat"])
        context = torch.cat([cond for cond, _ in encoded])
        pooled = torch.cat([extra["pooled_output"] for _, extra in encoded])
        weights = torch.randn(context.shape, generator=torch.Generator().manual_seed(0))
        (gradient,) = torch.autograd.grad((context * weights).sum() + pooled.square().sum(), offset)
    return {"context": context.detach(), "pooled": pooled.detach(), "gradient": gradient}


@torch.inference_mode()
def main() -> None:
    model, clip, vae = load_demo_model()
    log = io.StringIO()
    logging.getLogger().addHandler(logging.StreamHandler(log))
    encoded = [clip.encode_from_tokens_scheduled(clip.tokenize(prompt))[0] for prompt in PROMPTS]
    context = torch.cat([cond for cond, _ in encoded])
    pooled = torch.cat([extra["pooled_output"] for _, extra in encoded])
    latents = torch.randn(len(PROMPTS), 16, 8, 8, generator=torch.Generator().manual_seed(0))
    times = torch.full((len(PROMPTS),), 700.0)
    predicted = model.model.diffusion_model(latents, times, context=context, y=pooled)
    # What the host's latents are to the model's own, which carry no scale and shift.
    pictures = vae.decode(model.model.process_latent_out(latents))
    found = {"context": context, "pooled": pooled, "latents": latents, "predicted": predicted, "pictures": pictures}
    found["cut_off"] = torch.tensor(log.getvalue().count("only the first 16 tokens of this prompt are read"))
    for method in ("encode", "encode_together"):
        found |= {f"{method}, {name}": tensor for name, tensor in captions(clip, method).items()}
    save_file({name: tensor.contiguous() for name, tensor in found.items()}, Path(OUT))


if __name__ == "__main__":
    main()
