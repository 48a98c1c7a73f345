"""The arguments of `steer`: strengths of any number type, modules and adapters."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from helpers import chain, same_transport
from steering_helpers import chain_map, fitted, logits, output, steered

from act_core import ActMap, MapError, steer
from act_core.models.transformers import TransformersModel
from act_core.settings import Strength
from act_core.steering import BatchRows, Steering

NUMBERS = [np.float32(0.5), np.float64(0.5), np.float16(0.5), torch.tensor(0.5), torch.tensor([0.5]), Fraction(1, 2)]


@pytest.mark.parametrize("number", [*NUMBERS, np.array(0.5)], ids=lambda number: type(number).__name__)
def test_strength_accepts_any_real_number(number: Any) -> None:
    model, act_map = chain(), chain_map()
    expected = steered(model, act_map, 0.5)
    with steer(model.module, act_map, number) as steering:
        assert torch.equal(output(model), expected)
        steering.strength = 0
        steering.strength = {"toy": number}
        assert torch.equal(output(model), expected)
        assert steering.strength == {"toy": 0.5}
    assert same_transport(act_map.scaled(number)["toy/layers.0"], act_map.scaled(0.5)["toy/layers.0"])
    transport, x = act_map["toy/layers.0"], torch.randn(2, 4)
    assert torch.equal(transport.apply(x, number), transport.apply(x, 0.5))
    assert type(transport.scaled(number).effect) is float


@pytest.mark.parametrize("one", [1, np.int64(1), np.uint8(1), torch.tensor(1)], ids=lambda one: type(one).__name__)
def test_strength_accepts_whole_numbers(one: Any) -> None:
    model, act_map = chain(), chain_map()
    with steer(model.module, act_map, one):
        assert torch.equal(output(model), steered(model, act_map, 1.0))


@pytest.mark.parametrize("strength", ["0.5", None, [0.5], torch.zeros(2), 1j, np.array([1, 2])])
def test_strength_of_other_type_is_refused(strength: Any) -> None:
    with pytest.raises(MapError, match="a number from -1000 to 1000"):
        steer(chain().module, chain_map(), strength)


@pytest.mark.parametrize("strength", [True, np.True_, torch.tensor(True)], ids=lambda value: type(value).__name__)
def test_strength_that_is_true_or_false_is_refused(strength: Any) -> None:
    with pytest.raises(MapError, match="a number from -1000 to 1000"):
        steer(chain().module, chain_map(), strength)


class Adapter:
    """A model that knows its own modules."""

    def __init__(self) -> None:
        self.model = chain()

    def steer(self, act_map: ActMap, strength: Strength = 1.0) -> Steering:
        return steer({"toy": self.model.module}, act_map, strength)


def test_steer_accepts_adapter() -> None:
    adapter, act_map = Adapter(), chain_map()
    with steer(adapter, act_map, 0.5) as steering:
        assert torch.equal(output(adapter.model), steered(chain(), act_map, 0.5))
    assert len(steering.coverage.fired) == 3


def test_steer_accepts_models_of_library(llama: TransformersModel) -> None:
    act_map = fitted(llama, "norms")
    with steer(llama.module, act_map):
        expected = logits(llama)
    with steer(llama, act_map):
        assert torch.equal(logits(llama), expected)


def test_steer_refuses_rows_for_adapter() -> None:
    with pytest.raises(MapError, match="Adapter chooses rows"):
        steer(Adapter(), chain_map(), rows={"toy": BatchRows()})


def test_steer_refuses_other_objects() -> None:
    with pytest.raises(MapError, match=r"steer takes a PyTorch module.*not str"):
        steer("model", chain_map())  # pyright: ignore[reportArgumentType]
