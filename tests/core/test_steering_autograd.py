"""Steering in inference mode, and with gradients."""

from __future__ import annotations

import contextlib

import pytest
import torch
from helpers import (
    MIXED_SITES,
    chain,
    mixed,
)
from steering_helpers import (
    SOURCE,
    fitted,
    identity,
    one_site,
)
from torch import Tensor

from act_core import steer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("enter_inside", [False, True], ids=["entered outside", "entered inside"])
def test_steering_works_in_inference_mode_and_then_outside(enter_inside: bool, dtype: torch.dtype) -> None:
    model, act_map = mixed(dtype), fitted(mixed(), MIXED_SITES)
    rows = model.rows(SOURCE)

    def train() -> Tensor:
        result = model.module(rows)
        result.float().sum().backward()
        return result

    inside = torch.inference_mode() if enter_inside else contextlib.nullcontext()
    steering = steer(model.module, act_map, 0.5)
    with inside:
        steering.__enter__()
    with torch.inference_mode():
        first = model.module(rows)
    assert torch.equal(train(), first)
    steering.strength = 0.8
    train()
    steering.__exit__()
    with steer(model.module, act_map, 0.5):
        assert torch.equal(train(), first)


def test_gradients_flow_through_steered_model() -> None:
    model, act_map = chain(), one_site("layers.2", 2, 1)
    rows = model.rows(SOURCE).requires_grad_()
    with steer(model.module, act_map):
        model.module(rows).sum().backward()
    assert rows.grad is not None
    assert bool(rows.grad.abs().sum() > 0)


def test_changing_strength_before_backward_is_not_a_silent_error() -> None:
    """Autograd either uses the coefficients of the forward pass, or reports that they have changed."""
    model = identity()
    rows = model.rows(SOURCE).requires_grad_()
    with steer(model.module, one_site("0", 3, 0)) as steering:
        result = model.module(rows)
        steering.strength = 0.5
        try:
            result.sum().backward()
        except RuntimeError as error:
            assert "modified by an inplace operation" in str(error)  # noqa: PT017
        else:
            assert rows.grad is not None
            assert torch.allclose(rows.grad, torch.full_like(rows, 3.0))
