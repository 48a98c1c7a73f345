"""Maps that do not fit the model, or fit it with a warning."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import (
    Chain,
    TensorModel,
    chain,
    mixed,
    swapped,
)
from steering_helpers import (
    chain_map,
    fitted,
    one_site,
    output,
    steered,
)
from torch import nn

from act_core import ActMap, MapError, load_map, steer
from act_core.architectures import Architecture
from act_core.components import Component
from act_core.errors import MapMismatchError
from act_core.fingerprints import fingerprint
from act_core.models.transformers import TransformersModel
from act_core.records import Card, Fingerprint, FitRecord
from act_core.sites import Site
from act_core.transport import Transport

DATA = Path(__file__).parents[1] / "data" / "format_1"


def test_model_without_any_site_is_refused_and_both_are_named(llama: TransformersModel) -> None:
    act_map = fitted(llama, "norms")
    with pytest.raises(MapError, match=r"llama \(language_model\).*none of its 6 sites.*Chain"):
        steer(chain().module, act_map)


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("linear", nn.Linear(3, 7)),
        ("conv", nn.Conv2d(3, 7, 1)),
        ("group norm", nn.GroupNorm(1, 7)),
        ("layer norm", nn.LayerNorm(7)),
    ],
)
def test_other_channels_are_refused_and_both_are_named(name: str, module: nn.Module) -> None:
    root = nn.ModuleDict({"layers": module})
    with pytest.raises(
        MapError, match=r"of its 1 sites 1 have other channels \(toy/layers: 4 in the map, 7 here\) and 0 are missing"
    ) as caught:
        steer(root, one_site("layers", 1, 1))
    assert name
    assert swapped(root) == []
    assert "fitted on" in str(caught.value)


def test_other_channels_found_at_run_time_are_refused() -> None:
    model = TensorModel(nn.Sequential(nn.Identity()), (7,))
    with (
        pytest.raises(MapMismatchError, match=r"toy/0 .*\[6, 7\].*4 channels"),
        steer(model.module, one_site("0", 1, 1)),
    ):
        output(model)
    assert swapped(model.module) == []


def test_absent_output_is_refused() -> None:
    transport = Transport(torch.ones(4), torch.ones(4))
    act_map = ActMap({Site("toy", "layers.0", 1, "vector", 4): transport})
    model = chain()
    with (
        pytest.raises(MapMismatchError, match=r"toy/layers\.0#1 does not return the activation"),
        steer(model.module, act_map),
    ):
        output(model)
    assert swapped(model.module) == []


def test_error_names_title_of_map() -> None:
    act_map = ActMap(chain_map().transports, FitRecord(), Card(title="calm"))
    with pytest.raises(MapError, match="The map 'calm' was fitted on another model"):
        steer(nn.Linear(1, 1), act_map)


def test_other_weights_are_a_warning(llama: TransformersModel) -> None:
    act_map = fitted(llama, "norms")
    assert steer(llama.module, act_map).warnings == ()
    assert steer(llama.module.bfloat16(), act_map).warnings == ()
    llama.module.model.norm.weight.data += 0.5
    (warning,) = steer(llama.module, act_map).warnings
    assert "other weights of llama (language_model)" in warning
    (warning,) = steer(llama.module.half(), act_map).warnings
    assert "or on these in another precision" in warning


def test_missing_sites_are_a_warning() -> None:
    (warning,) = steer(chain(layers=2).module, chain_map()).warnings
    assert "has 3 sites, of which 1 are not in this model (first: toy/layers.2)" in warning


def test_weights_of_component_without_sites_do_not_matter() -> None:
    first, second = chain(), chain()
    both = chain_map().joined(
        ActMap({Site("other", "gone", None, "vector", 4): Transport(torch.ones(4), torch.zeros(4))}, FitRecord())
    )
    other = replace(both, record=replace(both.record, base={"other": Fingerprint("toy", "another")}))
    warnings = steer({"toy": first.module, "other": second.module}, other).warnings
    assert not any("other weights" in warning for warning in warnings)


def test_compiled_model_is_the_same_model(llama: TransformersModel) -> None:
    act_map = fitted(llama, "norms")
    compiled: Any = torch.compile(llama.module, backend="eager")
    steering = steer(compiled, act_map)
    assert steering.warnings == ()
    assert steering.coverage.missing == ()


# --- architectures


class Tuned(Chain):
    """A class that is built on another."""


def fitted_on(architecture: str, model_class: str = "", weights: str = "") -> ActMap:
    return replace(chain_map(), record=FitRecord(base={"toy": Fingerprint(architecture, weights, model_class)}))


# A known one, another name of it, the class of another model, and a name that an adapter chose.
OTHERS = [("llama", ""), ("mistral", ""), ("Flux", "Flux"), ("Mixed", "Mixed"), ("Mixed", ""), ("toy", "Mixed")]


@pytest.mark.parametrize(("architecture", "model_class"), OTHERS)
def test_other_architecture_is_refused_and_both_are_named(architecture: str, model_class: str) -> None:
    model = chain()
    act_map = replace(fitted_on(architecture, model_class), card=Card(title="calm"))
    with pytest.raises(
        MapMismatchError, match=rf"'calm' was fitted on {architecture} \(toy\).*model is Chain"
    ) as caught:
        steer(model.module, act_map)
    assert "set allow_other_architecture on Load ACT Map" in str(caught.value)
    assert swapped(model.module) == []


@pytest.mark.parametrize(("architecture", "model_class"), OTHERS)
def test_permitted_architecture_is_steered_with_one_warning(architecture: str, model_class: str) -> None:
    model, act_map = chain(), fitted_on(architecture, model_class)
    expected = steered(model, replace(act_map, record=FitRecord()))
    with steer(model.module, act_map.for_any_architecture()) as steering:
        assert torch.equal(output(model), expected)
    (warning,) = steering.warnings
    assert f"was fitted on {architecture} (toy), but this model is Chain" in warning


@pytest.mark.parametrize(("architecture", "model_class"), [("Chain", ""), ("Chain", "Chain"), ("toy", "Chain")])
def test_same_class_is_not_a_warning(architecture: str, model_class: str) -> None:
    steering = steer(chain().module, fitted_on(architecture, model_class))
    assert (steering.warnings, steering.notes) == ((), ())


@pytest.mark.parametrize("architecture", ["Chain", "toy"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_class_that_is_built_on_the_fitted_one_is_a_note(architecture: str, wrapped: bool) -> None:
    module: Any = Tuned()
    if wrapped:
        module = torch.compile(module, backend="eager")
    steering = steer(module, fitted_on(architecture, "Chain"))
    assert steering.warnings == ()
    (note,) = steering.notes
    assert "fitted on Chain (toy); this model is Tuned, which is built on it, so the map applies" in note


@pytest.mark.parametrize("architecture", ["Tuned", "toy"])
def test_class_that_the_fitted_one_is_built_on_is_a_note(architecture: str) -> None:
    record = FitRecord(base={"toy": fingerprint(Component("toy", Tuned(), Architecture(architecture)))})
    model = Chain()
    steering = steer(model, replace(chain_map(), record=record))
    assert steering.warnings == ()
    (note,) = steering.notes
    assert "fitted on Tuned (toy), which is built on the class of this model, Chain, so the map applies" in note


def test_class_whose_bases_are_unknown_is_refused_on_its_base() -> None:
    with pytest.raises(MapMismatchError, match="fitted on Tuned"):
        steer(chain().module, fitted_on("Tuned", "Tuned"))


@pytest.mark.parametrize("shared", ["Module", "object"])
def test_class_that_all_models_share_does_not_fit(shared: str) -> None:
    for architecture, model_class in ((shared, ""), ("toy", shared)):
        with pytest.raises(MapMismatchError, match=f"fitted on {architecture}"):
            steer(chain().module, fitted_on(architecture, model_class))


def test_fit_by_adapter_serves_finetunes_of_its_model() -> None:
    """An adapter may name its architecture as it likes, so the class of its model is compared."""
    model, act_map = chain(), chain_map()
    assert act_map.record.base["toy"].architecture == "toy"
    model.module.layers[0].bias.data += 1  # pyright: ignore[reportAttributeAccessIssue, reportIndexIssue, reportArgumentType]
    (warning,) = steer(model.module, act_map).warnings
    assert "other weights of toy (toy)" in warning


def test_map_without_class_serves_the_weights_that_it_was_fitted_on() -> None:
    """Maps of version 0.1 do not say what class the model of an adapter has."""
    weights = chain_map().record.base["toy"].weights
    model = chain()
    assert steer(model.module, fitted_on("toy", "", weights)).warnings == ()
    model.module.layers[0].bias.data += 1  # pyright: ignore[reportAttributeAccessIssue, reportIndexIssue, reportArgumentType]
    with pytest.raises(MapMismatchError, match="fitted on toy"):
        steer(model.module, fitted_on("toy", "", weights))


def test_weights_that_cannot_be_read_do_not_show_that_models_are_the_same() -> None:
    with pytest.raises(MapMismatchError, match="fitted on toy"):
        steer(chain().module.to("meta"), fitted_on("toy", "", "another"))


@pytest.mark.parametrize("sample", ["edited", "layouts"])
def test_map_of_version_0_1_steers_its_model(sample: str) -> None:
    act_map = load_map(DATA / f"{sample}.safetensors")
    steering = steer(mixed().module, act_map)
    assert (steering.warnings, steering.coverage.missing) == ((), ())


def test_component_without_sites_is_not_compared() -> None:
    act_map = one_site("layers.0", 2, 0).joined(
        ActMap({Site("other", "gone", None, "vector", 4): Transport(torch.ones(4), torch.zeros(4))})
    )
    record = FitRecord(base={"other": Fingerprint("Flux", ""), "toy": Fingerprint("Chain", "")})
    steering = steer({"toy": chain().module, "other": chain().module}, replace(act_map, record=record))
    assert not any("Flux" in warning for warning in steering.warnings)


def test_permission_does_not_excuse_other_channels() -> None:
    root = nn.ModuleDict({"layers": nn.Linear(3, 7)})
    with pytest.raises(MapMismatchError, match="1 have other channels"):
        steer(root, one_site("layers", 1, 1).for_any_architecture())


def test_other_member_of_family_is_not_a_warning(llama: TransformersModel) -> None:
    act_map = fitted(llama, "norms")
    for kind in ("llama", "mistral", "LlamaForCausalLM"):
        for model_class in ("", "MistralForCausalLM"):
            record = replace(act_map.record, base={"language_model": Fingerprint(kind, "", model_class)})
            steering = steer(llama.module, replace(act_map, record=record))
            assert (steering.warnings, steering.notes) == ((), ())


def test_known_model_refuses_map_of_unknown_family(llama: TransformersModel) -> None:
    act_map = fitted(llama, "norms")
    record = replace(act_map.record, base={"language_model": Fingerprint("starcoder", "")})
    with pytest.raises(MapMismatchError, match=r"fitted on starcoder \(language_model\), but this model is llama"):
        llama.steer(replace(act_map, record=record))


@pytest.mark.parametrize(
    ("base", "given", "libraries"),
    [
        ("Flux", "FluxTransformer2DModel", ("diffusers", "ComfyUI")),
        ("FluxTransformer2DModel", "Flux", ("ComfyUI", "diffusers")),
        ("SD3Transformer2DModel", "OpenAISignatureMMDITWrapper", ("ComfyUI", "diffusers")),
    ],
)
def test_map_of_which_nothing_carries_over_is_refused_and_libraries_are_named(
    base: str, given: str, libraries: tuple[str, str]
) -> None:
    module = type(given, (Chain,), {})()
    act_map = replace(one_site("blocks.0.proj", 2, 0), record=FitRecord(base={"toy": Fingerprint(base, "")}))
    with pytest.raises(
        MapMismatchError, match=rf"fitted on {base} \(toy\) and none of its 1 sites carries over"
    ) as caught:
        steer(module, act_map)
    assert "because {} does not compute the same tensors as {}".format(*libraries) in str(caught.value)
