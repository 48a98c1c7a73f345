"""Pooling activations, and the extremes of single values."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers import TensorModel, assert_identical, prompts
from torch import nn

from act_core import ActMap, fit
from act_core.fitting.memory import BatchPlan, SampleMemory
from act_core.fitting.pooling import extremes, pool

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", DTYPES)
def test_pool_ignores_padding(dtype: torch.dtype) -> None:
    short, long = torch.randn(3, 4).to(dtype), torch.randn(5, 4).to(dtype)
    expected = torch.stack([short.double().mean(0), long.double().mean(0)])
    for left in (False, True):
        x, mask = torch.full((2, 5, 4), math.nan, dtype=dtype), torch.zeros(2, 5, dtype=torch.bool)
        span = slice(2, None) if left else slice(3)
        x[0, span], mask[0, span] = short, True
        x[1], mask[1] = long, True
        pooled = pool(x, "tokens", mask)
        assert pooled.dtype == torch.float32
        assert torch.allclose(pooled.double(), expected, atol=1e-6)  # summed in float32


def test_pool_averages_tokens_or_positions() -> None:
    x = torch.randn(2, 3, 4, 5)
    expected = x.double().numpy().mean((2, 3))
    assert pool(x, "spatial", None).numpy() == pytest.approx(expected, abs=1e-6)  # float32
    tokens = x.flatten(2).transpose(1, 2)
    assert pool(tokens, "tokens", None).numpy() == pytest.approx(expected, abs=1e-6)
    assert torch.equal(pool(x[:, :, 0, 0], "vector", None), x[:, :, 0, 0])


def test_pool_averages_half_precision_in_float32() -> None:
    x = torch.ones(1, 5000, 1, dtype=torch.float16)  # a sum in float16 would stop at 2048
    x[0, 0] = 2
    assert float(pool(x, "tokens", None)) == pytest.approx(5001 / 5000, rel=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_extremes_ignore_padding(dtype: torch.dtype) -> None:
    x = torch.tensor([[[1.0, -5.0], [2.0, 3.0], [99.0, -99.0]], [[0.0, 1.0], [1.0, 1.0], [7.0, 2.0]]]).to(dtype)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    low, high = extremes(x, "tokens", mask)
    assert (low.tolist(), high.tolist()) == ([0, -5], [7, 3])
    low, high = extremes(x, "tokens", None)
    assert (low.tolist(), high.tolist()) == ([0, -99], [99, 3])


def test_extremes_are_per_channel() -> None:
    x = torch.arange(24.0).view(2, 3, 2, 2)
    low, high = extremes(x, "spatial", None)
    assert (low.tolist(), high.tolist()) == ([0, 4, 8], [15, 19, 23])
    low, high = extremes(x[:, :, 0, 0], "vector", None)
    assert (low.tolist(), high.tolist()) == ([0, 4, 8], [12, 16, 20])


@pytest.mark.parametrize(
    "settings",
    [{"memory_budget": 1}, {"memory_budget": 1, "order": "simultaneous"}, {"estimator": "end_to_end", "steps": 2}],
    ids=["streamed", "simultaneous", "end to end"],
)
def test_layer_in_place_does_not_change_the_values_of_the_site_before(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SampleMemory, "plan", lambda *_: BatchPlan(resident=8, batch=4))

    def fitted(*, in_place: bool) -> ActMap:
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(6, 6), nn.ReLU(in_place), nn.Linear(6, 6))
        sides = prompts("source", 9), prompts("target", 9)
        return fit(TensorModel(module, (6,)), *sides, sites="toy/0, toy/2", **settings)

    assert_identical(fitted(in_place=True), fitted(in_place=False))
