"""Telling whether a map fits the model it is put on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import nn

from .forwards import submodules
from .maps import Fingerprint, Site


def fingerprint(module: nn.Module, architecture: str, sites: Iterable[Site]) -> Fingerprint:
    """Fingerprint of one component, over the given sites of it."""
    return Fingerprint(architecture, structure_hash(architecture, sites), weights_hash(module))


def structure_hash(architecture: str, sites: Iterable[Site]) -> str:
    """SHA-256 over architecture family, site names and channels: over the sites only, in canonical order."""
    lines = sorted(f"{site.key} {site.channels}" for site in sites)
    return hashlib.sha256("\n".join([architecture, *lines]).encode()).hexdigest()


def weights_hash(module: nn.Module) -> str:
    """SHA-256 over the one-dimensional parameters as bfloat16, sorted by name; empty where there are none.

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
