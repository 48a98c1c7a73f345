"""Quantised linear layers are sites like any other: nothing is dequantised, and no weight is copied."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest
import torch
from helpers import GLAD, SAD, byte_tokenizer, randomise, swapped
from language_models import built, sites_of
from quantised_layers import QUANTISED, Int8Tensor, Sealed, dense, quantise, sealed
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from act_core import ActMap, MapError, fit, steer
from act_core.discovery import layout_of
from act_core.fingerprints import fingerprint, has_weights, weights_hash
from act_core.layers import is_linear, output_channels
from act_core.models.transformers import TransformersModel
from act_core.sites import Site
from act_core.transport import Transport

# One kind with a record and one without.
KINDS = ("qwen2", "phi")


def language_model(kind: str, library: str | None = None) -> TransformersModel:
    module = randomise(built(kind), scale=0.1)
    quantise(module, library) if library else None
    return TransformersModel(module, byte_tokenizer(), kind)  # pyright: ignore[reportArgumentType]


def logits(model: TransformersModel) -> Tensor:
    with torch.inference_mode():
        return model.module(torch.arange(1, 4)[None]).logits


@pytest.fixture(params=QUANTISED)
def library(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("kind", KINDS)
def test_quantised_layers_are_the_sites_of_the_plain_model(kind: str, library: str) -> None:
    plain, quantised = language_model(kind), language_model(kind, library)
    for preset in ("attention", "mlp", "norms", "blocks", "*.layers.*_proj, *.dense, *.fc2"):
        if preset[0] != "*" or kind == "phi":
            assert sites_of(quantised, preset) == sites_of(plain, preset)


@pytest.mark.parametrize("kind", KINDS)
def test_map_of_a_quantised_model_is_that_of_the_same_values(kind: str, library: str) -> None:
    quantised, plain = language_model(kind, library), language_model(kind, library)
    dense(plain.module)
    one, other = (fit(model, SAD, GLAD, sites="attention, mlp") for model in (quantised, plain))
    assert list(one.transports) == list(other.transports)
    for key, transport in one.transports.items():
        # The products are summed in another order; slopes amplify that where a channel hardly varies.
        torch.testing.assert_close(transport.beta, other.transports[key].beta, rtol=1e-2, atol=1e-3)
    assert one.record.base == other.record.base
    before = logits(quantised)
    with steer(quantised.module, one) as steering, steer(plain.module, one):
        torch.testing.assert_close(logits(quantised), logits(plain), rtol=1e-3, atol=1e-3)
        assert not torch.allclose(logits(quantised), before, rtol=1e-2, atol=1e-2)
    assert steering.warnings == ()
    assert len(steering.coverage.fired) == len(one)
    assert torch.equal(logits(quantised), before)
    assert swapped(quantised.module) == []


# --- channels


def test_channels_are_declared_ones_not_packed_ones(library: str) -> None:
    layer = QUANTISED[library](nn.Linear(6, 8))
    assert (is_linear(layer), output_channels(layer)) == (True, 8)


@pytest.mark.parametrize(("channels", "fits"), [(32, True), (16, False), (36, False)])
def test_map_is_checked_against_declared_channels(library: str, channels: int, fits: bool) -> None:
    model = language_model("qwen2", library)
    site = Site("language_model", "model.layers.0.self_attn.o_proj", None, "tokens", channels)
    act_map = ActMap({site: Transport(torch.ones(channels), torch.ones(channels))})
    if fits:
        assert steer(model.module, act_map).coverage.missing == ()
        return
    with pytest.raises(MapError, match=rf"o_proj: {channels} in the map, 32 here"):
        steer(model.module, act_map)


def test_grid_of_tokens_keeps_its_layout(library: str) -> None:
    """Anima's int8 blocks pass tokens as ``[rows, time, height, width, channels]``."""
    layer = QUANTISED[library](nn.Linear(6, 8))
    for module in (layer, nn.Sequential(layer, nn.GELU())):
        assert layout_of(module, "blocks.0.mlp", torch.zeros(2, 1, 4, 4, 8)) == "tokens"


