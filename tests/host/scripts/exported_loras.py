"""Run by the host's own Python: maps as LoRAs and as weights, against steering at run time. Prints JSON."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import inside  # noqa: F401  # pyright: ignore[reportUnusedImport]

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


def deviations(expected: Callable[[float], Tensor], **got: Callable[[float], Tensor]) -> dict[str, float]:
    """The largest difference over the strengths, relative to the standard deviation."""
    right = {strength: expected(strength) for strength in STRENGTHS}
    return {
        name: max(float((one(strength) - a).abs().max() / a.std()) for strength, a in right.items())
        for name, one in got.items()
    }


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
    # Bypass loaders leave the weights alone.
    bypassed = exported(model, None, act_map, "whole", "whole")[0] if "Bypass" in report else compact
    found: dict[str, Callable[[float], Tensor]] = {
        "loader": lambda s: sampled(loaded(model, None, compact, s)[0], clip, latent),
        "bypass": lambda s: sampled(loaded(model, None, bypassed, s, bypass=True)[0], clip, latent),
        "as_weights": lambda s: steered(s, as_weights=True),
    }
    return {
        "sites": len(whole),
        "folded": len(act_map),
        "report": report,
        "moved": float((moved - plain).abs().max() / plain.std()),
        "deviations": deviations(steered, **found),
        "strength 0 is exact": torch.equal(steered(0.0, as_weights=True), plain),
        "restored": torch.equal(sampled(model, clip, latent), plain),
    }


def beside_another_lora(tiny: Tiny) -> dict[str, Any]:
    """A map on a model whose weights another LoRA has changed: as weights, and as a LoRA made for the plain model."""
    model, clip, latent = built(tiny), StandInCLIP(tiny), empty_latent(tiny)
    texts = "\n".join(SOURCE), "\n".join(TARGET)
    method = "attention", "model", "linear", "causal", "unbounded"
    act_map = FitACTMap.execute(model, clip, *texts, *method, len(SOURCE), 0, 0, 0, {"samples": latent}).args[0]
    name, _ = exported(model, None, act_map, "beside")
    generator = torch.Generator().manual_seed(3)
    changes: dict[str, Tensor] = {}
    for site in act_map.transports:
        weight = model.model.state_dict()[f"diffusion_model.{site.name}.weight"]
        changes[f"diffusion_model.{site.name}.diff"] = torch.randn(weight.shape, generator=generator) * weight.std()
        changes[f"diffusion_model.{site.name}.diff_b"] = torch.randn(len(weight), generator=generator) * weight.std()
    shifts = [key for key in changes if key.endswith("_b")]
    other = comfy.sd.load_lora_for_models(model, None, changes, 1.0, 0.0)[0]
    unshifted = {key: change for key, change in changes.items() if key not in shifts}
    weights_only = comfy.sd.load_lora_for_models(model, None, unshifted, 1.0, 0.0)[0]

    def steered(on: Any, strength: float, **settings: Any) -> Tensor:
        applied = ApplyACTSteering.execute(on, act_map, strength, 0.0, 0.0, 1.0, "both", **settings)
        return sampled(applied.args[0], clip, latent)

    # Made for the model with the other LoRA, of which it contains the change.
    whole, _ = exported(other, None, act_map, "beside_whole", "whole")
    return {
        **deviations(
            lambda s: steered(other, s),
            as_weights=lambda s: steered(other, s, as_weights=True),
            whole=lambda s: sampled(loaded(other, None, whole, s)[0], clip, latent),
        ),
        **deviations(
            lambda s: steered(weights_only, s),
            loader=lambda s: sampled(loaded(weights_only, None, name, s)[0], clip, latent),
        ),
    }


def merged(tiny: Tiny) -> float:
    """How far a weight in a saved model is from the weight with the map, relative to the largest."""
    model, clip, latent = built(tiny), StandInCLIP(tiny), empty_latent(tiny)
    texts = "\n".join(SOURCE), "\n".join(TARGET)
    method = "attention", "model", "linear", "causal", "unbounded"
    act_map = FitACTMap.execute(model, clip, *texts, *method, len(SOURCE), 0, 0, 0, {"samples": latent}).args[0]
    name, _ = exported(model, None, act_map, "merged")
    site, transport = next(iter(act_map.transports.items()))
    key = f"diffusion_model.{site.name}.weight"
    expected = model.model.state_dict()[key] * (1 + 0.7 * (transport.omega - 1))[:, None]
    path = Path(folder_paths.get_folder_paths("loras")[0]) / "checkpoint.safetensors"
    comfy.sd.save_checkpoint(str(path), loaded(model, None, name, 0.7)[0], metadata={})
    saved = comfy.utils.load_torch_file(str(path))
    found = next(weight for key, weight in saved.items() if key.endswith(f"{site.name}.weight"))
    return float((found - expected).abs().max() / expected.abs().max())


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
        "bypass": lambda s: encoded(loaded(model, clip, full, s, bypass=True)[1]),
        "as_weights": lambda s: steered(s, as_weights=True),
    }
    return {
        "sites": len(whole),
        "folded": len(act_map),
        "report": report,
        "moved": float((steered(1.0) - plain).abs().max() / plain.std()),
        "deviations": deviations(steered, **found),
        "restored": torch.equal(encoded(clip), plain),
    }


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)  # faster for tiny tensors
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        folder_paths.folder_names_and_paths["loras"] = ([str(Path(folder))], {".safetensors"})
        models = {name: {kind: tried(MODELS[name], sites) for kind, sites in SITES.items()} for name in KINDS}
        found = {
            "models": models,
            "clips": {name: tried_clip(name) for name in CLIPS},
            "beside another": beside_another_lora(MODELS["SD3"]),
            "merged": merged(MODELS["SD3"]),
        }
        print(json.dumps(found))
