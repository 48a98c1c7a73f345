"""Run by the host's own Python: models and maps from diffusers and transformers in the host's classes. Prints JSON.

The folder holds the weights, inputs and outputs of each model. A map of the host's own goes back into it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import inside

# isort: split
import torch
from host_models import FAMILIES
from raw_models import RawModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from act_core import ActMap, load_map, save_map, steer
from act_core.architectures.shared_names import Translator
from act_core.interception import submodules
from act_core.sites import Site

FOLDER = Path(inside.ARGUMENTS[0])


def exchange(name: str) -> dict[str, Any]:
    """Compare the host's model of a family with the given one, and fit a map on it."""
    given = load_file(FOLDER / f"{name}.safetensors")

    def part(prefix: str) -> dict[str, Tensor]:
        return {key.removeprefix(prefix): tensor for key, tensor in given.items() if key.startswith(prefix)}

    component, build, run = FAMILIES[name]
    module, weights = build(part("weights."))
    module.load_state_dict(weights)
    module.eval().requires_grad_(False)
    model = RawModel(component, module, partial(run, module), part("inputs."))
    act_map = load_map(FOLDER / f"{name}.map.safetensors")
    steering = steer({component: module}, act_map)
    own = model.fitted()
    save_map(own, FOLDER / f"{name}.host.map.safetensors")
    drawn = {"plain": model.drawn(), "steered": model.drawn(act_map), "with own map": model.drawn(carried(model, own))}
    save_file(drawn, FOLDER / f"{name}.host.safetensors")
    return {
        "parts": parts(model, part("parts.")),
        "missing": steering.coverage.missing,
        "notes": steering.notes,
        "warnings": steering.warnings,
    }


def carried(model: RawModel, act_map: ActMap) -> ActMap:
    """The part of a map that diffusers has sites for."""
    translators = [
        Translator(s, "diffusers", list(submodules(model.part.module))) for s in model.part.architecture.shared
    ]
    sites = [site for site in act_map.transports if all(translator.site(site) for translator in translators)]
    return act_map.restrict(*(site.key for site in sites))


def parts(model: RawModel, theirs: Mapping[str, Tensor]) -> dict[str, float | None]:
    """How far what each part returns lies from what it returns in diffusers, by its name there; None if absent."""
    if not theirs:
        return {}
    (shared,) = model.part.architecture.shared
    translator = Translator(shared, "ComfyUI", list(submodules(model.part.module)))
    named: dict[str, tuple[str, int | None]] = {}
    for key in theirs:
        name, _, index = key.partition("#")
        site = translator.site(Site("", name, None if index == "None" else int(index), "tokens", 1))
        assert site is not None
        named[key] = site.name, site.output
    found = model.activations(named)
    differences: dict[str, float | None] = dict.fromkeys(theirs)
    for key, tensor in found.items():
        other = theirs[key]
        if shared.swaps_streams and key.startswith(("layers", "all_final")):
            # Both streams are padded to 32 tokens here.
            other = other.roll(32, 1)
        differences[key] = difference(tensor, other)
    return differences


def difference(one: Tensor, other: Tensor) -> float:
    """The largest difference, in units of the largest value."""
    return float((one - other).abs().max() / other.abs().max())


if __name__ == "__main__":
    torch.set_num_threads(1)  # faster for tiny tensors
    names = inside.ARGUMENTS[1:] or list(FAMILIES)
    print(json.dumps({name: exchange(name) for name in names}))
