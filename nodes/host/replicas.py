"""Copies of a MODEL that the host keeps on further devices, as its node MultiGPU CFG Split asks for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def placed_models(model: Any, device: torch.device, model_options: dict[str, Any]) -> list[tuple[torch.device, Any]]:
    """A loaded model and its copies, each with its device.

    Args:
        model: the host's model of a sampling run.
        device: where it runs.
        model_options: of the sampling run.
    """
    patchers: dict[torch.device, Any] = model_options.get("multigpu_clones", {})
    copies = [(place, patcher.model) for place, patcher in patchers.items() if patcher.model is not model]
    return [(device, model), *copies]


def on_device(value: Any, device: torch.device) -> Any:
    """The same value with all tensors in it, and in its tuples, lists and dictionaries, on a device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: on_device(item, device) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(on_device(item, device) for item in value)
    return value
