"""Finding sites by patterns and a dry run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import MIXED_IN_ORDER, MIXED_SITES, TOY, TensorModel, keys, mixed, prompts, swapped, tiny_llama
from torch import nn

from act_core import MapError, fit
from act_core.architectures import Architecture
from act_core.architectures.language import LLAMA
from act_core.architectures.text_encoders import CLIP
from act_core.components import Component
from act_core.discovery import discover, patterns_for
from act_core.models.transformers import TransformersModel

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


@pytest.mark.parametrize("name", ["first", "alias"])
@pytest.mark.parametrize("apart", [False, True])
def test_module_with_two_names_is_found_by_either(name: str, apart: bool) -> None:
    class Aliased(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = self.alias = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.first(x)

    model = TensorModel(Aliased(), (6, 4))
    batch = model.batches(SOURCE[:2], 2)[0]
    sites = discover(model.components, f"toy/{name}", batch.run, batch.rows, apart=apart)
    assert [site.key for site in sites] == [f"toy/{name}"]
