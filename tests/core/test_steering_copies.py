"""Copying and saving a model while maps steer it."""

from __future__ import annotations

import copy
import functools
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import (
    TensorModel,
    chain,
    swapped,
)
from steering_helpers import (
    chain_map,
    one_site,
    output,
    steered,
)
from torch import Tensor, nn

from act_core import steer


def saved_and_loaded(module: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("make_copy", [copy.deepcopy, saved_and_loaded])
def test_copy_made_inside_block_is_not_steered(make_copy: Callable[[nn.Module], nn.Module]) -> None:
    model, plain = chain(), output(chain())
    with steer(model.module, chain_map()), steer(model.module, chain_map(), 0.5):
        steered_output = output(model)
        twin = TensorModel(make_copy(model.module), model.shape)
        assert swapped(twin.module) == []
        assert torch.equal(output(twin), plain)
        assert torch.equal(output(model), steered_output)
    assert torch.equal(output(twin), plain)
    assert model.module.__dict__.keys() == chain().module.__dict__.keys()
    layer, fresh = (m.module.get_submodule("layers.0") for m in (model, chain()))
    assert layer.__dict__.keys() == fresh.__dict__.keys()


def test_copy_made_inside_block_can_be_steered() -> None:
    model, act_map = chain(), chain_map()
    with steer(model.module, act_map, 0.3):
        twin = TensorModel(copy.deepcopy(model.module), model.shape)
        output(model)
    with steer(twin.module, act_map, 0.7):
        assert torch.equal(output(twin), steered(chain(), act_map, 0.7))
    assert torch.equal(output(twin), output(chain()))


def test_shallow_copy_made_inside_block_is_not_steered() -> None:
    model = chain()
    layer, x = model.module.get_submodule("layers.0"), torch.randn(2, 4)
    plain = layer(x)
    with steer(model.module, chain_map()):
        assert not torch.equal(layer(x), plain)
        twin = copy.copy(layer)
        assert torch.equal(twin(x), plain)
    assert "forward" not in twin.__dict__


class Doubling(nn.Linear):
    """Has its own forward in each instance, and copies its attributes itself."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels)
        self.__dict__["forward"] = functools.partial(Doubling.doubled, self)

    def doubled(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class SelfCopying(nn.Linear):
    def __deepcopy__(self, memo: dict[int, Any]) -> SelfCopying:
        twin = SelfCopying.__new__(SelfCopying)
        memo[id(self)] = twin
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin


@pytest.mark.parametrize("kind", [Doubling, SelfCopying])
@pytest.mark.parametrize("make_copy", [copy.deepcopy, saved_and_loaded])
def test_copy_of_unusual_module_is_not_steered(
    kind: Callable[..., nn.Module], make_copy: Callable[[nn.Module], nn.Module]
) -> None:
    module, x = nn.Sequential(kind(4) if kind is Doubling else kind(4, 4)), torch.randn(2, 4)
    plain = module(x)
    with steer(module, one_site("0", 1, 5)):
        assert not torch.equal(module(x), plain)
        twin = make_copy(module)
        assert torch.equal(twin(x), plain)
        nn.init.zeros_(twin[0].weight)  # pyright: ignore
        nn.init.zeros_(twin[0].bias)  # pyright: ignore
        assert torch.equal(twin(x), torch.zeros(2, 4))  # its own weights are used
    assert torch.equal(module(x), plain)
    assert torch.equal(twin(x), torch.zeros(2, 4))
