"""Presets, patterns, discovery, coverage, and moving activations of every layout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from helpers import MIXED_IN_ORDER, MIXED_SITES, byte_tokenizer, keys, mixed, prompts, swapped, tiny_llama
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from act_core import MapError, fit
from act_core.architectures import PRESETS
from act_core.components import Component
from act_core.discovery import discover, layout_of, patterns_for
from act_core.displacement import displace_at
from act_core.models.transformers import TransformersModel
from act_core.settings import Spatial
from act_core.sites import Coverage, Layout

LAYERS = 2
LANGUAGE_MODELS = ("llama", "mistral", "qwen2", "qwen3", "smollm3", "phi3", "gemma2", "gemma3_text", "gpt2", "gpt_neox")
COUNTS = {"norms": 2, "attention": 1, "mlp": 1, "blocks": 1}
SIZES: dict[str, Any] = {
    "vocab_size": 257,
    "hidden_size": 32,
    "intermediate_size": 48,
    "ffn_dim": 48,
    "word_embed_proj_dim": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}


def tiny(architecture: str) -> TransformersModel:
    """A random model of an architecture, as the transformers library makes it."""
    config = CONFIG_MAPPING[architecture](**SIZES)
    module = AutoModelForCausalLM.from_config(config).eval()
    return TransformersModel(module, byte_tokenizer(), architecture)


def sites_of(model: TransformersModel, sites: str) -> list[str]:
    batch = model.batches(["rain", "sunny"], 2)[0]
    with torch.inference_mode():
        return [site.name for site in discover(model.components, sites, batch.run, batch.rows)]


@pytest.fixture(scope="module")
def by_architecture() -> Callable[[str], TransformersModel]:
    made: dict[str, TransformersModel] = {}
    return lambda name: made.setdefault(name, tiny(name))


@pytest.mark.parametrize("preset", COUNTS)
@pytest.mark.parametrize("architecture", LANGUAGE_MODELS)
def test_presets_find_what_they_promise(
    by_architecture: Callable[[str], TransformersModel], architecture: str, preset: str
) -> None:
    names = sites_of(by_architecture(architecture), preset)
    assert len(names) == COUNTS[preset] * LAYERS
    assert not [name for name in names if "q_norm" in name or "k_norm" in name]


@pytest.mark.parametrize("architecture", LANGUAGE_MODELS)
def test_auto_and_all_work_for_every_architecture(
    by_architecture: Callable[[str], TransformersModel], architecture: str
) -> None:
    model = by_architecture(architecture)
    every = sites_of(model, "all")
    assert len(every) == sum(COUNTS.values()) * LAYERS
    auto = sites_of(model, "auto")
    assert auto
    assert set(auto) <= set(every)


@pytest.mark.parametrize("architecture", LANGUAGE_MODELS)
def test_sites_of_one_layer_come_before_those_of_the_next(
    by_architecture: Callable[[str], TransformersModel], architecture: str
) -> None:
    layers = [
        next(part for part in name.split(".") if part.isdigit()) for name in sites_of_all(by_architecture, architecture)
    ]
    assert layers == sorted(layers)


def sites_of_all(by_architecture: Callable[[str], TransformersModel], architecture: str) -> list[str]:
    return sites_of(by_architecture(architecture), "all")


def test_every_preset_is_there_for_every_architecture() -> None:
    assert all(set(COUNTS) <= set(presets) for presets in PRESETS.values())


def test_presets_and_patterns_mix(llama: TransformersModel) -> None:
    assert sites_of(llama, " attention , */model.norm ,, ") == [
        *(f"model.layers.{i}.self_attn.o_proj" for i in range(3)),
        "model.norm",
    ]


def test_a_preset_does_not_reach_into_other_components() -> None:
    component = Component("text", nn.Linear(1, 1), "llama")
    assert all(pattern.startswith("text/") for pattern in patterns_for(component, "all"))


def test_a_preset_of_an_unknown_architecture_asks_for_patterns() -> None:
    with pytest.raises(MapError, match=r"'toy'.*patterns"):
        patterns_for(Component("toy", nn.Linear(1, 1), "toy"), "norms")


# --- discovery


def found(sites: str) -> list[str]:
    model = mixed()
    batch = model.batches(prompts("source", 2), 2)[0]
    return [site.key for site in discover(model.components, sites, batch.run, batch.rows)]


def test_sites_come_in_the_order_in_which_they_run_not_in_which_they_were_registered() -> None:
    assert found(MIXED_SITES) == MIXED_IN_ORDER
    registered = [f"toy/{name}" for name, _ in mixed().module.named_children()]
    assert registered != list(dict.fromkeys(key.partition("#")[0] for key in MIXED_IN_ORDER))


def test_layout_and_channels_are_read_from_the_activation() -> None:
    model = mixed()
    batch = model.batches(prompts("source", 2), 2)[0]
    sites = discover(model.components, MIXED_SITES, batch.run, batch.rows)
    assert [(site.layout, site.channels) for site in sites] == [
        ("spatial", 6),
        ("spatial", 6),
        ("tokens", 6),
        ("tokens", 6),
        ("vector", 5),
    ]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("toy/split", ["toy/split#0", "toy/split#1"]),
        ("toy/split#1", ["toy/split#1"]),
        ("toy/split#0, toy/conv#0", ["toy/conv", "toy/split#0"]),  # a lone output is #0, too
        ("toy/split#1, toy/conv", ["toy/conv", "toy/split#1"]),
    ],
)
def test_a_pattern_may_name_one_of_several_outputs(pattern: str, expected: list[str]) -> None:
    assert found(pattern) == expected


def test_an_output_that_is_not_there_is_an_error() -> None:
    with pytest.raises(MapError, match="none returned an activation"):
        found("toy/split#2")


@pytest.mark.parametrize("sites", ["toy/cnov", "toy/cnov, toy/nrom", "conv"])
def test_a_pattern_that_fits_nothing_names_the_closest_names(sites: str) -> None:
    with pytest.raises(MapError, match=r"No part of the model fits.*closest names are .*toy/conv"):
        found(sites)


@pytest.mark.parametrize("sites", ["", " , "])
def test_no_pattern_at_all_is_an_error(sites: str) -> None:
    with pytest.raises(MapError, match="No part of the model fits"):
        found(sites)


def test_parts_that_do_not_run_are_named_as_the_reason() -> None:
    model = mixed()
    model.module.add_module("spare", nn.Linear(2, 2))
    batch = model.batches(prompts("source", 2), 2)[0]
    with pytest.raises(MapError, match="none returned an activation"):
        discover(model.components, "toy/spare", batch.run, batch.rows)


def test_tensors_that_do_not_hold_a_row_for_each_prompt_are_no_sites() -> None:
    model = mixed()
    batch = model.batches(prompts("source", 2), 2)[0]
    with pytest.raises(MapError, match="none returned an activation"):
        discover(model.components, "toy/conv", batch.run, rows=3)


def test_discovery_leaves_the_model_as_it_was_even_when_it_fails() -> None:
    model = mixed()

    def run() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        discover(model.components, MIXED_SITES, run, 2)
    assert swapped(model.module) == []


def test_compiled_submodules_keep_their_names() -> None:
    plain, compiled = tiny_llama(), tiny_llama()
    layers = compiled.module.model.layers
    for index in range(len(layers)):
        layers[index] = torch.compile(layers[index], backend="eager")
    compiled.module.model.norm = torch.compile(compiled.module.model.norm, backend="eager")
    assert any("_orig_mod" in name for name, _ in compiled.module.named_modules())
    assert sites_of(compiled, "all, */model.norm") == sites_of(plain, "all, */model.norm")


def test_a_model_compiled_as_a_whole_keeps_its_names() -> None:
    model = mixed()
    compiled: Any = torch.compile(model.module, backend="eager")
    batch = model.batches(prompts("source", 2), 2)[0]
    names = [site.key for site in discover([Component("toy", compiled, "toy")], MIXED_SITES, batch.run, batch.rows)]
    assert names == MIXED_IN_ORDER


def test_sites_of_several_components_come_in_the_order_in_which_they_run() -> None:
    model = mixed()
    other = nn.Linear(5, 5)
    components = [Component("last", other, "toy"), *model.components]
    batch = model.batches(prompts("source", 2), 2)[0]
    # The root of a component is no part of it, so its own output is no site.
    root = nn.Sequential(other)
    components[0] = Component("last", root, "toy")

    def run() -> None:
        root(batch.run())

    assert [site.key for site in discover(components, "last/*, toy/conv", run, 2)] == ["toy/conv", "last/0"]


def test_fitting_discovers_the_same_order() -> None:
    act_map = fit(mixed(), prompts("source", 3), prompts("target", 3), sites=MIXED_SITES)
    assert keys(act_map) == MIXED_IN_ORDER


# --- layouts


@pytest.mark.parametrize(
    ("shape", "layout"),
    [((2, 3), "vector"), ((2, 3, 4), "tokens"), ((2, 3, 4, 5), "spatial"), ((2,), None), ((1, 2, 3, 4, 5), None)],
)
def test_layout_follows_the_number_of_dimensions(shape: Sequence[int], layout: Layout | None) -> None:
    assert layout_of(torch.zeros(shape)) == layout


def test_whole_numbers_are_no_activations() -> None:
    assert layout_of(torch.zeros(2, 3, dtype=torch.long)) is None
