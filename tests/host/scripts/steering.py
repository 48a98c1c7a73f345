"""Run by the host's own Python: steered models seen from inside the process, as JSON."""

from __future__ import annotations

import gc
import io
import json
import logging
import tempfile
import weakref
from types import SimpleNamespace
from typing import Any

import inside  # noqa: F401  # pyright: ignore[reportUnusedImport]

# isort: split
import comfy.hooks
import comfy.model_management
import comfy.sample
import folder_paths
import torch
from act_pack import nodes
from act_pack.act_core.steering import Steering
from act_pack.nodes.host.calibration import HostCalibration
from fits import CHANNELS, SIDE, SOURCE, TARGET, fitted, loaded


def video_sweep() -> list[list[int]]:
    """Shapes of grid and images of a sweep whose autoencoder decodes three frames."""
    model, clip = loaded()
    act_map, _ = fitted(model, clip, 2)
    encoded = [clip.encode_from_tokens_scheduled(clip.tokenize(prompt)) for prompt in ("cat", "")]
    vae = SimpleNamespace(decode=lambda samples: torch.rand(len(samples), 3, 64, 64, 3))
    latent = {"samples": torch.zeros(1, CHANNELS, SIDE, SIDE)}
    with tempfile.TemporaryDirectory() as folder:
        folder_paths.set_temp_directory(folder)  # of the preview
        settings = ("0, 1", 0, 2, 3.0, "euler", "simple")
        result = nodes.ACTStrengthSweep.execute(model, act_map, *encoded, latent, vae, *settings).result
    return [list(images.shape) for images in result[:2]]


def kept_by_a_hook() -> dict[str, int]:
    """What a hook keeps in memory of a model that it steered and that is no longer used."""
    model, clip = loaded()
    act_map, _ = fitted(model, clip, 2)
    hooks = nodes.CreateACTHook.execute(act_map, 1.0).result[0]
    encoded = [clip.encode_from_tokens_scheduled(clip.tokenize(prompt)) for prompt in ("cat", "")]
    positive = comfy.hooks.set_hooks_for_conditioning(encoded[0], hooks=hooks)
    latent = torch.zeros(1, CHANNELS, SIDE, SIDE)
    noise = comfy.sample.prepare_noise(latent, 0)
    sampling = (noise, 2, 3.0, "euler", "simple", positive, encoded[1], latent)
    comfy.sample.sample(model, *sampling, disable_pbar=True, seed=0)
    watched = weakref.ref(model.model.diffusion_model)
    del model, clip, encoded, positive, sampling
    comfy.model_management.unload_all_models()
    comfy.model_management.cleanup_models()
    gc.collect()
    assert hooks.hooks
    steerings = sum(isinstance(one, Steering) for one in gc.get_objects())
    return {"models": int(watched() is not None), "steerings": steerings}


def appended_rows() -> dict[str, float]:
    """How much steering one branch changes a latent, and how much of that depends on another pack appending a row.

    The patch imitates NAG on models like SD3: each block gets its last row twice.
    """
    model, clip = loaded()
    act_map, _ = fitted(model, clip, 4)
    blocks = model.model.diffusion_model.joint_blocks
    encoded = [clip.encode_from_tokens_scheduled(clip.tokenize(prompt)) for prompt in ("cat", "")]
    latent = torch.zeros(1, CHANNELS, SIDE, SIDE)
    noise = comfy.sample.prepare_noise(latent, 0)

    def doubled(forward: Any) -> Any:
        def call(context: torch.Tensor, x: torch.Tensor, c: torch.Tensor, **kwargs: Any) -> Any:
            own = len(x)
            context, x, c = (torch.cat([t, t[-1:]]) for t in (context, x, c))
            return tuple(t if t is None else t[:own] for t in forward(context, x, c=c, **kwargs))

        return call

    def sampled(branch: str | None) -> torch.Tensor:
        steered = (
            nodes.ApplyACTSteering.execute(model, act_map, 1.0, 1.0, 0.0, 1.0, branch).result[0] if branch else model
        )
        settings = (noise, 1, 3.0, "euler", "simple", *encoded, latent)
        return comfy.sample.sample(steered, *settings, disable_pbar=True, seed=0)

    plain = sampled(None)
    branches = ("positive", "negative")
    alone = {branch: sampled(branch) for branch in branches}
    for block in blocks:
        block.forward = doubled(block.forward)
    beside = {branch: sampled(branch) for branch in branches}
    found: dict[str, float] = {}
    for branch in branches:
        found[f"{branch} moved"] = float((alone[branch] - plain).abs().max())
        found[f"{branch} changed"] = float((beside[branch] - alone[branch]).abs().max())
    return found


def calibration() -> dict[str, float]:
    """How far a map on text encoders moves what a calibration draws; at cfg 0, only the negative prompt counts."""
    model, clip = loaded()
    act_map = fitted_text(clip)
    moved: dict[str, float] = {}
    for cfg in (0.0, 3.0):
        settings = (torch.zeros(1, CHANNELS, SIDE, SIDE), "dog", 0, 1, cfg, "euler", "simple")
        drawing = HostCalibration(model, clip, *settings)
        moved[f"cfg {cfg:g}"] = float((drawing.draw(["cat"], act_map, 1.0) - drawing.draw(["cat"])).abs().max())
    return moved


def leak_warnings() -> dict[str, int]:
    """How often the host warns of circular references when a CLIP that encoded a prompt is freed."""
    log = io.StringIO()
    handler = logging.StreamHandler(log)
    logging.getLogger().addHandler(handler)
    logging.getLogger().setLevel(logging.INFO)  # of the host's warning
    act_map = fitted_text(loaded()[1])
    counts: dict[str, int] = {}
    for name, apply in {
        "unsteered": lambda clip: clip,
        "steered": lambda clip: nodes.ApplyACTSteeringCLIP.execute(clip, act_map, 1.0).result[0],
        "unsteered after steered": lambda clip: [steered_once(clip, act_map), clip][1],
        "steered twice": lambda clip: nodes.ApplyACTSteeringCLIP.execute(
            nodes.ApplyACTSteeringCLIP.execute(clip, act_map, 1.0).result[0], act_map, 1.0
        ).result[0],
    }.items():
        gc.collect()
        gc.disable()
        log.truncate(0)
        clip: Any = apply(loaded()[1])
        clip.encode_from_tokens(clip.tokenize("cat"))
        del clip
        comfy.model_management.cleanup_models_gc()
        counts[name] = log.getvalue().count("Potential memory leak")
        gc.enable()
    logging.getLogger().removeHandler(handler)
    return counts


def steered_once(clip: Any, act_map: Any) -> None:
    steered = nodes.ApplyACTSteeringCLIP.execute(clip, act_map, 1.0).result[0]
    steered.encode_from_tokens(steered.tokenize("cat"))


def fitted_text(clip: Any) -> Any:
    settings = ("auto", "text", "linear", "causal", "unbounded", 2, 0, 0, 7)
    return nodes.FitACTMap.execute(None, clip, SOURCE, TARGET, *settings).result[0]


@torch.inference_mode()
def main() -> None:
    found = {
        "kept by a hook": kept_by_a_hook(),
        "appended rows": appended_rows(),
        "calibration": calibration(),
        "leak warnings": leak_warnings(),
        "video sweep": video_sweep(),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
