"""Run by the host's own Python: fits and hooks seen from inside the process, as JSON."""

from __future__ import annotations

import gc
import json
import weakref
from typing import Any

import inside  # noqa: F401  # pyright: ignore[reportUnusedImport]

# isort: split
import comfy.hooks
import comfy.model_management
import comfy.sample
import comfy.utils
import torch
from act_pack import nodes

SOURCE, TARGET = "cat\nred house", "cat, black ink icon\nred house, black ink icon"
CHANNELS, SIDE = 16, 8


def fitted(model: Any, clip: Any, samples: int) -> tuple[Any, str]:
    settings = ("auto", "model", "linear", "causal", "unbounded", samples, 0, 0, 7)
    return nodes.FitACTMap.execute(model, clip, SOURCE, TARGET, *settings).result


def loaded() -> tuple[Any, Any]:
    return nodes.LoadACTDemoModel.execute().result[:2]


def noises(samples: int) -> list[torch.Tensor]:
    """What the model is given in a fit: the noise of each sample, source before target."""
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
    """A fit whose second batch has no room."""
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


def progress() -> list[tuple[int, int]]:
    """What a fit of both components tells of how far it is: value and total."""
    told: list[tuple[int, int]] = []
    comfy.utils.set_progress_bar_global_hook(lambda value, total, *_, **__: told.append((value, total)))
    model, clip = loaded()
    settings = ("auto", "both", "linear", "causal", "unbounded", 4, 0, 0, 7)
    nodes.FitACTMap.execute(model, clip, SOURCE, TARGET, *settings)
    comfy.utils.set_progress_bar_global_hook(None)
    return told


def kept_alive_by_a_hook() -> bool:
    """Whether a model that is used no more stays in memory for a hook that steered it."""
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
        "progress": progress(),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
