"""Maps of models whose names differ by library version, adapter or compilation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import Chain, randomise
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from act_core import ActMap, steer
from act_core.architectures import architecture_of
from act_core.fingerprints import has_weights, weights_hash
from act_core.interception import canonical_name, find_submodules
from act_core.records import Fingerprint, FitRecord
from act_core.sites import Site
from act_core.transport import Transport

SITES = ("layers.0", "layers.2")
PREFIXES = ("", "text_model", "base_model.model", "base_model.model.text_model", "_orig_mod.text_model")


class Wrapper(nn.Module):
    """Holds a module under a name, and runs it."""

    def __init__(self, name: str, module: nn.Module) -> None:
        super().__init__()
        self.name = name
        self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.get_submodule(self.name)(x)


def encoder(prefix: str = "", seed: int = 0) -> nn.Module:
    """A text encoder whose parts have a prefix."""
    root = randomise(Chain(), seed)
    for name in reversed(prefix.split(".") if prefix else []):
        root = Wrapper(name, root)
    return root


def encoder_map(prefix: str) -> ActMap:
    transport = Transport(torch.full((4,), 2.0), torch.ones(4))
    names = [f"{prefix}.{name}".lstrip(".").replace("_orig_mod.", "") for name in SITES]
    record = FitRecord(base={"clip_l": Fingerprint("toy", weights_hash(encoder(prefix)), "Chain")})
    return ActMap({Site("clip_l", name, None, "vector", 4): transport for name in names}, record)


@pytest.mark.parametrize("used_on", PREFIXES)
@pytest.mark.parametrize("fitted_on", PREFIXES)
def test_map_of_other_version_finds_its_sites(fitted_on: str, used_on: str) -> None:
    x, plain = torch.randn(2, 4), encoder()
    module = encoder(used_on)
    with steer(plain, encoder_map("")):
        expected = plain(x)
    with steer(module, encoder_map(fitted_on)) as steering:
        assert steering.warnings == ()
        assert torch.equal(module(x), expected)
    assert str(steering.coverage) == "2 of 2 sites fired"


def test_warning_of_other_weights_holds_inside_wrappers() -> None:
    module = encoder("_orig_mod.base_model.model", seed=1)
    (warning,) = steer(module, encoder_map("")).warnings
    assert "other weights" in warning


def test_transformers_clip_accepts_map_of_either_version() -> None:
    config = CLIPTextConfig(
        vocab_size=50,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=1,
        bos_token_id=None,
        eos_token_id=0,
    )
    model, ids = CLIPTextModel(config).eval(), torch.zeros(1, 4, dtype=torch.long)
    transport = Transport(torch.full((8,), 2.0), torch.ones(8))
    for prefix in ("", "text_model."):
        site = Site("clip_l", f"{prefix}encoder.layers.1.mlp.fc2", None, "tokens", 8)
        with torch.no_grad(), steer(model, ActMap({site: transport})) as steering:
            model(input_ids=ids)
        assert len(steering.coverage.fired) == 1


class LoraLinear(nn.Module):
    """Wraps a linear layer like `peft`."""

    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.lora_A = nn.ModuleDict({"default": nn.Linear(4, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, 4, bias=False)})
        self.lora_magnitude_vector = nn.ParameterDict({"default": nn.Parameter(torch.ones(4))})

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))


def with_lora() -> nn.Module:
    chain: Any = Chain()
    for index, layer in enumerate(chain.layers):
        chain.layers[index] = LoraLinear(layer)
    return Wrapper("base_model", Wrapper("model", chain))


def test_map_steers_output_of_adapted_layer() -> None:
    model, x = with_lora(), torch.randn(2, 4)
    adapted: Any = model.get_submodule("base_model.model.layers.2")
    before = model(x)
    with steer(model, encoder_map("").restrict("*/layers.2")):
        after = model(x)
    torch.testing.assert_close(after, (2 * before.atanh() + 1).tanh())
    assert "forward" not in adapted.__dict__


def test_map_of_adapted_layer_finds_plain_layer() -> None:
    plain = Chain()
    found = find_submodules(plain, ["base_model.model.layers.1.base_layer", "base_model.model.layers.9"])
    assert found == {"base_model.model.layers.1.base_layer": plain.layers[1]}


def test_weights_hash_ignores_adapter() -> None:
    assert weights_hash(with_lora()) == weights_hash(Chain())


@pytest.mark.parametrize("prefix", PREFIXES)
def test_weights_hash_ignores_wrapping(prefix: str) -> None:
    assert weights_hash(encoder(prefix)) == weights_hash(encoder())
    assert weights_hash(encoder(prefix, seed=1)) != weights_hash(encoder())


@pytest.mark.parametrize(
    "recorded",
    [
        "19eede4f441653079d95431fa8fba604dc17bf4758de3e1bcd84561454858085",
        "7570a691c375641252760be775686c156049cf2ef7f5a9410f8946871d46852d",
    ],
    ids=["without prefix", "with prefix"],
)
@pytest.mark.parametrize("prefix", PREFIXES)
def test_hash_that_version_0_1_recorded_is_recognised(prefix: str, recorded: str) -> None:
    """That version hashed the unmodified names, with or without ``text_model.``."""
    assert has_weights(encoder(prefix), recorded)
    assert not has_weights(encoder(prefix, seed=1), recorded)


def test_exact_name_is_preferred() -> None:
    root = nn.ModuleDict({"norm": nn.Identity(), "text_model": nn.ModuleDict({"norm": nn.Identity()})})
    text: Any = root["text_model"]
    found = find_submodules(root, ["norm", "text_model.norm", "base_model.model.norm"])
    assert found["norm"] is root["norm"]
    assert found["text_model.norm"] is text["norm"]
    assert found["base_model.model.norm"] is root["norm"]


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("", ""),
        ("text_model", "text_model"),
        ("vision.text_model.norm", "vision.text_model.norm"),
        ("_orig_mod.base_model.model.model.layers.0._orig_mod.mlp", "model.layers.0.mlp"),
        ("model.norm.original_module.weight", "model.norm.weight"),
    ],
)
def test_canonical_name(name: str, canonical: str) -> None:
    assert canonical_name(name) == canonical


def test_wrapped_model_keeps_its_family() -> None:
    compiled: Any = torch.compile(encoder(), backend="eager")
    assert architecture_of(compiled).name == architecture_of(encoder()).name