@pytest.mark.parametrize("named", ["LinearAttentionBlock", "AdaptiveBlock"])
def test_module_that_is_only_named_linear_is_not_a_layer(named: str) -> None:
    block = type(named, (nn.Sequential,), {})(nn.Conv2d(2, 2, 1))
    assert (is_linear(block), output_channels(block)) == (False, None)


# --- fingerprints


def test_fingerprint_is_that_of_the_plain_model(library: str) -> None:
    plain, quantised = language_model("phi"), language_model("phi", library)
    assert fingerprint(quantised.components[0]) == fingerprint(plain.components[0])
    assert has_weights(quantised.module, weights_hash(plain.module))


def test_sealed_weight_raises_if_it_is_read() -> None:
    """The check that the other tests rest on."""
    weight = sealed(torch.zeros(4, dtype=torch.uint8))
    assert isinstance(weight, Sealed)
    for read in (Tensor.float, Tensor.cpu, Tensor.clone, Tensor.tolist, lambda w: w + 1):
        with pytest.raises(AssertionError, match="a quantised weight was read"):
            read(weight)


def test_packed_norm_is_neither_read_nor_misread() -> None:
    """A GGUF file may keep a norm as bfloat16 in bytes: eight bytes are not eight channels."""
    norm = nn.LayerNorm(4, bias=False)
    plain = weights_hash(norm)
    norm.weight = sealed(torch.zeros(8, dtype=torch.uint8))
    assert weights_hash(norm) == ""
    assert has_weights(norm, plain) is None
    assert output_channels(norm) is None


# --- memory


class Allocations(TorchDispatchMode):
    """Counts the tensors of each size in bytes that operators make."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = Counter[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        given = {t.untyped_storage().data_ptr() for t in tree_flatten((args, kwargs))[0] if type(t) is Tensor}
        for tensor in tree_flatten(made)[0]:
            if type(tensor) is Tensor and tensor.untyped_storage().data_ptr() not in given:
                self.sizes[tensor.untyped_storage().nbytes()] += 1
        return made


def places(module: nn.Module) -> dict[str, tuple[int, int]]:
    """Identity and address of every parameter and buffer."""
    tensors = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    return {name: (id(tensor), tensor.data_ptr()) for name, tensor in tensors}


def packed_bytes(module: nn.Module) -> int:
    """Bytes of the smallest quantised weight of a site."""
    named = re.compile(r"\.(dense|fc2)\.q?weight$")
    weights = [w for name, w in module.named_parameters() if named.search(name) and w.ndim > 1]
    inner = [weight.int8 if isinstance(weight, Int8Tensor) else weight for weight in weights]
    return min(weight.numel() * weight.element_size() for weight in inner)


def test_steering_copies_no_weight(library: str) -> None:
    model = language_model("phi", library)
    act_map = fit(model, SAD, GLAD, sites="attention, mlp")
    before = places(model.module)
    logits(model)
    with Allocations() as plain:
        logits(model)
    with Allocations() as around:
        steering = steer(model.module, act_map, 0.5)
        with steering:
            with Allocations() as steered:
                logits(model)
            steering.strength = 0.7
            assert places(model.module) == before
    assert places(model.module) == before
    smallest = packed_bytes(model.module)
    # What steering adds to a run, and what it makes to begin and end: nothing as large as a weight.
    added = steered.sizes - plain.sizes
    assert added
    assert max(added) < smallest
    assert max(around.sizes - steered.sizes) < smallest
    assert plain.sizes[max(plain.sizes)] == steered.sizes[max(plain.sizes)]


def test_fit_copies_no_weight(library: str) -> None:
    model = language_model("phi", library)
    before = places(model.module)
    fit(model, SAD, GLAD, sites="attention, mlp", batch_size=2)
    assert places(model.module) == before
