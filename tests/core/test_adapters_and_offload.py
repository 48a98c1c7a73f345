"""Language models under adapters (`peft`, imitated) and under accelerate's offload."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from helpers import GLAD, SAD, assert_identical, byte_tokenizer, randomise, swapped
from language_models import built, sites_of
from quantised_layers import QUANTISED
from torch import Tensor, nn

from act_core import fit, steer
from act_core.fingerprints import weights_hash
from act_core.interception import canonical_name
from act_core.models.transformers import TransformersModel

KINDS = ("qwen2", "phi")  # with a record and without
PRESETS = ("attention", "mlp", "norms", "blocks")


class LoraLayer(nn.Module):
    """What `peft` puts around a layer: its class has the name of the layer's."""

    def __init__(self, layer: Any, rank: int = 2) -> None:
        super().__init__()
        self.base_layer = layer
        down, up = nn.Linear(layer.in_features, rank, bias=False), nn.Linear(rank, layer.out_features, bias=False)
        nn.init.normal_(down.weight, std=0.1, generator=torch.Generator().manual_seed(0))
        nn.init.normal_(up.weight, std=0.1, generator=torch.Generator().manual_seed(1))
        self.lora_A, self.lora_B = nn.ModuleDict({"default": down}), nn.ModuleDict({"default": up})
        # Other adapters have vectors of their own.
        self.vera_lambda_b = nn.ParameterDict({"default": nn.Parameter(torch.ones(layer.out_features))})

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))


class LoraWithWeight(LoraLayer):
    """Also passes on the weight of its layer, as newer adapters do."""

    @property
    def weight(self) -> Tensor:
        layer: Any = self.base_layer
        return layer.qweight if hasattr(layer, "qweight") else layer.weight


class ModulesToSaveWrapper(nn.Module):
    """What `peft` puts around a module that is trained as a whole."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.original_module = module
        copied = type(module)(module.weight.shape, eps=1e-5)  # pyright: ignore
        copied.load_state_dict(module.state_dict())
        self.modules_to_save = nn.ModuleDict({"default": copied})

    def forward(self, x: Tensor) -> Tensor:
        return self.modules_to_save["default"](x)


class LoraModel(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Any) -> Any:
        return self.model(**inputs)


class PeftModel(nn.Module):
    """Passes on the attributes of the model inside, as `peft` does."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.base_model = LoraModel(model)
        self.config = model.config

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            base: Any = super().__getattr__("base_model")
            return getattr(base.model, name)

    def forward(self, **inputs: Any) -> Any:
        return self.base_model(**inputs)


def plain_model(kind: str) -> Any:
    return randomise(built(kind), scale=0.1)


def adapted(kind: str, wrapper: Any = LoraLayer, library: str | None = None, *, norms: bool = False) -> Any:
    module = plain_model(kind)
    for name, layer in list(module.named_modules()):
        parent, _, leaf = name.rpartition(".")
        if isinstance(layer, nn.Linear) and leaf != "lm_head":
            setattr(module.get_submodule(parent), leaf, wrapper(QUANTISED[library](layer) if library else layer))
        if norms and isinstance(layer, nn.LayerNorm) and ".layers." in name:
            setattr(module.get_submodule(parent), leaf, ModulesToSaveWrapper(layer))
    return PeftModel(module)


def model_of(module: Any, name: str = "tiny") -> TransformersModel:
    return TransformersModel(module, byte_tokenizer(), name)


def logits(model: TransformersModel) -> Tensor:
    with torch.inference_mode():
        return model.module(input_ids=torch.arange(1, 5)[None]).logits


@pytest.mark.parametrize("wrapper", [LoraLayer, LoraWithWeight])
@pytest.mark.parametrize("library", [None, "Nunchaku", "ComfyUI-GGUF"])
@pytest.mark.parametrize("kind", KINDS)
def test_adapted_layers_are_the_sites_of_the_plain_model(kind: str, library: str | None, wrapper: Any) -> None:
    plain, model = model_of(plain_model(kind)), model_of(adapted(kind, wrapper, library))
    for preset in PRESETS:
        found = sites_of(model, preset)
        assert [canonical_name(name) for name in found] == sites_of(plain, preset)
        assert not [name for name in found if "base_layer" in name or "lora" in name]


def test_norms_that_an_adapter_replaces_are_found_by_rule() -> None:
    plain, model = model_of(plain_model("phi")), model_of(adapted("phi", norms=True))
    assert [canonical_name(name) for name in sites_of(model, "norms")] == sites_of(plain, "norms")
    assert weights_hash(model.module) == weights_hash(plain.module)


@pytest.mark.parametrize("kind", KINDS)
def test_map_of_the_plain_model_steers_the_adapted_one_and_back(kind: str) -> None:
    plain, model = model_of(plain_model(kind)), model_of(adapted(kind))
    maps = [fit(each, SAD, GLAD, sites="attention, mlp") for each in (plain, model)]
    assert maps[0].record.base == maps[1].record.base
    for act_map in maps:
        for each in (plain, model):
            before = logits(each)
            with steer(each.module, act_map) as steering:
                assert not torch.equal(logits(each), before)
            assert steering.warnings == ()
            assert len(steering.coverage.fired) == len(act_map)
            assert torch.equal(logits(each), before)
            assert swapped(each.module) == []
    assert model.generate(["rain"], max_new_tokens=3, temperature=0)


# --- accelerate


def offloaded(module: Any, where: str, folder: Path) -> TransformersModel:
    if where == "memory":
        accelerate.cpu_offload(module, torch.device("cpu"))
    else:
        accelerate.disk_offload(module, folder, torch.device("cpu"))
    return model_of(module)


@pytest.mark.parametrize("where", ["memory", "disk"])
@pytest.mark.parametrize("kind", ["qwen2", "phi", "mixtral", "mamba"])
def test_offloaded_model_is_fitted_steered_and_restored(kind: str, where: str, tmp_path: Path) -> None:
    plain, model = model_of(plain_model(kind)), offloaded(plain_model(kind), where, tmp_path)
    presets = "attention" if kind == "mamba" else "attention, mlp"
    forwards = {name: part.__dict__.get("forward") for name, part in model.module.named_modules()}
    maps = [fit(each, SAD, GLAD, sites=presets, batch_size=2) for each in (plain, model)]
    assert_identical(*maps)
    assert maps[0].record.base == maps[1].record.base
    before = logits(model)
    with steer(model.module, maps[1]) as steering, steer(plain.module, maps[0]):
        assert torch.equal(logits(model), logits(plain))
        assert not torch.equal(logits(model), before)
    assert steering.warnings == ()
    assert torch.equal(logits(model), before)
    # The hooks are where they were, and the weights are offloaded again.
    assert forwards == {name: part.__dict__.get("forward") for name, part in model.module.named_modules()}
    assert all(weight.is_meta for weight in model.module.parameters())
