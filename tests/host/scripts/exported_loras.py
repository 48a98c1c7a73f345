"""Run by the host's own Python: maps as LoRAs and as weights, against steering at run time. Prints JSON."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import inside

# isort: split
import comfy.sample
import comfy.sd
import comfy.utils
import folder_paths
import torch
from act_pack.act_core import ActMap, MapError, fit
from act_pack.nodes import ApplyACTSteering, ExportACTMapAsLoRA
from act_pack.nodes.fit_map import FitACTMap
from act_pack.nodes.host.text_encoders import TextEncoders
from act_pack.nodes.host.weights import folded
from comfy_extras.nodes_lora_debug import LoraLoaderBypass, LoraLoaderBypassModelOnly
from encoder_zoo import built as built_clip
from torch import Tensor

from tools.tiny_models import MODELS, StandInCLIP, Tiny, built, empty_latent

STRENGTHS = (-0.5, 0.7, 1.0, 1.3)
KINDS = ("SD 1.5", "SDXL", "SD3", "Flux.1 dev", "Qwen-Image")
CLIPS = ("SD 1", "SDXL", "Flux")
SOURCE = ["a cat", "a small dog in the rain", "boats"]
TARGET = ["target: a cat", "target: a small dog in the rain", "target: boats at sea"]
# Norms only, and linear layers only, as far as the model has any with parameters.
SITES = {"norms": "norms", "linear layers": "attention,mlp"}


def loaded(model: Any, clip: Any, name: str, strength: float, *, bypass: bool = False) -> tuple[Any, Any]:
    """A MODEL and a CLIP with a LoRA, by the code of the host's loader nodes."""
    if bypass:
        if clip is None:
            return LoraLoaderBypassModelOnly().load_lora_model_only(model, name, strength)[0], None
        return LoraLoaderBypass().load_lora(model, clip, name, strength, strength)
    lora = comfy.utils.load_torch_file(folder_paths.get_full_path_or_raise("loras", name), safe_load=True)
    return comfy.sd.load_lora_for_models(model, clip, lora, strength, strength)


def exported(model: Any, clip: Any, act_map: ActMap, name: str, linear_layers: str = "compact") -> tuple[str, str]:
    """Name and report of an exported LoRA."""
    output = ExportACTMapAsLoRA.execute(model, act_map, name, linear_layers, -1.0, clip)
    return output.args[0], output.args[1]


def sampled(model: Any, clip: StandInCLIP, latent: Any) -> Tensor:
    noise = comfy.sample.prepare_noise(latent, 7)
    conds = [clip.encode_from_tokens_scheduled({"text": text}) for text in ("a red fox", "blurry")]
    return comfy.sample.sample(model, noise, 2, 3.0, "euler", "simple", *conds, latent, seed=7, disable_pbar=True)


def foldable(model: Any, clip: Any, act_map: ActMap) -> ActMap:
    """The sites that can be folded; feature maps steered position by position."""
    act_map = replace(act_map, record=replace(act_map.record, spatial="pointwise"))
    left_out = folded(model, clip, act_map).left_out
    kept = {site: transport for site, transport in act_map.transports.items() if site.key not in left_out}
    return replace(act_map, transports=kept)


def deviations(expected: Callable[[float], Tensor], got: Callable[[float], Tensor]) -> float:
    """The largest difference over the strengths, relative to the standard deviation."""
    pairs = [(expected(strength), got(strength)) for strength in STRENGTHS]
    return max(float((a - b).abs().max() / a.std()) for a, b in pairs)


def tried(tiny: Tiny, sites: str) -> dict[str, Any]:
    """A map on one model: steered at run time, as LoRAs, and as weights."""
    model, clip, latent = built(tiny), StandInCLIP(tiny), empty_latent(tiny)
    texts = "\n".join(SOURCE), "\n".join(TARGET)
    method = sites, "model", "linear", "causal", "unbounded"
    whole: ActMap = FitACTMap.execute(model, clip, *texts, *method, len(SOURCE), 0, 0, 0, {"samples": latent}).args[0]
    try:
        act_map = foldable(model, None, whole)
    except MapError as error:
        return {"error": str(error)}

    def steered(strength: float, **settings: Any) -> Tensor:
        applied = ApplyACTSteering.execute(model, act_map, strength, 0.0, 0.0, 1.0, "both", **settings)
        return sampled(applied.args[0], clip, latent)

    plain, moved = sampled(model, clip, latent), steered(1.0)
    compact, report = exported(model, None, act_map, "compact")
    full, _ = exported(model, None, act_map, "whole", "whole")
    found: dict[str, Callable[[float], Tensor]] = {
        "loader": lambda s: sampled(loaded(model, None, compact, s)[0], clip, latent),
        "loader, whole": lambda s: sampled(loaded(model, None, full, s)[0], clip, latent),
        "bypass, whole": lambda s: sampled(loaded(model, None, full, s, bypass=True)[0], clip, latent),
        "as weights": lambda s: steered(s, as_weights=True),
    }
    if "Bypass" not in report:
        found["bypass"] = lambda s: sampled(loaded(model, None, compact, s, bypass=True)[0], clip, latent)
    return {
        "sites": len(whole),
        "folded": len(act_map),
        "report": report,
        "moved": float((moved - plain).abs().max() / plain.std()),
        "deviations": {name: deviations(steered, get) for name, get in found.items()},
        "strength 0 is exact": torch.equal(steered(0.0, as_weights=True), plain),
        "restored": torch.equal(sampled(model, clip, latent), plain),
    }


def encoded(clip: Any) -> Tensor:
    values, extra = clip.encode_from_tokens_scheduled(clip.tokenize("a red fox"))[0]
    return torch.cat([values.flatten(), extra["pooled_output"].flatten()])


def tried_clip(name: str) -> dict[str, Any]:
    """A map on the text encoders of one CLIP, beside a model that it does not steer."""
    clip, model = built_clip(name), built(MODELS["SD3"])
    whole = fit(TextEncoders(clip), SOURCE, TARGET, sites="norms,attention,mlp")
    act_map = foldable(model, clip, whole)

    def steered(strength: float, **settings: Any) -> Tensor:
        applied = ApplyACTSteering.execute(model, act_map, 0.0, strength, 0.0, 1.0, "both", clip, **settings)
        return encoded(applied.args[1])

    plain = encoded(clip)
    compact, report = exported(model, clip, whole, "clip")
    full, _ = exported(model, clip, whole, "clip_whole", "whole")
    found: dict[str, Callable[[float], Tensor]] = {
        "loader": lambda s: encoded(loaded(model, clip, compact, s)[1]),
        "bypass, whole": lambda s: encoded(loaded(model, clip, full, s, bypass=True)[1]),
        "as weights": lambda s: steered(s, as_weights=True),
    }
    return {
        "sites": len(whole),
        "folded": len(act_map),
        "report": report,
        "moved": float((steered(1.0) - plain).abs().max() / plain.std()),
        "deviations": {name: deviations(steered, get) for name, get in found.items()},
        "restored": torch.equal(encoded(clip), plain),
    }


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)  # faster for tiny tensors
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        folder_paths.folder_names_and_paths["loras"] = ([str(Path(folder))], {".safetensors"})
        models = {name: {kind: tried(MODELS[name], sites) for kind, sites in SITES.items()} for name in KINDS}
        print(json.dumps({"models": models, "clips": {name: tried_clip(name) for name in CLIPS}}))
