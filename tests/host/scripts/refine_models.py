"""Run by the host's own Python: a map refined on pictures for every tiny model. Prints JSON."""

from __future__ import annotations

import json
import logging
from typing import Any

import inside

# isort: split
import torch
from act_pack.act_core import steer
from act_pack.act_core.components import DIFFUSION_MODEL
from act_pack.act_core.errors import FitError
from act_pack.act_core.interception import submodules
from act_pack.act_core.settings import RefineSettings
from act_pack.nodes.host.denoiser import Denoiser, run_denoiser
from act_pack.nodes.host.image_fitting import ImageFit
from act_pack.nodes.host.picture_loss import EncodedPicture, PictureLoss

from tools.tiny_models import MODELS, StandInCLIP, Tiny, built

COUNT, STEPS = 4, 12


def tried(tiny: Tiny) -> dict[str, Any]:
    """Refine a map for one model."""
    model, clip = built(tiny), StandInCLIP(tiny)
    module = model.model.diffusion_model
    generator = torch.Generator().manual_seed(1)
    # Pictures that have something in common.
    latents = [0.5 * torch.randn(tiny.latent, generator=generator) + 1 for _ in range(COUNT)]
    conds = [clip.encode_from_tokens_scheduled({"text": f"a cat {number}"})[0] for number in range(COUNT)]
    kept = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    samples = [EncodedPicture("", latent, number) for number, latent in enumerate(latents)]

    def loss() -> float:
        found: list[float] = []

        def use(denoiser: Denoiser) -> None:
            with torch.inference_mode(False), torch.no_grad():
                found.append(float(PictureLoss(denoiser).loss(samples, torch.Generator().manual_seed(5))))

        run_denoiser(model, latents[0], 0, conds, use)
        return found[0]

    settings = RefineSettings(sites="auto", steps=STEPS, rate=0.02, held_back=0)
    try:
        act_map = ImageFit(model, latents, [""] * COUNT, conds, settings).run()
    except FitError as error:
        kept_weights = all(torch.equal(tensor, kept[name]) for name, tensor in module.state_dict().items())
        return {"error": str(error), "same weights": kept_weights, "left behind": left_behind(module)}
    before = loss()
    with steer({DIFFUSION_MODEL: module}, act_map):
        after = loss()
    return {
        "before": before,
        "after": after,
        "sites": len(act_map),
        "same weights": all(torch.equal(tensor, kept[name]) for name, tensor in module.state_dict().items()),
        "same loss": loss() == before,
        "left behind": left_behind(module),
    }


def left_behind(module: torch.nn.Module) -> int:
    return sum("forward" in part.__dict__ for part in submodules(module).values())


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    names = inside.ARGUMENTS or list(MODELS)
    torch.set_num_threads(1)  # faster for tiny tensors
    with torch.inference_mode():
        print(json.dumps({name: tried(MODELS[name]) for name in names}))
