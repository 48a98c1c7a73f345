"""Fingerprints of models: whether a map was fitted on the same weights."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable

import torch
from torch import Tensor, nn

from .architectures import classes_of
from .components import Component
from .interception import canonical_name, submodules
from .layers import WRAPPED, is_linear, unwrapped
from .records import Fingerprint


def fingerprint(component: Component) -> Fingerprint:
    """Fingerprint of one component."""
    module = component.module
    own, *bases = classes_of(module)
    return Fingerprint(component.architecture.name, weights_hash(module), own, tuple(bases), component.variants)


def weights_hash(module: nn.Module) -> str:
    """SHA-256 over the one-dimensional parameters as bfloat16, sorted by canonical name.

    They are few, they survive quantisation of the large matrices and casting to bfloat16, and finetuning changes them.
    Casting to float16 changes the smallest of them. Compilation, an adapter (`peft`) or another version of the library
    that built the model changes nothing, see `act_core.interception.canonical_name`. Nothing is dequantised: of a
    linear layer only the bias counts, since quantised ones have scales besides.

    Returns:
        64 hexadecimal digits; empty if there are no such parameters, or if some cannot be read, as on the meta device
        or in packed bytes.

    Example:
        >>> weights_hash(nn.LayerNorm(2)) == weights_hash(nn.LayerNorm(2))
        True
    """
    vectors = _vectors(module)
    return _digest((canonical_name(name), values) for name, values in vectors) if vectors else ""


def has_weights(module: nn.Module, recorded: str) -> bool | None:
    """Whether a model's weights match a recorded `weights_hash`, also one over names that are not canonical.

    Older maps hashed the names of their library, with or without ``text_model.``. The weights are read once.

    Args:
        module: root of a component.
        recorded: from the fingerprint of a map.

    Returns:
        None if the weights cannot be read, as on the meta device.

    Example:
        >>> has_weights(nn.LayerNorm(2), weights_hash(nn.LayerNorm(2)))
        True
    """
    spellings: tuple[Callable[[str], str], ...] = (
        canonical_name,
        lambda name: name,
        lambda name: f"text_model.{canonical_name(name)}",
    )
    vectors = _vectors(module)
    if vectors is None:
        return None
    return bool(vectors) and any(
        _digest((spelling(name), values) for name, values in vectors) == recorded for spelling in spellings
    )


def _digest(vectors: Iterable[tuple[str, bytes]]) -> str:
    digest = hashlib.sha256()
    for name, values in sorted(vectors, key=lambda vector: vector[0]):
        digest.update(name.encode())
        digest.update(values)
    return digest.hexdigest()


def _vectors(module: nn.Module) -> list[tuple[str, bytes]] | None:
    """Names and values in bfloat16 of the parameters that are hashed; None if some cannot be read."""
    modules = submodules(module)
    wrappers = {name for name, part in modules.items() if unwrapped(part) is not part}
    parameters = [
        (f"{name}.{leaf}", part, leaf, parameter)
        for name, part in modules.items()
        if not _is_adapter(name, wrappers)
        for leaf, parameter in part.named_parameters(recurse=False)
        if parameter.ndim == 1 and (leaf == "bias" or not is_linear(part))
    ]
    vectors: list[tuple[str, bytes]] = []
    for name, part, leaf, parameter in parameters:
        values = _values(part, leaf, parameter)
        if values is None or not values.is_floating_point():
            return None
        values = values.detach().to("cpu", torch.bfloat16).contiguous()
        vectors.append((name, values.view(torch.uint8).numpy().tobytes()))
    return vectors


def _is_adapter(name: str, wrappers: Collection[str]) -> bool:
    """Whether a submodule belongs to the wrapper of a layer rather than to the layer inside."""
    parts = name.split(".") if name else []
    return any(
        ".".join(parts[:depth]) in wrappers and parts[depth : depth + 1] not in ([leaf] for leaf in WRAPPED)
        for depth in range(len(parts) + 1)
    )


def _values(part: nn.Module, leaf: str, parameter: Tensor) -> Tensor | None:
    """A parameter, or its copy in main memory or on disk if `accelerate` offloads it; None if there is none."""
    if not parameter.is_meta:
        return parameter
    offloaded = getattr(getattr(part, "_hf_hook", None), "weights_map", None)
    try:
        values = offloaded[leaf] if offloaded is not None else None
    except KeyError:
        return None
    return values if isinstance(values, Tensor) else None
