"""Run by the host's own Python: fits seen from inside the process, as JSON."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import inside  # noqa: F401  # pyright: ignore[reportUnusedImport]

# isort: split
import comfy.utils
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
        "parked": parked(),
        "progress": progress(),
        "skipped layers": skipped_layers(),
        "text one at a time": text_one_at_a_time(),
        "text encoder by rule": text_encoder_by_rule(),
        "no text encoder": no_text_encoder(),
        "audio model": audio_model(),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
