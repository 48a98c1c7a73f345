"""The parts of a MODEL and a CLIP that hold sites."""

from __future__ import annotations

from typing import Any

from torch import nn

from ...act_core.components import Component

DIFFUSION_MODEL = "diffusion_model"
# Whose parts are named as in the transformers library.
_ARCHITECTURES = {"CLIPTextModel": "clip_text_model", "T5": "t5"}


def diffusion_model(model: Any) -> Component:
    """Of a MODEL, or of the model inside it."""
    inner = getattr(model, "model", model)
    module: nn.Module = inner.diffusion_model
    module = getattr(module, "_orig_mod", module)
    return Component(DIFFUSION_MODEL, module, type(module).__name__)


def text_encoders(clip: Any) -> list[Component]:
    """Of a CLIP, such as ``clip_l`` and ``t5xxl``."""
    parts = [(name, part, getattr(part, "transformer", None)) for name, part in clip.cond_stage_model.named_children()]
    found = [(name, part, module) for name, part, module in parts if isinstance(module, nn.Module)]
    # Of one encoder among several the pooled output is used: see `_passes`.
    passes = [_passes(part, module) if len(found) == 1 else {} for _, part, module in found]
    return [
        Component(name, module, _architecture(module), own)
        for (name, _, module), own in zip(found, passes, strict=True)
    ]


def _passes(part: Any, module: nn.Module) -> dict[str, int]:
    """Where layers are skipped at the end (CLIP Set Last Layer), the host norms the last layer first, for the pooled
    output alone, and then the one that becomes the conditioning."""
    if getattr(part, "layer", "last") != "hidden" or not getattr(part, "layer_norm_hidden_state", False):
        return {}
    return {name: 1 for name, _ in module.named_modules() if name.endswith("final_layer_norm")}


def _architecture(module: nn.Module) -> str:
    for kind in type(module).__mro__:
        if kind.__name__ in _ARCHITECTURES:
            return _ARCHITECTURES[kind.__name__]
    # Language models: the host names their parts alike, whatever their class.
    return "llama" if hasattr(getattr(module, "model", None), "layers") else type(module).__name__


def path_in_clip(component: str, site: str) -> str:
    """Where the forward of a submodule of a text encoder lies, from the root of the CLIP's model."""
    return f"{component}.transformer.{site}.forward"
