"""Export of a map as a LoRA, for people and programs that do not have this library.

Two formats:

``comfyui``
    Read by the LoRA loaders of ComfyUI at any strength, and exact there. Norms are changed by ``.diff`` (weight) and
    ``.diff_b`` (bias). The slopes of a linear layer are a BOFT whose rotation is the identity: ``.oft_blocks`` are 0,
    and ``.rescale`` multiplies each row of the weight. A DoRA would do the same by setting the norm of each row, but
    then undoes what other LoRAs and finetunes change of it.

``diffusers``
    Read by ``load_lora_weights``. It holds shifts of linear layers alone, as ``.lora_B.bias`` of a LoRA that is 0:
    diffusers has no format for norms, and none for slopes together with shifts.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from ..architectures import architecture_of
from ..architectures.shared_names import SAME_NAMES, Translator
from ..components import DIFFUSION_MODEL
from ..errors import MapFileError
from ..files import write_whole
from ..folding import Fold
from ..interception import canonical_name, submodules
from ..mapfile.container import Container, modelspec
from ..mapfile.format import COVERS_KEY, SUFFIX
from ..maps import ActMap
from ..steering.weights import FoldedMap, Place

LinearLayers = Literal["compact", "whole"]


def comfyui_key(component: str, name: str) -> str:
    """The key that ComfyUI's LoRA loader has for a module of its own models.

    Example:
        >>> comfyui_key("diffusion_model", "out.0"), comfyui_key("clip_l", "text_model.final_layer_norm")
        ('diffusion_model.out.0', 'text_encoders.clip_l.transformer.text_model.final_layer_norm')
    """
    prefix = DIFFUSION_MODEL if component == DIFFUSION_MODEL else f"text_encoders.{component}.transformer"
    return f"{prefix}.{name}"


def lora_tensors(folded: FoldedMap, *, linear_layers: LinearLayers = "compact") -> dict[str, Tensor]:
    """The tensors of a LoRA in the format ``comfyui``, which at any strength acts like the map on both branches.

    Args:
        folded: from `storable`, with ComfyUI's names.
        linear_layers: ``compact`` stores three numbers for each output channel of a linear layer. ``whole`` stores the
            change of each weight, in the dtype of the weight, and is as large as these layers: loaders that leave the
            weights alone (*bypass*) need it, since they apply compact slopes at full strength always.

    Example:
        >>> from act_core.steering.weights import fold_map
        >>> act_map = ActMap({Site("diffusion_model", "0", None, "tokens", 2): Transport(torch.ones(2), torch.ones(2))})
        >>> lora_tensors(fold_map(act_map, {"diffusion_model": nn.Sequential(nn.Linear(3, 2))}))
        {'diffusion_model.0.diff_b': tensor([1., 1.])}
    """
    tensors: dict[str, Tensor] = {}
    for (component, name), fold in folded.folds.items():
        base = comfyui_key(component, name)
        if fold.changes_weight:
            whole = is_whole(fold.weight, len(fold.gain), linear_layers)
            tensors.update(_change(base, fold) if whole else _rescaling(base, fold))
        if fold.bias is not None:
            tensors[f"{base}.diff_b"] = fold.bias
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def storable(folded: FoldedMap, linear_layers: LinearLayers = "compact") -> FoldedMap:
    """The part of a folded map whose changes can be stored.

    Raises:
        MapMismatchError: nothing of it.
    """

    def reason(_: Place, fold: Fold) -> str:
        if fold.changes_weight and fold.is_quantised and is_whole(fold.weight, len(fold.gain), linear_layers):
            return "its weight is quantised, so its change cannot be stored whole"
        return ""

    return folded.without(reason)


def is_whole(weight: Tensor, channels: int, linear_layers: LinearLayers) -> bool:
    """Whether the change of a weight is stored whole: also with an odd number of channels, which has no blocks of two.

    Example:
        >>> is_whole(torch.ones(3, 2), 3, "compact"), is_whole(torch.ones(4, 2), 4, "compact")
        (True, False)
    """
    return weight.ndim == 1 or linear_layers == "whole" or channels % 2 == 1


def _change(base: str, fold: Fold) -> dict[str, Tensor]:
    change = fold.weight_change()
    return {f"{base}.diff": change if fold.is_norm else change.to(fold.weight.dtype)}


def _rescaling(base: str, fold: Fold) -> dict[str, Tensor]:
    """A BOFT that multiplies each row of a weight."""
    rows = len(fold.gain)
    return {
        f"{base}.oft_blocks": torch.zeros(1, rows // 2, 2, 2, dtype=torch.float16),
        f"{base}.rescale": (1 + fold.gain).view(-1, *[1] * (fold.weight.ndim - 1)),
        # Bounds the rotation; 0 for no bound. The host needs the key.
        f"{base}.alpha": torch.tensor(0.0),
    }


def for_diffusers(folded: FoldedMap) -> FoldedMap:
    """The part of a folded map that the format ``diffusers`` can hold.

    Raises:
        MapMismatchError: nothing of it.
    """

    def reason(_: Place, fold: Fold) -> str:
        if fold.weight.ndim != 2:
            return "diffusers reads LoRAs of linear layers only"
        return "diffusers reads no slopes together with shifts; fit with estimator mean" if fold.changes_weight else ""

    return folded.without(reason)


def diffusers_lora_tensors(folded: FoldedMap, places: Mapping[str, str]) -> dict[str, Tensor]:
    """The tensors of a LoRA in the format ``diffusers``.

    Args:
        folded: from `for_diffusers`.
        places: by component, the attribute of the pipeline that holds it, such as ``unet``.

    Example:
        >>> from act_core.steering.weights import fold_map
        >>> act_map = ActMap({Site("diffusion_model", "0", None, "tokens", 2): Transport(torch.ones(2), torch.ones(2))})
        >>> folded = for_diffusers(fold_map(act_map, {"diffusion_model": nn.Sequential(nn.Linear(3, 2))}))
        >>> list(diffusers_lora_tensors(folded, {"diffusion_model": "unet"}))
        ['unet.0.lora_A.weight', 'unet.0.lora_B.weight', 'unet.0.lora_B.bias']
    """
    tensors: dict[str, Tensor] = {}
    for (component, name), fold in folded.folds.items():
        rows, columns = fold.weight.shape
        base = f"{places[component]}.{name}"
        bias = torch.zeros(rows) if fold.bias is None else fold.bias.cpu().contiguous()
        tensors[f"{base}.lora_A.weight"] = torch.zeros(1, columns)
        tensors[f"{base}.lora_B.weight"] = torch.zeros(rows, 1)
        tensors[f"{base}.lora_B.bias"] = bias
    return tensors


def for_comfyui(folded: FoldedMap, modules: Mapping[str, nn.Module]) -> FoldedMap:
    """The part of a folded map of a pipeline that ComfyUI has layers for, with its names for them.

    Args:
        folded: a map folded into the modules of diffusers and transformers.
        modules: by component.

    Raises:
        MapMismatchError: nothing of it.
    """
    names = {place: comfyui_name(*place, modules[place[0]]) for place in folded.folds}
    kept = folded.without(lambda place, _: "" if names[place] else "its name in ComfyUI is not known")
    return replace(kept, folds={(place[0], names[place] or ""): fold for place, fold in kept.folds.items()})


def comfyui_name(component: str, name: str, root: nn.Module) -> str | None:
    """ComfyUI's name of a submodule of a pipeline's component; None if it is not known.

    Example:
        >>> comfyui_name("clip_l", "encoder.layers.0.mlp.fc2", nn.Identity())
        'text_model.encoder.layers.0.mlp.fc2'
    """
    if component.startswith("clip_"):  # newer versions of transformers leave out the first part
        return f"text_model.{canonical_name(name)}"
    if component == "t5xxl":
        return canonical_name(name)
    if component != DIFFUSION_MODEL:
        return None
    if type(root).__name__ in SAME_NAMES:
        return name
    translators = (Translator(shared, "ComfyUI", submodules(root)) for shared in architecture_of(root).shared)
    return next((found for translator in translators if (found := translator.name(name))), None)


def save_lora(folded: FoldedMap, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write the tensors of a LoRA to a file, with ModelSpec metadata from the card of the map.

    Raises:
        MapFileError: the name does not end in ``.safetensors``, or the file cannot be written.

    Example:
        >>> import tempfile
        >>> from act_core.steering.weights import fold_map
        >>> act_map = ActMap({Site("diffusion_model", "0", None, "tokens", 2): Transport(torch.ones(2), torch.ones(2))})
        >>> folded = fold_map(act_map, {"diffusion_model": nn.Sequential(nn.Linear(3, 2))})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_lora(folded, lora_tensors(folded), Path(folder, "style.safetensors"))
        ...     [file.name for file in Path(folder).iterdir()]
        ['style.safetensors']
    """
    if path.suffix != SUFFIX:
        raise MapFileError(f"{path.name} is not a name for a LoRA; it must end in {SUFFIX}.")
    container = Container(tensors)
    try:
        write_whole(path, container.file(container.header(_metadata(folded))))
    except OSError as error:
        raise MapFileError(f"{path} cannot be written: {error.strerror or error}. Choose another name.") from error


