"""Tiny models of diffusers and transformers, and what the host makes of their weights and of maps fitted on them."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from in_host import SCRIPTS, run_inside
from library_models import FAMILIES, run_text, tokens_of
from safetensors.torch import load_file, save_file
from torch import Tensor

from act_core import ActMap, load_map, save_map, steer

sys.path.append(str(SCRIPTS))

from raw_models import ROWS, RawModel, Run, filled


@cache
def model_of(name: str) -> RawModel:
    """The model of a family in diffusers or transformers."""
    family = FAMILIES[name]
    generator = torch.Generator().manual_seed(1)
    inputs = {key: torch.randn(ROWS, *shape, generator=generator) for key, shape in family.inputs.items()}
    for key, tensor in inputs.items():
        if key in ("time", "guidance"):
            tensor.uniform_(0.2, 0.8, generator=generator)
        elif key.startswith("text"):
            tensor[ROWS // 2 :] += 1
    module = filled(family.build())
    run: Run = lambda given: family.run(module, given)  # noqa: E731
    return RawModel(family.component, module, run, inputs)


@dataclass(frozen=True)
class Exchange:
    """What was exchanged with the host.

    Attributes:
        folder: maps and tensors of each family; those that end in ``.host`` are the host's.
        report: what the host found out, by family.
    """

    folder: Path
    report: dict[str, Any]

    def tensors(self, name: str) -> dict[str, Tensor]:
        return load_file(self.folder / f"{name}.host.safetensors")

    def own_map(self, name: str) -> ActMap:
        """The map that was fitted here."""
        return load_map(self.folder / f"{name}.map.safetensors")

    def host_map(self, name: str) -> ActMap:
        """The map that was fitted in the host."""
        return load_map(self.folder / f"{name}.host.map.safetensors")


def exchanged(python: Path, folder: Path) -> Exchange:
    """Give the host the weights of every family and a map that is fitted on them, and get its own map.

    Args:
        python: the host's own Python.
        folder: a new one, for what is exchanged, or one in which another process has done this.
    """
    report = folder / "report.json"
    with FileLock(f"{folder}.lock"):
        if not report.exists():
            folder.mkdir(exist_ok=True)
            report.write_text(_exchange(python, folder), "utf-8")
    return Exchange(folder, json.loads(report.read_text("utf-8")))


def _exchange(python: Path, folder: Path) -> str:
    for name in FAMILIES:
        model = model_of(name)
        act_map = model.fitted()
        save_map(act_map, folder / f"{name}.map.safetensors")
        tensors = {f"weights.{key}": tensor for key, tensor in model.part.module.state_dict().items()}
        tensors |= {f"inputs.{key}": tensor for key, tensor in inputs_of(name).items()}
        tensors |= {f"parts.{key}": tensor for key, tensor in model.shared_activations().items()}
        kept_apart = {key: tensor.clone().contiguous() for key, tensor in tensors.items()}
        save_file(kept_apart, folder / f"{name}.safetensors")
    return run_inside(python, "other_library.py", folder)


def carried(exchange: Exchange, name: str) -> tuple[str, str, str, str]:
    """Of a family: how many sites carry over to the host, which do not, and the same for maps from the host."""
    ours, theirs = exchange.own_map(name), exchange.host_map(name)
    model = model_of(name)
    back = steer({model.part.name: model.part.module}, theirs).coverage.missing
    return *_counted(ours, exchange.report[name]["missing"]), *_counted(theirs, back)


def _counted(act_map: ActMap, missing: Sequence[str]) -> tuple[str, str]:
    kinds = dict.fromkeys(re.sub(r"(?<=\.)\d+(?=[.#]|$)", "*", key.partition("/")[2]) for key in missing)
    return f"{len(act_map) - len(missing)} of {len(act_map)}", ", ".join(f"`{kind}`" for kind in kinds)


def inputs_of(name: str) -> dict[str, Tensor]:
    """The inputs of a family; text encoders get numbers of tokens, and the UNet of SDXL the sizes as an embedding."""
    model = model_of(name)
    halves = [model.rows(list(half)) for half in (range(ROWS // 2), range(ROWS // 2, ROWS))]
    inputs: dict[str, Tensor] = {}
    for key in halves[0]:
        source, target = (half[key] for half in halves)
        if source.shape == target.shape:
            inputs[key] = torch.cat([source, target])
        else:
            # Every half has all rows, of which only its own count.
            inputs[key], inputs[f"{key}.target"] = (torch.cat([half, half]) for half in (source, target))
    if "sizes" in inputs:
        unet: Any = model.part.module
        embedded = unet.add_time_proj(inputs.pop("sizes").flatten()).view(ROWS, -1)
        inputs["pooled"] = torch.cat([inputs["pooled"], embedded], 1)
    if FAMILIES[name].run is run_text:
        inputs["text"] = tokens_of(inputs["text"])
    return inputs
