"""The records of model families, on tiny models from the libraries."""

from __future__ import annotations

import importlib
import re
from collections import Counter
from typing import Any

import pytest
import torch
from language_models import BUILT_ALIKE, BY_RECORD, LANGUAGE, LAYERS, built, sites_of, tiny
from pipelines import PIPELINES
from torch import nn

from act_core.architectures import ARCHITECTURES, PRESETS, Architecture, architecture_of, family
from act_core.architectures.language import LLAMA
from act_core.interception import submodules
from act_core.models.diffusers import DiffusersModel
from act_core.settings import SITE_PRESETS
from act_core.sites import matches

COUNTS = {"norms": 2, "attention": 1, "mlp": 1, "blocks": 1}
# Hybrids, other norms, or a feed-forward that does not return the hidden states.
GENERIC = ("olmo_hybrid", "jamba", "falcon_h1", "vaultgemma", "afmoe", "llama4_text", "minimax", "lfm3", "opt", "bloom")


def layer_of(name: str) -> int:
    return int(next(part for part in name.split(".") if part.isdigit()))


@pytest.mark.parametrize("kind", BY_RECORD)
def test_presets_find_their_sites_in_every_layer(kind: str) -> None:
    model = tiny(kind)
    for preset, count in COUNTS.items():
        names = sites_of(model, preset)
        assert Counter(map(layer_of, names)) == dict.fromkeys(range(LAYERS), count), (preset, names)
        assert not [name for name in names if "q_norm" in name or "k_norm" in name]


@pytest.mark.parametrize("kind", BY_RECORD)
def test_all_is_in_order_of_layers_and_contains_auto(kind: str) -> None:
    every = sites_of(tiny(kind), "all")
    assert len(every) == sum(COUNTS.values()) * LAYERS
    assert list(map(layer_of, every)) == sorted(map(layer_of, every))
    auto = sites_of(tiny(kind), "auto")
    assert auto
    assert set(auto) <= set(every)


@pytest.mark.parametrize("kind", ["olmo2", "olmo3", "gemma2"])
def test_norms_of_models_with_post_norms_follow_attention_and_feed_forward(kind: str) -> None:
    leaves = {name.rpartition(".")[2] for name in sites_of(tiny(kind), "norms")}
    assert leaves == {"post_attention_layernorm", "post_feedforward_layernorm"}


def test_mlp_of_a_mixture_of_experts_returns_hidden_states() -> None:
    model = tiny("deepseek_v3")
    kinds = [type(model.module.model.layers[layer].mlp).__name__ for layer in range(LAYERS)]
    assert len(set(kinds)) == 2  # the first layer is dense
    assert sites_of(model, "mlp") == [f"model.layers.{layer}.mlp" for layer in range(LAYERS)]


@pytest.mark.parametrize(("kind", "expected"), BUILT_ALIKE.items())
def test_architecture_of_recognises_a_model_that_is_built_alike(kind: str, expected: Architecture) -> None:
    assert architecture_of(built(kind, "meta")) is expected


@pytest.mark.parametrize("kind", GENERIC)
def test_architecture_of_gives_no_presets_that_would_find_only_some_layers(kind: str) -> None:
    assert not architecture_of(built(kind, "meta")).presets


def test_architecture_of_a_compiled_model_is_that_of_the_model() -> None:
    module = built("qwen2", "meta")
    assert architecture_of(torch.compile(module, backend="eager")) is LLAMA  # pyright: ignore[reportArgumentType]


def test_architecture_of_matches_base_classes() -> None:
    class WanModel(nn.Module):
        pass

    class VaceWanModel(WanModel):
        pass

    assert architecture_of(VaceWanModel()).name == "WanModel"


def test_family_names_the_record_of_a_kind() -> None:
    assert (family("qwen3"), family("deepseek_v3"), family("toy")) == ("llama", "mixtral", "toy")


# --- the records themselves


def test_kinds_are_unique() -> None:
    kinds = [kind for architecture in ARCHITECTURES for kind in architecture.kinds]
    assert len(set(kinds)) == len(kinds)


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.name)
def test_record_is_consistent(architecture: Architecture) -> None:
    presets = set(architecture.presets)
    by_rule = not presets and architecture.shared
    assert by_rule or set(COUNTS) <= presets <= PRESETS
    assert by_rule or set(architecture.auto) <= presets
    assert set(architecture.foldable) <= presets
    assert {*COUNTS, "auto", "all"} == set(SITE_PRESETS)
    for record in (architecture.marker, architecture.exclusion):
        re.compile(record)


@pytest.mark.parametrize("ours", [a for a in ARCHITECTURES if a.built_by == "diffusers"], ids=lambda a: a.name)
def test_shared_names_are_the_same_in_both_directions(ours: Architecture) -> None:
    (theirs,) = (a for a in ARCHITECTURES if a.built_by == "ComfyUI" and a.shared == ours.shared)
    assert theirs is not ours
    for shared in ours.shared:
        assert len(set(shared.parts.values())) == len(shared.parts)


def linear_layers_with_bias(architecture: Architecture, module: nn.Module) -> dict[str, bool]:
    """Whether each site of the foldable presets has a weight and a bias."""
    patterns = [p.partition("#")[0] for preset in architecture.foldable for p in architecture.patterns(preset)]
    parts = {name: part for name, part in submodules(module).items() if matches(patterns, name)}
    vectors = {name: (getattr(part, "weight", None), getattr(part, "bias", None)) for name, part in parts.items()}
    return {name: None not in pair for name, pair in vectors.items()}


@pytest.mark.parametrize("architecture", [a for a in LANGUAGE if a.foldable], ids=lambda a: a.name)
def test_foldable_presets_of_language_models_have_biases(architecture: Architecture) -> None:
    found = linear_layers_with_bias(architecture, built(architecture.name, "meta"))
    assert len(found) == sum(COUNTS[preset] for preset in architecture.foldable) * LAYERS
    assert all(found.values()), found


@pytest.mark.parametrize("kind", PIPELINES)
def test_foldable_presets_of_pipelines_have_biases(kind: str) -> None:
    for component in DiffusersModel(PIPELINES[kind]()).components:
        found = linear_layers_with_bias(component.architecture, component.module)
        assert bool(found) == bool(component.architecture.foldable)
        assert all(found.values()), found


def test_attention_of_stable_diffusion_3_5_medium_includes_the_second() -> None:
    diffusers: Any = importlib.import_module("diffusers")
    module = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=32,
        pos_embed_max_size=8,
        dual_attention_layers=(0,),
    )
    patterns = architecture_of(module).patterns("attention")
    found = [name for name in submodules(module) if matches(patterns, name)]
    assert "transformer_blocks.0.attn2.to_out.0" in found