def sha256_of(act_map: ActMap) -> str:
    """SHA-256 over the sites and coefficients of a map, which its files and its copies in memory share.

    Example:
        >>> act_map = ActMap({Site("model", "0", None, "tokens", 2): Transport(torch.ones(2), torch.ones(2))})
        >>> sha256_of(act_map) == sha256_of(act_map.scaled(1)), sha256_of(act_map) == sha256_of(act_map.scaled(2))
        (True, False)
    """
    digest = hashlib.sha256()
    for site, transport in act_map.transports.items():
        digest.update(site.key.encode())
        for tensor in (transport.omega, transport.beta):
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _metadata(folded: FoldedMap) -> dict[str, str]:
    act_map = folded.act_map
    card = act_map.card
    hint = "An Activation Transport map."
    if ends := card.strength_range:
        hint += " Strengths from {:g} to {:g} are recommended.".format(*ends)
    metadata = {
        **modelspec(card, act_map.record.base.values(), "lora"),
        # That of the map names nodes.
        "modelspec.usage_hint": hint,
        "act.map_sha256": sha256_of(act_map),
        "act.folded": json.dumps({"sites": len(folded.folds), "left_out": len(folded.left_out), "lost": folded.lost}),
    }
    if card.cover:
        metadata[COVERS_KEY] = json.dumps([base64.b64encode(card.cover).decode()])
    return metadata
