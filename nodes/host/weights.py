"""Maps in the weights of a MODEL and a CLIP: as patches, as a LoRA makes them, in place of swapped forwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import comfy.lora
import torch
from torch import Tensor

from ...act_core import ActMap, MapError
from ...act_core.components import DIFFUSION_MODEL
from ...act_core.interop.lora import LinearLayers, comfyui_key, is_whole, lora_tensors, storable
from ...act_core.settings import Branch
from ...act_core.steering import check_variant
from ...act_core.steering.weights import FoldedMap, fold_map
from .models import diffusion_model
from .schedule import Window
from .text_encoders import text_encoders


def folded(
    model: Any,
    clip: Any | None,
    act_map: ActMap,
    level: float | None = None,
    *,
    linear_layers: LinearLayers = "compact",
) -> FoldedMap:
    """A map folded into the weights of a MODEL and a CLIP, as other patches on them have left these.

    Args:
        model: a MODEL.
        clip: a CLIP; None if none is connected.
        act_map: the map.
        level: for a map with noise levels, see `fold_map`.
        linear_layers: see `lora_tensors`.

    Raises:
        MapError: the map does not fit, or cannot be folded.
    """
    component = diffusion_model(model)
    roots = {DIFFUSION_MODEL: component.module}
    patched = [(DIFFUSION_MODEL, model)]
    if clip is not None:
        roots |= {name: part.transformer for name, part in text_encoders(clip).items()}
        patched.append(("", clip.patcher))
    result = fold_map(act_map, roots, level=level, parameters=_parameters(patched, linear_layers))
    if DIFFUSION_MODEL in act_map.components:
        check_variant(act_map, component)
    return storable(result, linear_layers)


def _parameters(patched: list[tuple[str, Any]], linear_layers: LinearLayers) -> Callable[[str, str], Tensor | None]:
    """Reads parameters as they are with the patches on a MODEL or CLIP, loaded or not."""
    entries: dict[str, list[Any]] = {}
    for prefix, patcher in patched:
        entries |= patcher.get_key_patches(prefix)

    def read(component: str, name: str) -> Tensor | None:
        path = comfyui_key(component, name).removeprefix("text_encoders.")
        if path not in entries:
            return None
        (weight, convert), *patches = entries[path]
        # Compact slopes multiply what is in the weight of a linear layer at the time, so it need not be computed here.
        if not patches or not is_whole(weight, len(weight), linear_layers):
            return weight
        start = convert(weight, inplace=False).to(torch.float32, copy=True)
        found = comfy.lora.calculate_weight(patches, start, path)
        return found if weight.ndim == 1 else found.to(weight.dtype)

    return read


def check_whole(window: Window, branch: Branch) -> None:
    """Refuse settings that weights cannot follow.

    Raises:
        MapError: a part of the schedule, a changing strength, or one branch.
    """
    if str(window) or branch != "both":
        raise MapError(
            "as_weights acts on both branches at every step; set branch to both, start_percent to 0, end_percent to 1 "
            "and schedule to constant without a curve, or turn as_weights off."
        )


def with_weights(
    model: Any, clip: Any | None, folded: FoldedMap, strength: float, strength_clip: float
) -> tuple[Any, Any | None]:
    """Clones of a MODEL and a CLIP with patches for a folded map; at strength 0, the MODEL or CLIP itself."""
    tensors = lora_tensors(folded)
    if strength:
        model = _patched(model, comfy.lora.model_lora_keys_unet(model.model, {}), tensors, strength)
    if clip is not None and strength_clip:
        clip = _patched(clip, comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {}), tensors, strength_clip)
    return model, clip


def _patched(patcher: Any, keys: Mapping[str, str], tensors: Mapping[str, Tensor], strength: float) -> Any:
    # The tensors of the other one are not found.
    patches = comfy.lora.load_lora(tensors, keys, log_missing=False)
    clone = patcher.clone()
    if patches:
        clone.add_patches(patches, strength)
    return clone
