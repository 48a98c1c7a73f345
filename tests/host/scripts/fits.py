"""Run by the host's own Python: fits and hooks seen from inside the process, as JSON."""

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
import comfy.utils
import folder_paths
import torch
from act_pack import nodes
from act_pack.act_core import MapError, fit
from act_pack.act_core.architectures import Architecture
from act_pack.act_core.fitting.memory import BatchPlan, SampleMemory
from act_pack.nodes.host import text_encoders
from act_pack.nodes.host.denoiser import Denoiser
from act_pack.nodes.host.text_encoders import TextEncoders

from tools.tiny_models import MODELS, StandInCLIP, built

SOURCE, TARGET = "cat\nred house", "cat, black ink icon\nred house, black ink icon"
CHANNELS, SIDE = 16, 8


def fitted(model: Any, clip: Any, samples: int, size: int = 0) -> tuple[Any, str]:
    settings = ("auto", "model", "linear", "causal", "unbounded", samples, size, size, 7)
    return nodes.FitACTMap.execute(model, clip, SOURCE, TARGET, *settings).result


def loaded() -> tuple[Any, Any]:
    return nodes.LoadACTDemoModel.execute().result[:2]


def noises(samples: int) -> list[torch.Tensor]:
    """The noise of each sample that the model gets in a fit, source before target."""
    model, clip = loaded()
    seen: list[torch.Tensor] = []

    def watch(apply_model: Any, given: dict[str, Any]) -> torch.Tensor:
        seen.append(given["input"].clone())
        return apply_model(given["input"], given["timestep"], **given["c"])

    clone = model.clone()
    clone.set_model_unet_function_wrapper(watch)
    fitted(clone, clip, samples)
    return list(torch.cat(seen[1:]))  # the first call looks for the sites


def out_of_memory(error: Exception) -> dict[str, Any]:
    """A fit whose second batch runs out of memory."""
    model, clip = loaded()
    calls = 0

    def scarce(apply_model: Any, given: dict[str, Any]) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise error
        return apply_model(given["input"], given["timestep"], **given["c"])

    clone = model.clone()
    clone.set_model_unet_function_wrapper(scarce)
    act_map, report = fitted(clone, clip, 20)
    return {"sites": len(act_map), "report": report}


def parked() -> dict[str, Any]:
    """Fits without a budget and parked ones: their walks, and the largest differences between their maps."""
    maps: list[Any] = []
    plan, budget = SampleMemory.plan, Denoiser.budget
    for limit in (None, 1):
        SampleMemory.plan = lambda self, prompts, batch, *_: BatchPlan(prompts, batch, parked=True)
        Denoiser.budget = lambda self, limit=limit: limit
        for name in ("demo", "SD 1.5", "Flux.1 dev"):
            model, clip = loaded() if name == "demo" else (built(MODELS[name]), StandInCLIP(MODELS[name]))
            maps.append(fitted(model, clip, 4, size=64)[0])
    SampleMemory.plan, Denoiser.budget = plan, budget
    half = len(maps) // 2
    pairs = list(zip(maps[:half], maps[half:], strict=True))
    return {
        "walks": [one.record.walk for one in maps],
        "sites": [len(one) for one in maps],
        "differences": [max(one.difference(other).values()) for one, other in pairs],
    }


def progress() -> list[tuple[int, int]]:
    """The progress of a fit of both components: values and totals."""
    reported: list[tuple[int, int]] = []
    comfy.utils.set_progress_bar_global_hook(lambda value, total, *_, **__: reported.append((value, total)))
    model, clip = loaded()
    settings = ("auto", "both", "linear", "causal", "unbounded", 4, 0, 0, 7)
    nodes.FitACTMap.execute(model, clip, SOURCE, TARGET, *settings)
    comfy.utils.set_progress_bar_global_hook(None)
    return reported


