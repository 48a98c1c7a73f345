"""Which layers of a text encoder produce the conditioning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from ...act_core.architectures import architecture_of
from ...act_core.architectures.text_encoders import CLIP


def unused_layers(part: Any) -> tuple[str, ...]:
    """Patterns of the submodules that run after the last layer that a text encoder returns.

    A CLIP model has none: its pooled output comes from the last layer, whichever layer becomes the conditioning.

    Args:
        part: one of the host's text encoders, set to return the layers of the conditioning.
    """
    layer, module = getattr(part, "layer", "last"), part.transformer
    if architecture_of(module) is CLIP or not (layer == "hidden" or isinstance(layer, list)):
        return ()
    if isinstance(layer, list):  # inputs of layers; the one after the last layer is the output of the last norm
        used, returns_norm = max(_counted(part, layer)), part.num_layers in layer
    else:
        used, returns_norm = _counted(part, [part.layer_idx])[0] + 1, part.layer_norm_hidden_state
    stacks = _stacks(module, part.num_layers)
    unused = [f"{stack}.{number}" for stack in stacks for number in range(used, part.num_layers)]
    norms = [] if returns_norm else _last_norms(module, stacks)
    return tuple(pattern for name in unused for pattern in (name, f"{name}.*")) + tuple(norms)


def measured_passes(part: Any, *, alone: bool) -> dict[str, int]:
    """Which pass of a norm produces the conditioning, by name.

    If layers are skipped at the end (as by CLIP Set Last Layer), the host norms the last layer first, and then the
    layer that becomes the conditioning. Only CLIP models return something of the first pass: the pooled output.

    Args:
        part: one of the host's text encoders, set to return the layers of the conditioning.
        alone: whether it is the only text encoder; of several, the pooled output is used.
    """
    module = part.transformer
    if getattr(part, "layer", "last") != "hidden" or not part.layer_norm_hidden_state:
        return {}
    if architecture_of(module) is CLIP and not alone:
        return {}
    return dict.fromkeys(_last_norms(module, _stacks(module, part.num_layers)), 1)


def _counted(part: Any, layers: Sequence[int]) -> list[int]:
    """Numbers of layers, of which negative ones count from the end."""
    return [layer if layer >= 0 else layer + part.num_layers for layer in layers]


def _stacks(module: nn.Module, count: int) -> list[str]:
    """Names of the outermost lists of so many layers."""
    names: list[str] = []
    for name, child in module.named_modules():
        if isinstance(child, nn.ModuleList) and len(child) == count and not _inside(name, names):
            names.append(name)
    return names


def _last_norms(module: nn.Module, stacks: Sequence[str]) -> list[str]:
    """Names of the norms after the last layer, which stand beside the layers or further outside."""
    parted = [name.rpartition(".") for name, _ in module.named_modules()]
    return [
        f"{parent}{dot}{leaf}"
        for parent, dot, leaf in parted
        if leaf in ("norm", "final_layer_norm") and any(stack.startswith(f"{parent}{dot}") for stack in stacks)
    ]


def _inside(name: str, outer: Sequence[str]) -> bool:
    return any(name.startswith(f"{other}.") for other in outer)
