"""A fit leaves weights, modes and patches of the model as they were, and runs in evaluation mode."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from helpers import Chain, OddError, TensorModel, assert_identical, chain, prompts, randomise, swapped
from torch import Tensor, nn

from act_core import fit
from act_core.models.transformers import TransformersModel

SOURCE, TARGET = prompts("source", 6), prompts("target", 6)
LAYERS = "toy/layers.*"


@pytest.mark.parametrize("fails", [False, True])
def test_forward_of_another_library_is_restored(fails: bool) -> None:
    model, calls = chain(), []
    layer = model.module.get_submodule("layers.1")
    original = layer.forward

    def theirs(x: Tensor) -> Tensor:
        calls.append(1)
        return original(x) * 2

    def progress(done: int, *_: object) -> None:
        if fails and done == 2:
            raise OddError

    layer.__dict__["forward"] = theirs
    with contextlib.suppress(OddError):
        fit(model, SOURCE, TARGET, sites=LAYERS, progress=progress)
    assert calls
    assert layer.__dict__["forward"] is theirs
    assert swapped(model.module) == ["layers.1"]


def test_fit_leaves_weights_and_gradients_unchanged(llama: TransformersModel) -> None:
    module = llama.module
    before = {name: value.clone() for name, value in module.state_dict().items()}
    fit(llama, SOURCE, TARGET, sites="all", batch_size=3)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in module.parameters())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


# --- training mode


class Dropping(nn.Module):
    """Two dropouts, one of them frozen in evaluation mode, as finetuning scripts do."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 4), nn.Dropout(0.5)])
        randomise(self)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.mark.parametrize("fails", [False, True])
def test_fit_runs_in_evaluation_mode_and_restores_each_submodule(fails: bool) -> None:
    def progress(done: int, *_: object) -> None:
        if fails and done == 2:
            raise OddError

    expected = fit(TensorModel(Dropping().eval(), (4,)), SOURCE, TARGET, sites="toy/layers.[02]")
    model = TensorModel(Dropping(), (4,))
    model.module.get_submodule("layers.3").eval()
    modes = {name: part.training for name, part in model.module.named_modules()}
    assert len(set(modes.values())) == 2
    with contextlib.suppress(OddError):
        act_map = fit(model, SOURCE, TARGET, sites="toy/layers.[02]", progress=progress)
        assert_identical(act_map, expected)
    assert {name: part.training for name, part in model.module.named_modules()} == modes


def test_fit_does_not_call_the_models_own_eval() -> None:
    """Some adapter layers merge their weights when `eval` is called."""

    class Merging(Chain):
        def train(self, mode: bool = True) -> Any:
            raise AssertionError("the mode was switched by a method that has side effects")

    assert len(fit(TensorModel(Merging(), (4,)), SOURCE, TARGET, sites=LAYERS)) == 3
