"""Run by the host's own Python: what the demo model gives in the host's own classes, as a file of tensors."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

PACK, HOST, OUT = Path(__file__).resolve().parents[2], Path(sys.argv[1]), Path(sys.argv[2])
PROMPTS = sys.argv[3:]
sys.path.insert(0, str(HOST))
sys.argv[1:] = ["--cpu"]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

# As the host imports a pack: under a name of its own.
spec = importlib.util.spec_from_file_location("act_pack", PACK / "__init__.py", submodule_search_locations=[str(PACK)])
assert spec is not None
assert spec.loader is not None
pack = sys.modules["act_pack"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pack)

from act_pack.nodes.host.demo_model import load_demo_model  # noqa: E402


@torch.inference_mode()
def main() -> None:
    model, clip, vae = load_demo_model()
    encoded = [clip.encode_from_tokens_scheduled(clip.tokenize(prompt))[0] for prompt in PROMPTS]
    context = torch.cat([cond for cond, _ in encoded])
    pooled = torch.cat([extra["pooled_output"] for _, extra in encoded])
    latents = torch.randn(len(PROMPTS), 16, 8, 8, generator=torch.Generator().manual_seed(0))
    times = torch.full((len(PROMPTS),), 700.0)
    predicted = model.model.diffusion_model(latents, times, context=context, y=pooled)
    # What the host's latents are to the model's own, which carry no scale and shift.
    pictures = vae.decode(model.model.process_latent_out(latents))
    found = {"context": context, "pooled": pooled, "latents": latents, "predicted": predicted, "pictures": pictures}
    save_file({name: tensor.contiguous() for name, tensor in found.items()}, OUT)


if __name__ == "__main__":
    main()
