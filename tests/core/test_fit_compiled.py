"""Compiled models are fitted uncompiled, and run compiled again afterwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import TensorModel, assert_identical
from parking_helpers import LAYERS, SOURCE, TARGET, Skipping, both
from torch._dynamo.testing import CompileCounter

from act_core import fit
from act_core.fitting.prepare import Uncompiled


@pytest.mark.usefixtures("always_parks")
@pytest.mark.parametrize("budget", [None, 1], ids=["walk", "parked walk"])
def test_model_is_not_compiled_during_a_fit(budget: int | None) -> None:
    torch._dynamo.reset()
    counter = CompileCounter()
    module = Skipping()
    plain = both(TensorModel(module, (5, 16)), sites=LAYERS)
    compiled: Any = torch.compile(module, backend=counter)
    model = TensorModel(compiled, (5, 16))
    x = model.rows(SOURCE[:3])
    with torch.no_grad():
        compiled(x)
        frames = counter.frame_count
        assert frames > 0
        fitted = fit(model, SOURCE, TARGET, sites=LAYERS, batch_size=3, memory_budget=budget)
        assert counter.frame_count == frames
        compiled(torch.cat([x, x]))  # another size, which is compiled again
    assert counter.frame_count > frames
    assert_identical(plain, fitted)
    torch._dynamo.reset()


def test_models_stay_uncompiled_until_the_last_of_overlapping_fits_ends() -> None:
    counter, x = CompileCounter(), torch.ones(2)
    compiled: Any = torch.compile(lambda x: x + 1, backend=counter)
    one, other = Uncompiled(), Uncompiled()
    one.enter()
    other.enter()
    one.leave()
    compiled(x)
    assert counter.frame_count == 0
    other.leave()
    compiled(x)
    assert counter.frame_count == 1
    torch._dynamo.reset()
