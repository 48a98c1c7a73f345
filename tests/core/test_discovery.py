"""Finding sites by patterns and a dry run, and the layouts of activations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import MIXED_IN_ORDER, MIXED_SITES, TOY, TensorModel, keys, mixed, prompts, randomise, swapped, tiny_llama
from torch import Tensor, nn

from act_core import MapError, fit, steer
from act_core.architectures import Architecture
from act_core.architectures.language import LLAMA
from act_core.architectures.text_encoders import CLIP
from act_core.components import Component
from act_core.discovery import discover, layout_of, patterns_for
from act_core.models.transformers import TransformersModel
from act_core.sites import Layout

SOURCE, TARGET = prompts("source", 4), prompts("target", 4)


def found(sites: str, model: TensorModel | None = None) -> list[str]:
    model = model or mixed()
    batch = model.batches(SOURCE[:2], 2)[0]
    return [site.key for site in discover(model.components, sites, batch.run, batch.rows)]


def sites_of(model: TransformersModel, sites: str) -> list[str]:
    batch = model.batches(["rain", "sunny"], 2)[0]
    with torch.inference_mode():
        return [site.name for site in discover(model.components, sites, batch.run, batch.rows)]


# --- patterns


def test_presets_and_patterns_mix(llama: TransformersModel) -> None:
    assert sites_of(llama, " attention , */model.norm ,, ") == [
        *(f"model.layers.{i}.self_attn.o_proj" for i in range(3)),
        "model.norm",
    ]


def test_preset_patterns_stay_within_their_component() -> None:
    component = Component("text", nn.Linear(1, 1), LLAMA)
    assert all(pattern.startswith("text/") for pattern in patterns_for(component, "all"))


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("toy/split", ["toy/split#0", "toy/split#1"]),
        ("toy/split#1", ["toy/split#1"]),
        ("toy/split#0, toy/conv#0", ["toy/conv", "toy/split#0"]),  # a lone output is #0, too
        ("toy/split#1, toy/conv", ["toy/conv", "toy/split#1"]),
    ],
)
def test_pattern_may_name_one_of_several_outputs(pattern: str, expected: list[str]) -> None:
    assert found(pattern) == expected


@pytest.mark.parametrize("sites", ["toy/cnov", "toy/cnov, toy/nrom", "conv", "toy/conv, toy/cnov"])
def test_pattern_that_matches_nothing_names_the_closest_names(sites: str) -> None:
    with pytest.raises(MapError, match=r"No part of the model matches the sites.*closest names are .*toy/conv"):
        found(sites)


@pytest.mark.parametrize("sites", ["", " , "])
def test_no_pattern_at_all_is_an_error(sites: str) -> None:
    with pytest.raises(MapError, match="No part of the model matches the sites"):
        found(sites)


def test_second_pattern_that_matches_nothing_is_refused(llama: TransformersModel) -> None:
    with pytest.raises(MapError, match=r"matches the sites '\*mlpp\*'; the closest names are"):
        sites_of(llama, "attention, *mlpp*")


def two_components() -> tuple[list[Component], Callable[[], object]]:
    model, other = mixed(), nn.Sequential(nn.Linear(5, 5))
    batch = model.batches(SOURCE[:2], 2)[0]

    def run() -> None:
        other(batch.run())

    return [Component("last", other, TOY), *model.components], run


def test_pattern_may_match_in_one_of_several_components() -> None:
    components, run = two_components()
    # The root of a component is not a part of it, so its own output is not a site.
    assert [site.key for site in discover(components, "last/*, toy/conv", run, 2)] == ["toy/conv", "last/0"]
    with pytest.raises(MapError, match=r"matches the sites 'last/1'"):
        discover(components, "last/1, toy/conv", run, 2)


def test_ignored_submodules_are_not_sites(llama: TransformersModel) -> None:
    (component,) = llama.components
    (batch,) = llama.batches(["rain", "sunny"], 2)
    unused = replace(component, ignored=("model.layers.2", "model.layers.2.*"))
    for part in (unused, replace(unused, architecture=Architecture("by rule"))):
        with torch.inference_mode():
            found = [site.name for site in discover([part], "attention", batch.run, 2)]
        assert found == [f"model.layers.{number}.self_attn.o_proj" for number in range(2)]
    with pytest.raises(MapError, match="No part of the model matches the sites"):
        discover([unused], "*/model.layers.2.mlp", batch.run, 2)


def test_preset_that_one_of_several_components_has_is_enough(llama: TransformersModel) -> None:
    encoder = nn.ModuleDict({"text_projection": nn.Linear(32, 32)})
    components = [*llama.components, Component("clip_l", encoder, CLIP)]
    batch = llama.batches(["rain", "sunny"], 2)[0]

    def run() -> None:
        batch.run()
        encoder["text_projection"](torch.ones(2, 32))

    assert [site.key for site in discover(components, "output", run, 2)] == ["clip_l/text_projection"]
    with pytest.raises(MapError, match="This model has no sites of the preset 'output'"):
        discover(llama.components, "output", run, 2)


@pytest.mark.parametrize("sites", ["toy/split#2", "toy/split#2, toy/conv"])
def test_pattern_without_an_activation_is_refused(sites: str) -> None:
    with pytest.raises(MapError, match=r"'toy/split#2' returns activations"):
        found(sites)


# --- the dry run


def test_sites_follow_execution_order_not_registration() -> None:
    assert found(MIXED_SITES) == MIXED_IN_ORDER
    registered = [f"toy/{name}" for name, _ in mixed().module.named_children()]
    assert registered != list(dict.fromkeys(key.partition("#")[0] for key in MIXED_IN_ORDER))


def test_layout_and_channels_are_read_from_the_activation() -> None:
    model = mixed()
    batch = model.batches(SOURCE[:2], 2)[0]
    sites = discover(model.components, MIXED_SITES, batch.run, batch.rows)
    assert [(site.layout, site.channels) for site in sites] == [
        ("spatial", 6),
        ("spatial", 6),
        ("tokens", 6),
        ("tokens", 6),
        ("vector", 5),
    ]


def test_tensors_with_another_number_of_rows_are_not_sites() -> None:
    model = mixed()
    batch = model.batches(SOURCE[:2], 2)[0]
    with pytest.raises(MapError, match="returns activations, one row for each prompt"):
        discover(model.components, "toy/conv", batch.run, rows=3)


def test_discovery_restores_the_model_when_it_fails() -> None:
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


def test_model_compiled_as_a_whole_keeps_its_names() -> None:
    model = mixed()
    compiled: Any = torch.compile(model.module, backend="eager")
    batch = model.batches(SOURCE[:2], 2)[0]
    names = [site.key for site in discover([Component("toy", compiled, TOY)], MIXED_SITES, batch.run, batch.rows)]
    assert names == MIXED_IN_ORDER


def test_fit_keeps_the_order_of_discovery() -> None:
    assert keys(fit(mixed(), SOURCE, TARGET, sites=MIXED_SITES)) == MIXED_IN_ORDER


# --- layouts


class LayerNorm2d(nn.LayerNorm):
    """Normalises the channels of a feature map, as libraries define it themselves."""


class RMSNormWithoutWeight(nn.Module):
    pass


LAYOUTS: dict[str, tuple[nn.Module, str, tuple[int, ...], Layout | None]] = {
    "vector": (nn.Linear(1, 3), "proj", (2, 3), "vector"),
    "tokens of a linear layer": (nn.Linear(1, 4), "proj", (2, 3, 4), "tokens"),
    "tokens of an activation function": (nn.GELU(), "act", (2, 3, 4), "tokens"),
    "signal of a convolution": (nn.Conv1d(1, 3, 1), "conv", (2, 3, 4), "spatial"),
    "signal of a container of convolutions": (
        nn.Sequential(nn.Conv1d(1, 3, 1), nn.ReLU()),
        "net",
        (2, 3, 4),
        "spatial",
    ),
    "tokens of a block with a convolution": (
        nn.Sequential(nn.Conv1d(1, 3, 1), nn.Linear(4, 4)),
        "m",
        (2, 3, 4),
        "tokens",
    ),
    "signal of a group norm": (nn.GroupNorm(1, 3), "norm", (2, 3, 4), "spatial"),
    "picture of a convolution": (nn.Conv2d(1, 3, 1), "conv", (2, 3, 4, 5), "spatial"),
    "picture of a group norm": (nn.GroupNorm(1, 3), "norm", (2, 3, 4, 5), "spatial"),
    "picture of a container": (
        nn.Sequential(nn.Conv2d(1, 3, 1), nn.Linear(5, 5)),
        "resnets.0",
        (2, 3, 4, 5),
        "spatial",
    ),
    "picture of a custom norm": (LayerNorm2d(3), "norm", (2, 3, 4, 5), "spatial"),
    "picture without a channel axis": (nn.SiLU(), "act", (2, 3, 4, 5), None),
    "video of a convolution": (nn.Conv3d(1, 3, 1), "conv", (2, 3, 1, 4, 5), "spatial"),
    "grid of tokens": (nn.LayerNorm(5), "blocks.0.norm", (2, 3, 4, 5), "tokens"),
    "video of tokens, channels last": (nn.Linear(1, 6), "blocks.0.mlp.layer2", (2, 3, 4, 5, 6), "tokens"),
    "video of tokens, norm without weight": (RMSNormWithoutWeight(), "blocks.0.norm", (2, 3, 4, 5, 6), "tokens"),
    "attention block over a grid": (nn.Sequential(nn.Linear(1, 5)), "blocks.0.attn", (2, 3, 4, 5), "tokens"),
    "heads": (nn.RMSNorm(5), "layers.0.self_attn.q_norm", (2, 3, 4, 5), None),
    "heads of Attention": (nn.RMSNorm(5), "blocks.0.SelfAttention.k_norm", (2, 3, 4, 5), None),
    "queries before they are split into heads": (nn.RMSNorm(4), "layers.0.self_attn.q_norm", (2, 3, 4), "tokens"),
    "one number per prompt": (nn.Linear(1, 1), "scale", (2,), None),
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_layout_of_an_output_follows_the_module_that_made_it(case: str) -> None:
    module, name, shape, layout = LAYOUTS[case]
    assert layout_of(module, name, torch.zeros(shape)) == layout


def test_layout_of_whole_numbers_is_none() -> None:
    assert layout_of(nn.Linear(1, 3), "proj", torch.zeros(2, 3, dtype=torch.long)) is None


class Heads(nn.Module):
    """An attention that normalises queries and keys with heads before channels, as most newer models do."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.q_norm, self.k_norm = nn.RMSNorm(4), nn.RMSNorm(4)
        self.o_proj = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (2, 4)) for part in self.qkv(x).chunk(3, -1))
        q, k = self.q_norm(q).transpose(1, 2), self.k_norm(k).transpose(1, 2)
        attended = nn.functional.scaled_dot_product_attention(q, k, v.transpose(1, 2))
        return self.o_proj(attended.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.attn = Heads()
        randomise(self)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attn(self.norm(x))


class Grid(nn.Module):
    """Blocks over ``[rows, time, height, width, channels]``, as Anima's and Cosmos Predict 2's."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(6), nn.Linear(6, 6)
        randomise(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x))


class Signal(nn.Module):
    """Convolutions over ``[rows, channels, time]``, as in audio models."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv1d(3, 5, 3, padding=1), nn.GroupNorm(1, 5))
        randomise(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


@pytest.mark.parametrize(
    ("module", "shape", "sites", "expected"),
    [
        (Block, (3, 8), "*norm*", {"toy/norm": ("tokens", 8)}),
        (Grid, (1, 2, 3, 6), "*", {"toy/norm": ("tokens", 6), "toy/linear": ("tokens", 6)}),
        (Signal, (3, 7), "*block*", {f"toy/block{part}": ("spatial", 5) for part in (".0", ".1", "")}),
    ],
)
def test_fit_and_steer_agree_on_layouts(
    module: Any, shape: tuple[int, ...], sites: str, expected: dict[str, tuple[Layout, int]]
) -> None:
    model = TensorModel(module(), shape)
    act_map = fit(model, SOURCE, TARGET, sites=sites)
    assert {site.key: (site.layout, site.channels) for site in act_map.transports} == expected
    rows = model.rows(SOURCE)
    with torch.no_grad():
        before = model.module(rows)
        with steer(model.module, act_map) as steering:
            after = model.module(rows)
    assert len(steering.coverage.fired) == len(expected)
    assert not torch.equal(before, after)
