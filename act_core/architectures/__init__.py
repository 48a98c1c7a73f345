"""The supported model families, one record each. To support another family, add its record here.

A model is recognised by the ``model_type`` of its configuration, by its class or a base class of it, or by the names
of its parts. Models that are not recognised get a generic record without presets; their sites are found by rule, see
`act_core.architectures.by_rule`.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from ..interception import inner_model, submodules
from .base import Architecture
from .flux import COMFYUI_FLUX, DIFFUSERS_FLUX
from .language import GEMMA, GPT2, GPT_NEOX, LLAMA, MIXTRAL, OLMO2, QWEN3_NEXT
from .mmdit import COMFYUI_MMDIT, DIFFUSERS_MMDIT
from .text_encoders import CLIP, T5
from .unet import COMFYUI_UNET, DIFFUSERS_UNET
from .wan import DIFFUSERS_WAN, WAN
from .z_image import COMFYUI_Z_IMAGE, DIFFUSERS_Z_IMAGE

ARCHITECTURES = (
    LLAMA,
    MIXTRAL,
    QWEN3_NEXT,
    GEMMA,
    OLMO2,
    GPT2,
    GPT_NEOX,
    CLIP,
    T5,
    DIFFUSERS_UNET,
    COMFYUI_UNET,
    DIFFUSERS_MMDIT,
    COMFYUI_MMDIT,
    DIFFUSERS_FLUX,
    COMFYUI_FLUX,
    DIFFUSERS_WAN,
    WAN,
    DIFFUSERS_Z_IMAGE,
    COMFYUI_Z_IMAGE,
)
PRESETS = frozenset(preset for architecture in ARCHITECTURES for preset in architecture.presets)

_BY_KIND = {kind: architecture for architecture in ARCHITECTURES for kind in architecture.kinds}

# Libraries whose models are defined in ``<library>.models.<family>.<file>``; their other classes are shared by all.
_MODEL_LIBRARIES = ("diffusers", "transformers")
_SHARED = ("abc", "builtins", "torch", "typing", *_MODEL_LIBRARIES)

__all__ = ["ARCHITECTURES", "PRESETS", "Architecture", "architecture_of", "classes_of", "family", "kinds_of"]


def architecture_of(module: nn.Module) -> Architecture:
    """The record of a model's family, or a generic one that is named after its kind.

    Example:
        >>> architecture_of(nn.Linear(1, 1)).name
        'Linear'
    """
    module = inner_model(module)
    kinds = kinds_of(module)
    for kind in kinds:
        if kind in _BY_KIND:
            return _BY_KIND[kind]
    names = list(submodules(module))
    alike = (architecture for architecture in ARCHITECTURES if architecture.is_built_alike(names))
    return next(alike, Architecture(kinds[0]))


def family(kind: str) -> str:
    """The name of the record for a kind of model; the kind itself if there is none.

    Example:
        >>> family("mistral"), family("toy")
        ('llama', 'toy')
    """
    return _BY_KIND[kind].name if kind in _BY_KIND else kind


def classes_of(module: nn.Module) -> list[str]:
    """The names of a model's class, without wrappers, and of the classes of models that it is built on.

    Base classes that models of every kind share, such as ``Module`` and ``ModelMixin``, are left out.

    Example:
        >>> classes_of(nn.ModuleDict({"_orig_mod": nn.Linear(1, 1)}))
        ['Linear']
    """
    own, *bases = type(inner_model(module)).__mro__
    return [own.__name__, *(base.__name__ for base in bases if not _is_shared(base))]


def _is_shared(base: type) -> bool:
    library, *inside = base.__module__.split(".")
    is_model = library in _MODEL_LIBRARIES and len(inside) > 2 and inside[0] == "models"
    return library in _SHARED and not is_model


def kinds_of(module: nn.Module) -> list[str]:
    """Names by which a model may be recognised, the most specific first: ``model_type``, then `classes_of`.

    Example:
        >>> kinds_of(nn.Linear(1, 1))
        ['Linear']
    """
    config: Any = getattr(inner_model(module), "config", None)
    if hasattr(config, "get_text_config"):  # the language part of a multimodal model
        config = config.get_text_config()
    declared = getattr(config, "model_type", "")
    return [*([declared] if declared else []), *classes_of(module)]
