"""Which kinds of models can be steered as language models, and where a model runs."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
)

from ..errors import MapError

# Nothing is downloaded, and no code from a model folder is run.
LOCAL_ONLY: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


def check_causal(name: str, config: Any) -> None:
    """Refuse models that do not continue a text from left to right.

    Args:
        name: display name of the model.
        config: its transformers configuration.

    Raises:
        MapError: an encoder-decoder model such as T5, or an encoder such as BERT.
    """
    kind = str(getattr(config, "model_type", ""))
    what, instead = "", ""
    if getattr(config, "is_encoder_decoder", False):
        what, instead = f"an encoder-decoder model ({kind})", ", or load it as an EncoderDecoderModel"
    elif kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not _is_decoder(config):
        what = f"an encoder ({kind})"
    if what:
        raise MapError(
            f"{name or 'This model'} is {what}, which does not continue texts; use a causal language model, such as "
            f"Llama or Qwen{instead}."
        )


def check_writes_on(name: str, module: Any) -> None:
    """Refuse modules that are not causal language models of transformers.

    Raises:
        MapError: as `check_causal`, a module of another library or a wrapper, or a model without a head.

    Example:
        >>> check_writes_on("mine", nn.Linear(2, 2))
        Traceback (most recent call last):
        ...
        act_core.errors.MapError: mine is a Linear, not a model of the transformers library; give the model inside it, \
or write an adapter (see act_core.fitting.FitModel).
    """
    _check_library(name, module)
    check_causal(name, module.config)
    _check_head(name, module, "AutoModelForCausalLM")


def check_translates(name: str, module: Any) -> None:
    """Refuse modules that are not encoder-decoder language models of transformers.

    Raises:
        MapError: another kind of model, a module of another library or a wrapper, or a model without a head.
    """
    _check_library(name, module)
    _check_encoder_decoder(name, module.config)
    _check_head(name, module, "AutoModelForSeq2SeqLM")


def _check_library(name: str, module: Any) -> None:
    declared = getattr(getattr(module, "config", None), "model_type", "")
    if not declared or not callable(getattr(module, "can_generate", None)):
        raise MapError(
            f"{name or 'This model'} is a {type(module).__name__}, not a model of the transformers library; give the "
            "model inside it, or write an adapter (see act_core.fitting.FitModel)."
        )


def _check_head(name: str, module: Any, auto_class: str) -> None:
    if not module.can_generate():
        raise MapError(
            f"{name or 'This model'} is a {type(module).__name__}, which has no head that writes tokens; load it "
            f"with {auto_class}."
        )


def _check_encoder_decoder(name: str, config: Any) -> None:
    if not getattr(config, "is_encoder_decoder", False):
        raise MapError(
            f"{name or 'This model'} is of the kind {config.model_type!r}, which is not an encoder-decoder model; use "
            "one such as T5, or load this one as a TransformersModel."
        )


def check_loadable(name: str, config: Any) -> None:
    """Refuse configurations from which no causal language model can be loaded, before any weights are read.

    Args:
        name: display name of the model.
        config: its transformers configuration.

    Raises:
        MapError: as `check_causal`, and kinds of models that transformers does not know as causal language models.
    """
    check_causal(name, config)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise MapError(
            f"{name} is of the kind {config.model_type!r}, which is not a causal language model; use one such as "
            "Llama or Qwen."
        )


def check_loadable_pair(name: str, config: Any) -> None:
    """Refuse configurations from which no encoder-decoder language model can be loaded.

    Raises:
        MapError: another kind of model.
    """
    _check_encoder_decoder(name, config)
    if type(config) not in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING:
        raise MapError(f"{name} is of the kind {config.model_type!r}, which does not write texts; use one such as T5.")


def _is_decoder(config: Any) -> bool:
    return bool(getattr(config, "is_decoder", False) or getattr(config, "causal", False))


def execution_device(module: nn.Module) -> torch.device:
    """The device on which a model expects its inputs; accelerate may keep the weights themselves elsewhere.

    Raises:
        MapError: the weights have no values, and no hook loads them.

    Example:
        >>> execution_device(nn.Linear(2, 2))
        device(type='cpu')
    """
    # If accelerate offloads weights to main memory or disk, hooks load those of each layer when it runs.
    for part in module.modules():
        device = getattr(getattr(part, "_hf_hook", None), "execution_device", None)
        if device is not None:
            return torch.device(device)
    device = next(module.parameters()).device
    if device.type == "meta":
        raise MapError("The weights of the model are on the device 'meta', without values; load it onto a real device.")
    return device
