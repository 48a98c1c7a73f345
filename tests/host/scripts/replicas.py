"""Run by the host's own Python: Fit ACT Map on a model with a copy on another device. Prints JSON."""

from __future__ import annotations

import json
import logging
from collections import Counter
from typing import Any

import inside  # noqa: F401  # pyright: ignore[reportUnusedImport]

# isort: split
import torch
from act_pack import nodes
from act_pack.nodes.host.denoiser import Denoiser

from tools.tiny_models import MODELS, StandInCLIP, Tiny, built

SOURCE, TARGET = "cat\nred house", "cat, black ink icon\nred house, black ink icon"


def fitted(model: Any, tiny: Tiny) -> Any:
    settings = ("auto", "model", "linear", "causal", "unbounded", 6, 64, 64, 7)
    return nodes.FitACTMap.execute(model, StandInCLIP(tiny), SOURCE, TARGET, *settings).result[0]


def fitted_in_threes(model: Any, tiny: Tiny) -> Any:
    """In the micro-batches that a model and its copy share, which may matter in the last digit."""
    micro_batches = Denoiser.micro_batches
    Denoiser.micro_batches = lambda self, rows, size: micro_batches(self, rows, min(size, 3))
    try:
        return fitted(model, tiny)
    finally:
        Denoiser.micro_batches = micro_batches


def fits() -> dict[str, Any]:
    """A fit on a model with a copy on another device (as the host counts devices: both are the CPU), and one without.

    Returns the calls of both models, the largest difference of the maps, and modules that are still patched.
    """
    calls: Counter[str] = Counter()
    differences: list[float] = []
    patched: list[str] = []
    for name in ("SD 1.5", "Flux.1 dev"):
        tiny = MODELS[name]
        model, copy = built(tiny), built(tiny)
        single = fitted_in_threes(model, tiny)
        copy.load_device = torch.device("cpu:0")
        copy.is_multigpu_base_clone = True
        pair = model.clone()
        pair.set_additional_models("multigpu", [copy])
        names = {id(model.model): "model", id(copy.model): "copy"}

        def watch(apply_model: Any, given: dict[str, Any], names: dict[int, str] = names) -> torch.Tensor:
            calls[names[id(apply_model.__self__)]] += 1
            return apply_model(given["input"], given["timestep"], **given["c"])

        pair.set_model_unet_function_wrapper(watch)
        differences.append(max(single.difference(fitted(pair, tiny)).values()))
        modules = [*model.model.diffusion_model.modules(), *copy.model.diffusion_model.modules()]
        patched += [type(module).__name__ for module in modules if "forward" in module.__dict__]
    return {"calls": calls, "differences": differences, "patched": patched}


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)  # faster for tiny tensors
    print(json.dumps(fits()))
