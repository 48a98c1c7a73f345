"""Maps that do not fit the model, or fit it with a warning."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import (
    Chain,
    TensorModel,
    chain,
    swapped,
)
from steering_helpers import (
    chain_map,
    fitted,
    one_site,
    output,
)
from torch import nn

from act_core import ActMap, MapError, steer
from act_core.errors import MapMismatchError
from act_core.maps import Card, Fingerprint, FitRecord
from act_core.models.transformers import TransformersModel
from act_core.sites import Site
from act_core.transport import Transport


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


# --- families


def fitted_on(architecture: str) -> ActMap:
    return replace(chain_map(), record=FitRecord(base={"toy": Fingerprint(architecture, "")}))


@pytest.mark.parametrize("architecture", ["llama", "mistral", "Flux"])
def test_other_family_is_one_warning(architecture: str) -> None:
    model = chain()
    (warning,) = steer(model.module, fitted_on(architecture)).warnings
    assert f"was fitted on {architecture} (toy), but this model is Chain" in warning


@pytest.mark.parametrize("architecture", ["Chain", "toy"])
def test_same_or_unknown_family_is_not_a_warning(architecture: str) -> None:
    model = chain()
    assert steer(model.module, fitted_on(architecture)).warnings == ()


def test_other_member_of_family_is_not_a_warning(llama: TransformersModel) -> None:
    act_map = fitted(llama, "norms")
    for kind in ("llama", "mistral", "LlamaForCausalLM"):
        record = replace(act_map.record, base={"language_model": Fingerprint(kind, "")})
        assert steer(llama.module, replace(act_map, record=record)).warnings == ()


def test_known_model_warns_of_map_of_unknown_family(llama: TransformersModel) -> None:
    act_map = fitted(llama, "norms")
    record = replace(act_map.record, base={"language_model": Fingerprint("starcoder", "")})
    (warning,) = steer(llama.module, replace(act_map, record=record)).warnings
    assert "was fitted on starcoder (language_model), but this model is llama" in warning


@pytest.mark.parametrize(
    ("base", "given", "library"),
    [
        ("Flux", "FluxTransformer2DModel", "ComfyUI"),
        ("FluxTransformer2DModel", "Flux", "diffusers"),
        ("SD3Transformer2DModel", "OpenAISignatureMMDITWrapper", "diffusers"),
    ],
)
def test_map_of_same_model_in_other_library_is_refused_and_library_is_named(
    base: str, given: str, library: str
) -> None:
    module = type(given, (Chain,), {})()
    act_map = replace(one_site("blocks.0.proj", 2, 0), record=FitRecord(base={"toy": Fingerprint(base, "")}))
    with pytest.raises(MapMismatchError, match=rf"fitted on the build of this model in {library} \({base}\)") as caught:
        steer(module, act_map)
    assert f"use it in {library}, or fit a map for this build" in str(caught.value)