def skipped_layers() -> dict[str, float]:
    """How far the map of the last norm of a CLIP is from the shift of its output, at each of its two calls."""
    _, clip = loaded()
    clip = clip.clone()
    clip.clip_layer(-2)
    settings = ("output", "text", "mean", "simultaneous", "unbounded", 2, 0, 0, 7)
    act_map, _ = nodes.FitACTMap.execute(None, clip, SOURCE, TARGET, *settings).result
    norm = clip.cond_stage_model.clip_l.transformer.text_model.final_layer_norm
    calls: list[torch.Tensor] = []
    handle = norm.register_forward_hook(lambda *given: calls.append(given[2].mean(1)[0]))
    for prompt in (*SOURCE.splitlines(), *TARGET.splitlines()):
        clip.encode_from_tokens(clip.tokenize(prompt))
    handle.remove()
    beta = act_map["clip_l/text_model.final_layer_norm"].beta
    of_the_last, of_the_used = (
        (torch.stack(calls[at + 4 :: 2]).mean(0) - torch.stack(calls[at:4:2]).mean(0) - beta).abs().max()
        for at in (0, 1)
    )
    return {"calls": len(calls), "of the last layer": float(of_the_last), "of the used layer": float(of_the_used)}


def text_one_at_a_time() -> float:
    """Largest relative difference between a text map of prompts in batches and one of prompts one at a time."""
    _, clip = loaded()
    source = [f"{word} house" for word in ("red", "old", "green", "tall", "very very old", "small")]
    sides = source, [f"{prompt}, black ink icon" for prompt in source]
    sizes = [fit(TextEncoders(clip), *sides, sites="all", batch_size=size) for size in (32, 1)]
    assert [batch.rows for batch in TextEncoders(clip).batches(source, 32)] == [len(source)]
    return max(
        float((t.omega - sizes[1][site.key].omega).abs().max() / t.omega.abs().max())
        for site, t in sizes[0].transports.items()
    )


def audio_model() -> list[str]:
    """What a fit on an audio model reports, with and without a latent."""
    tiny = MODELS["ACE-Step 1"]
    settings = ("auto", "model", "mean", "causal", "unbounded", 2, 0, 0, 7)
    reports: list[str] = []
    for latent in (None, {"samples": torch.zeros(tiny.latent)}):
        try:
            reports.append(
                nodes.FitACTMap.execute(built(tiny), StandInCLIP(tiny), SOURCE, TARGET, *settings, latent).result[1]
            )
        except MapError as error:
            reports.append(str(error))
    return reports


def text_encoder_by_rule() -> dict[str, Any]:
    """A fit of a text encoder without presets."""
    known, (_, clip) = text_encoders.architecture_of, loaded()
    text_encoders.architecture_of = lambda module: Architecture(known(module).name)
    settings = ("auto", "text", "mean", "causal", "unbounded", 2, 0, 0, 7)
    act_map, _ = nodes.FitACTMap.execute(None, clip, SOURCE, TARGET, *settings).result
    text_encoders.architecture_of = known
    return {"components": act_map.components, "notes": act_map.record.notes}


def no_text_encoder() -> str:
    """The error of a fit on a CLIP without a text encoder, as that of HiDream-O1."""
    parts = {"cond_stage_model": torch.nn.Module(), "tokenize": lambda text: {}, "patcher": loaded()[1].patcher}
    try:
        nodes.FitACTMap.execute(
            None, SimpleNamespace(**parts), SOURCE, TARGET, "auto", "text", "mean", "causal", "unbounded", 2, 0, 0, 7
        )
    except MapError as error:
        return str(error)
    return "fitted"


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


def kept_alive_by_a_hook() -> bool:
    """Whether a hook keeps a model in memory that it steered and that is no longer used."""
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
    return watched() is not None


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
    x = noises(4)
    accelerator = getattr(torch, "AcceleratorError", RuntimeError)
    found = {
        "noises": len(x),
        "alike": [[bool(torch.equal(one, other)) for other in x] for one in x],
        "out of memory": [
            out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")),
            out_of_memory(accelerator("CUDA error: out of memory")),
        ],
        "kept alive by a hook": kept_alive_by_a_hook(),
        "appended rows": appended_rows(),
        "leak warnings": leak_warnings(),
        "parked": parked(),
        "progress": progress(),
        "skipped layers": skipped_layers(),
        "text one at a time": text_one_at_a_time(),
        "text encoder by rule": text_encoder_by_rule(),
        "no text encoder": no_text_encoder(),
        "audio model": audio_model(),
        "video sweep": video_sweep(),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
