"""Run by the host's own Python: outputs of the demo model in the host's own classes, as a file of tensors."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import inside

# isort: split
import torch
from act_pack.nodes.host.demo_model import load_demo_model
from safetensors.torch import save_file

OUT, *PROMPTS = inside.ARGUMENTS


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
    save_file({name: tensor.contiguous() for name, tensor in found.items()}, Path(OUT))


if __name__ == "__main__":
    main()
