"""Recognising a model: whether a map was fitted on these very weights."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from .components import Component
from .interception import submodules
from .maps import Fingerprint


def fingerprint(component: Component) -> Fingerprint:
    """Fingerprint of one component."""
    return Fingerprint(component.architecture.name, weights_hash(component.module))


def weights_hash(module: nn.Module) -> str:
    """SHA-256 over the one-dimensional parameters as bfloat16, sorted by name; empty if there are none.

    These are few and survive quantisation of the large matrices and casting to bfloat16, and a finetune changes them.
    Casting to float16 changes the smallest of them.
    """
    digest = hashlib.sha256()
    vectors = {
        f"{name}.{leaf}": parameter
        for name, part in submodules(module).items()
        for leaf, parameter in part.named_parameters(recurse=False)
        if parameter.ndim == 1
    }
    for name in sorted(vectors):
        values = vectors[name].detach().to("cpu", torch.bfloat16).contiguous()
        digest.update(name.encode())
        digest.update(values.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest() if vectors else ""
