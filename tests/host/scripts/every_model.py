"""Run by the host's own Python: every tiny model through the nodes, fitted, steered and restored. Prints JSON."""

from __future__ import annotations

import hashlib
import json
import logging
from typing import Any

import inside

# isort: split
import comfy.sample
import torch
from act_pack.act_core.errors import MapError
from act_pack.act_core.interception import submodules
from act_pack.nodes.apply import ApplyACTSteering
from act_pack.nodes.fit_map import FitACTMap
from torch import Tensor

from tools.tiny_models import MODELS, StandInCLIP, Tiny, built, empty_latent

SOURCE = ["a cat", "a small dog in the rain", "boats"]
TARGET = ["target: a cat", "target: a small dog in the rain", "target: boats at sea"]
SEED, STEPS, GUIDANCE = 7, 1, 3.0


def sampled(model: Any, clip: StandInCLIP, latent: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The result of a step, and what the model returned in it for each branch."""
    branches: list[tuple[Tensor, Tensor]] = []

    def note(arguments: dict[str, Any]) -> Tensor:
        branches.append((arguments["cond_denoised"].clone(), arguments["uncond_denoised"].clone()))
        return arguments["denoised"]

    clone = model.clone()
    clone.set_model_sampler_post_cfg_function(note, disable_cfg1_optimization=True)
    noise = comfy.sample.prepare_noise(latent, SEED)
    conds = [clip.encode_from_tokens_scheduled({"text": text}) for text in ("a red fox", "blurry")]
    result = comfy.sample.sample(
        clone, noise, STEPS, GUIDANCE, "euler", "simple", *conds, latent, seed=SEED, disable_pbar=True
    )
    parts = result.unbind() if result.is_nested else [result]
    return torch.cat([part.flatten() for part in parts]), *branches[0]


def digest(model: Any) -> str:
    found = hashlib.sha256()
    for name, tensor in model.model.diffusion_model.state_dict().items():
        found.update(name.encode())
        found.update(tensor.contiguous().view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return found.hexdigest()


def tried(tiny: Tiny) -> dict[str, Any]:
    """Fit, steer and restore one model."""
    model, clip, latent = built(tiny), StandInCLIP(tiny), empty_latent(tiny)
    before = digest(model)
    plain, positive, negative = sampled(model, clip, latent)
    about = {"class": type(model.model.diffusion_model).__name__}
    texts = "\n".join(SOURCE), "\n".join(TARGET)
    method = "auto", "model", "linear", "causal", "unbounded"
    try:
        fitted = FitACTMap.execute(model, clip, *texts, *method, len(SOURCE), 0, 0, 0, {"samples": latent})
    except MapError as error:
        return {**about, "error": str(error), "restored": digest(model) == before}
    act_map = fitted.args[0]

    def steered(strength: float) -> tuple[Tensor, Tensor, Tensor]:
        applied = ApplyACTSteering.execute(model, act_map, strength, 0.0, 0.0, 1.0, "positive")
        return sampled(applied.args[0], clip, latent)

    unmoved, (moved, moved_positive, moved_negative) = steered(0.0), steered(1.0)
    parts = submodules(model.model.diffusion_model).values()
    return {
        **about,
        "by rule": any("found by rule" in note for note in act_map.record.notes),
        "sites": len(act_map),
        "segments": sum(site.segment is not None for site in act_map.transports),
        "layouts": sorted({site.layout for site in act_map.transports}),
        "strength 0 is exact": torch.equal(unmoved[0], plain),
        "moved": bool(moved.isfinite().all()) and not torch.equal(moved, plain),
        "positive moved": not torch.equal(moved_positive, positive),
        "negative moved by": float((moved_negative - negative).abs().max()),
        "restored": digest(model) == before and torch.equal(sampled(model, clip, latent)[0], plain),
        "left behind": sum("forward" in part.__dict__ for part in parts),
    }


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    names = inside.ARGUMENTS or list(MODELS)
    torch.set_num_threads(1)  # faster for tiny tensors
    with torch.inference_mode():
        print(json.dumps({name: tried(MODELS[name]) for name in names}))
