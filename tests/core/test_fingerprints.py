"""Fingerprints, which recognise the model that a map was fitted on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import accelerate
import pytest
import torch
from helpers import tiny_llama
from torch import nn
from transformers import LlamaForCausalLM

from act_core.architectures import kinds_of
from act_core.fingerprints import fingerprint, has_weights, weights_hash


def test_same_weights_have_same_hash() -> None:
    assert weights_hash(tiny_llama().module) == weights_hash(tiny_llama().module)


def test_casting_to_bfloat16_and_back_keeps_hash() -> None:
    module = tiny_llama().module
    before = weights_hash(module)
    assert weights_hash(module.bfloat16()) == before
    assert weights_hash(module.float()) == before


def test_quantising_matrices_keeps_hash() -> None:
    module = tiny_llama().module
    before = weights_hash(module)
    for parameter in module.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(16).round_().div_(16)
    assert weights_hash(module) == before


def test_finetune_has_another_hash() -> None:
    module = tiny_llama().module
    before = weights_hash(module)
    module.model.norm.weight.data[3] *= 1.1
    assert weights_hash(module) != before


def test_exchanged_layers_have_another_hash() -> None:
    module = nn.Sequential(nn.LayerNorm(2), nn.LayerNorm(2))
    nn.init.zeros_(module[1].weight)  # pyright: ignore[reportArgumentType]
    assert weights_hash(module) != weights_hash(nn.Sequential(module[1], module[0]))


def test_compiled_model_has_hash_of_model() -> None:
    module = tiny_llama().module
    before = weights_hash(module)
    compiled: Any = torch.compile(module, backend="eager")
    module.model.layers[0] = torch.compile(module.model.layers[0], backend="eager")
    assert weights_hash(compiled) == before


def test_parameters_of_root_count() -> None:
    one, other = nn.LayerNorm(3), nn.LayerNorm(3)
    nn.init.constant_(other.bias, 0.5)
    assert weights_hash(one) != weights_hash(other)


def test_model_without_vectors_has_no_hash() -> None:
    assert weights_hash(nn.Linear(2, 2, bias=False)) == ""


def test_fingerprint_holds_family_and_weights() -> None:
    module = tiny_llama().module
    (component,) = tiny_llama().components
    assert fingerprint(component).architecture == "llama"
    assert fingerprint(component).weights == weights_hash(module)


def test_comparing_weights_reads_each_parameter_once() -> None:
    read: list[str] = []

    class Watched(nn.LayerNorm):
        def named_parameters(self, *args: Any, **kwargs: Any) -> Any:
            for name, parameter in super().named_parameters(*args, **kwargs):
                read.append(name)
                yield name, parameter

    # Of other weights, all spellings of the names are tried.
    assert has_weights(Watched(2), weights_hash(nn.LayerNorm(3))) is False
    assert read == ["weight", "bias"]


def test_fingerprint_holds_classes_of_models_but_not_those_of_the_libraries() -> None:
    class Tuned(LlamaForCausalLM):
        pass

    (component,) = tiny_llama().components
    component = replace(component, module=Tuned(tiny_llama().module.config), variants=("FluxSchnell", "Flux"))
    found = fingerprint(component)
    assert found.model_class == "Tuned"
    assert found.bases == ("LlamaForCausalLM", "LlamaPreTrainedModel")
    assert found.variants == ("FluxSchnell", "Flux")


def test_base_classes_of_diffusers_are_not_classes_of_models() -> None:
    pipelines = pytest.importorskip("diffusers")
    with torch.device("meta"):
        module = pipelines.UNet2DModel(
            block_out_channels=(32,), down_block_types=["DownBlock2D"], up_block_types=["UpBlock2D"]
        )
    assert kinds_of(module) == ["UNet2DModel"]


def test_weights_that_cannot_be_read_have_no_hash() -> None:
    assert weights_hash(nn.LayerNorm(2, device="meta")) == ""
    assert has_weights(nn.LayerNorm(2, device="meta"), weights_hash(nn.LayerNorm(2))) is None
    assert has_weights(nn.Linear(2, 2, bias=False), weights_hash(nn.LayerNorm(2))) is False


def test_offloaded_weights_have_the_hash_of_the_model() -> None:
    module = tiny_llama().module
    before = weights_hash(module)
    offloaded = accelerate.cpu_offload(tiny_llama().module, execution_device=torch.device("cpu"))
    assert next(offloaded.parameters()).is_meta
    assert weights_hash(offloaded) == before
