"""Language models of the transformers library under the host's memory management."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from torch import nn

from ...act_core import MapError
from ...act_core.errors import MapFileError
from ...act_core.settings import Dtype
from . import folders

if TYPE_CHECKING:  # importing it takes seconds, and most graphs do not use a language model
    from ...act_core.models.transformers import TransformersModel

DEFAULT = "SmolLM2-135M-Instruct (small default)"
DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in get_args(Dtype)}
# Memory in addition to the weights, per token and channel of a layer: keys, values, and intermediate results.
_TENSORS_A_LAYER = 4
# The share of the free memory that a fit may use in addition to the model.
_SHARE = 0.7


def names() -> list[str]:
    """Models that can be loaded: the default one, then the folders and GGUF files in models/LLM."""
    return [DEFAULT, *folders.language_models()]


class LanguageModel:
    """A language model that the host loads to its device when it is used, and unloads to make room for others.

    Args:
        model: the model, in main memory.
        device: device that it runs on.
    """

    def __init__(self, model: TransformersModel, device: torch.device) -> None:
        self._model = model
        offload = comfy.model_management.text_encoder_offload_device()
        # The host sets attributes on the model that it manages, some of which clash with names of transformers.
        root = nn.Module()
        root.model = model.module
        self._patcher: Any = ModelPatcher(root, load_device=device, offload_device=offload)

    def on_device(self, tokens: int) -> TransformersModel:
        """The model, loaded to its device with room for a number of tokens.

        Raises:
            MapError: it does not fit into memory.
        """
        config = self._model.config
        size = _TENSORS_A_LAYER * config.num_hidden_layers * config.hidden_size * self._model.module.dtype.itemsize
        try:
            # Load it completely: the host can stream only its own layers.
            comfy.model_management.load_models_gpu([self._patcher], memory_required=tokens * size, force_full_load=True)
        except comfy.model_management.OOM_EXCEPTION as error:
            raise MapError(
                f"The language model {self._model.name} does not fit into the memory of {self._patcher.load_device}; "
                "load it with device cpu, or use a smaller one."
            ) from error
        return self._model

    def budget(self) -> int | None:
        """Bytes that a fit may use in addition to the model; None on a CPU, where a budget would only slow it down."""
        device = self._patcher.load_device
        if comfy.model_management.is_device_cpu(device):
            return None
        return int(_SHARE * comfy.model_management.get_free_memory(device))


def load(name: str, dtype: str, device: str) -> LanguageModel:
    """Load a model into main memory.

    Args:
        name: one of `names`.
        dtype: one of `DTYPES`, or ``auto``.
        device: ``cpu``, or ``auto``.

    Raises:
        MapError: it does not exist, cannot be read, or a package is missing.
    """
    try:
        from ...act_core.models.transformers import TransformersModel
    except ImportError as error:
        raise MapFileError(
            f"Language models need the package transformers, which cannot be imported: {error}."
        ) from error
    on = torch.device("cpu") if device == "cpu" else comfy.model_management.text_encoder_device()
    kind = DTYPES.get(dtype) or _best_dtype(on)
    if name == DEFAULT:
        return LanguageModel(TransformersModel.default(dtype=kind), on)
    return LanguageModel(TransformersModel.from_pretrained(folders.find_language_model(name), dtype=kind), on)


def _best_dtype(device: torch.device) -> torch.dtype:
    if comfy.model_management.is_device_cpu(device):
        return torch.float32
    return torch.bfloat16 if comfy.model_management.should_use_bf16(device) else torch.float16
