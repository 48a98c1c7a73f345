"""Telling whether a map fits the model it is put on."""

from __future__ import annotations

from typing import Any

import torch
from helpers import tiny_llama
from torch import nn

from act_core.fingerprints import fingerprint, structure_hash, weights_hash
from act_core.sites import Site

SITES = [Site("toy", name, None, "tokens", 4) for name in ("a", "b")]


def test_the_same_weights_have_the_same_hash() -> None:
    assert weights_hash(tiny_llama().module) == weights_hash(tiny_llama().module)


def test_casting_to_half_precision_and_back_keeps_the_hash() -> None:
    module = tiny_llama().module
    before = weights_hash(module)
    assert weights_hash(module.bfloat16()) == before
    assert weights_hash(module.float()) == before


def test_quantising_the_matrices_keeps_the_hash() -> None:
    module = tiny_llama().module
    before = weights_hash(module)
    for parameter in module.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(16).round_().div_(16)
    assert weights_hash(module) == before


def test_a_finetune_has_another_hash() -> None:
    module = tiny_llama().module
    before = weights_hash(module)
    module.model.norm.weight.data[3] *= 1.1
    assert weights_hash(module) != before


def test_exchanged_layers_have_another_hash() -> None:
    module = nn.Sequential(nn.LayerNorm(2), nn.LayerNorm(2))
    nn.init.zeros_(module[1].weight)  # pyright: ignore[reportArgumentType]
    assert weights_hash(module) != weights_hash(nn.Sequential(module[1], module[0]))


def test_a_compiled_model_has_the_hash_of_the_model() -> None:
    module = tiny_llama().module
    before = weights_hash(module)
    compiled: Any = torch.compile(module, backend="eager")
    module.model.layers[0] = torch.compile(module.model.layers[0], backend="eager")
    assert weights_hash(compiled) == before


def test_parameters_of_the_root_itself_count() -> None:
    one, other = nn.LayerNorm(3), nn.LayerNorm(3)
    nn.init.constant_(other.bias, 0.5)
    assert weights_hash(one) != weights_hash(other)


def test_no_vectors_no_hash() -> None:
    assert weights_hash(nn.Linear(2, 2, bias=False)) == ""


def test_structure_depends_on_family_names_and_channels_and_not_on_order() -> None:
    wider = [SITES[0], Site("toy", "b", None, "tokens", 5)]
    renamed = [SITES[0], Site("toy", "c", None, "tokens", 4)]
    second = [SITES[0], Site("toy", "b", 1, "tokens", 4)]
    assert structure_hash("llama", SITES) == structure_hash("llama", SITES[::-1])
    hashes = {structure_hash("llama", sites) for sites in (SITES, wider, renamed, second, SITES[:1])}
    assert len(hashes | {structure_hash("gpt2", SITES)}) == 6


def test_fingerprint_holds_family_structure_and_weights() -> None:
    module = tiny_llama().module
    print_ = fingerprint(module, "llama", SITES)
    assert print_.architecture == "llama"
    assert (print_.structure, print_.weights) == (structure_hash("llama", SITES), weights_hash(module))
