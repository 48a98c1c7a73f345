"""Run by the host's own Python: the node fits a map from pictures on tiny models of several kinds. Prints JSON."""

from __future__ import annotations

import json
import logging
from typing import Any

import inside

# isort: split
import torch
from act_pack.nodes.fit_images import FitACTMapFromImages
from act_pack.nodes.host.denoiser import Denoiser, run_denoiser
from act_pack.nodes.host.noise_levels import level_of
from act_pack.nodes.host.steering import Window, steered
from refine_models import left_behind

from tools.tiny_models import MODELS, StandInCLIP, Tiny, built

COUNT, LEVELS = 3, (0.9, 0.4)


def tried(tiny: Tiny, estimator: str) -> dict[str, Any]:
    """Fit a map for one model, and run the model with it at each noise level."""
    model, clip = built(tiny), StandInCLIP(tiny)
    module = model.model.diffusion_model
    generator = torch.Generator().manual_seed(1)
    latents = [{"samples": torch.randn(tiny.latent, generator=generator)} for _ in range(COUNT)]
    conditioning = [clip.encode_from_tokens_scheduled({"text": f"a cat {number}"}) for number in range(COUNT)]
    kept = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    output = FitACTMapFromImages.execute(
        model=[model],
        sites=["auto"],
        steps=[2],
        width=[0],
        height=[0],
        seed=[0],
        latents=latents,
        conditioning=conditioning,
        estimator=[estimator],
        levels=[", ".join(map(str, LEVELS))],
    )
    act_map = output.args[0]
    applied = steered(model, None, act_map, 1.0, 1.0, Window(), "both")
    levels: list[float] = []
    moved: list[float] = []

    def use(denoiser: Denoiser) -> None:
        for level in LEVELS:
            sigma = denoiser.sigma_of(level)
            levels.append(level_of(model.model.model_sampling, sigma))
            row = denoiser.row(0, denoiser.process_latent_in(latents[0]["samples"]), denoiser.noise(0), sigma)
            moved.append(float(denoiser.denoised([row]).float().mean()))

    conds = [parts[0] for parts in conditioning]
    for patcher in (model, applied.model):
        run_denoiser(patcher, torch.zeros(tiny.latent), 0, conds, use)
    return {
        "notes": act_map.record.notes,
        "fitted by": act_map.record.fitted_by,
        "levels of the map": act_map.levels,
        "levels again": levels[: len(LEVELS)],
        "moves": [one != other for one, other in zip(moved[: len(LEVELS)], moved[len(LEVELS) :], strict=True)],
        "same weights": all(torch.equal(tensor, kept[name]) for name, tensor in module.state_dict().items()),
        "left behind": left_behind(module),
    }


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)  # faster for tiny tensors
    kinds = {
        "SD 1.5": "transport",
        "SDXL": "transport",
        "SD3": "transport",
        "Flux.1 dev": "transport",
        "Anima": "refined",
    }
    kinds |= {"Qwen-Image": "transport", "Z-Image": "transport", "Wan 2.1": "transport"}
    kinds |= {"Anima": "refined", "Cosmos Predict 2": "refined"}
    names = inside.ARGUMENTS or [name for name in kinds if name in MODELS]
    with torch.inference_mode():
        print(json.dumps({name: tried(MODELS[name], kinds.get(name, "transport")) for name in names}))
