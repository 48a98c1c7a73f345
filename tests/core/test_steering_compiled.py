"""Steering compiled models."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import pytest
import torch
from helpers import (
    MIXED_SITES,
    TensorModel,
    chain,
    mixed,
)
from steering_helpers import (
    LAYERS,
    SOURCE,
    chain_map,
    fitted,
    output,
    steered,
)
from torch._dynamo.testing import CompileCounter

from act_core import steer
from act_core.errors import MapMismatchError
from act_core.interception import submodules
from act_core.models.transformers import TransformersModel
from act_core.steering import BatchRows


@pytest.fixture
def counter() -> Generator[CompileCounter]:
    torch._dynamo.reset()
    yield CompileCounter()
    torch._dynamo.reset()


@pytest.mark.parametrize("support", ["unbounded", "observed"])
@pytest.mark.parametrize("make", [chain, mixed])
def test_changing_strength_causes_no_recompilation(
    make: Callable[[], TensorModel], support: Any, counter: CompileCounter
) -> None:
    model = make()
    act_map = fitted(model, LAYERS if make is chain else MIXED_SITES, support=support)
    compiled: Any = torch.compile(model.module, backend=counter)
    rows, plain = model.rows(SOURCE), output(model)
    with torch.no_grad(), steer(model.module, act_map, 1.0) as steering:
        compiled(rows)
        first = counter.frame_count
        for strength in (0.3, -1.0, 2, 1.0):
            steering.strength = strength
            # The graph runs the same eager kernels.
            assert torch.equal(compiled(rows), steered(model, act_map, strength))
        assert counter.frame_count == first
        steering.strength = 0
        assert torch.equal(compiled(rows), plain)
        off = counter.frame_count
        assert off <= first + 1
        for strength in (1.0, 0, 0.5, 0):
            steering.strength = strength
            compiled(rows)
        assert counter.frame_count <= off + 1
    assert torch.equal(compiled(rows), plain)


def test_model_compiled_before_is_steered(counter: CompileCounter) -> None:
    model, act_map = chain(), chain_map()
    compiled: Any = torch.compile(model.module, backend=counter)
    rows = model.rows(SOURCE)
    with torch.no_grad():
        plain = compiled(rows)
        with steer(model.module, act_map) as steering:
            assert torch.equal(compiled(rows), steered(model, act_map))
        steering.check()
        assert torch.equal(compiled(rows), plain)


def test_applying_map_again_causes_no_recompilation(counter: CompileCounter) -> None:
    model, act_map = chain(), chain_map()
    compiled: Any = torch.compile(model.module, backend=counter)
    rows = model.rows(SOURCE)
    with torch.no_grad():
        compiled(rows)
        for strength in (1.0, 0.4):
            with steer(model.module, act_map, strength):
                assert torch.equal(compiled(rows), steered(model, act_map, strength))
            compiled(rows)
        assert counter.frame_count <= 2  # with and without
        with steer(model.module, act_map.scaled(0.5)):
            assert torch.equal(compiled(rows), steered(model, act_map.scaled(0.5)))
        assert counter.frame_count <= 2


def test_compiled_submodules_are_steered_and_counted(counter: CompileCounter) -> None:
    model, act_map = chain(), chain_map()
    expected = steered(model, act_map)
    layers: Any = model.module.get_submodule("layers")
    for index in range(len(layers)):
        layers[index] = torch.compile(layers[index], backend=counter)
    with steer(model.module, act_map) as steering:
        assert torch.equal(output(model), expected)
    assert len(steering.coverage.fired) == 3
    assert not any("forward" in part.__dict__ for part in submodules(model.module).values())


def test_compiled_llama_equals_eager_llama(llama: TransformersModel, counter: CompileCounter) -> None:
    act_map = fitted(llama, "norms")
    ids, mask = llama._padded([llama._tokens(prompt) for prompt in SOURCE])
    compiled: Any = torch.compile(llama.module, backend=counter)
    with torch.no_grad(), steer(llama.module, act_map, 0.7) as steering:
        eager = llama.module(input_ids=ids, attention_mask=mask.long()).logits
        first = compiled(input_ids=ids, attention_mask=mask.long()).logits
        count = counter.frame_count
        assert torch.equal(first, eager)
        steering.strength = 0.2
        second = compiled(input_ids=ids, attention_mask=mask.long()).logits
        assert counter.frame_count == count
        assert not torch.equal(second, first)


def test_compiled_model_that_never_ran_has_not_fired(counter: CompileCounter) -> None:
    model, act_map = chain(), chain_map()
    compiled: Any = torch.compile(model.module, backend=counter)
    rows = model.rows(SOURCE)
    with torch.no_grad():
        steering = steer(model.module, act_map)
        with steering:
            compiled(rows)
        assert len(steering.coverage.fired) == 3
        again = steer(model.module, act_map, must_fire=False)
        with again:
            assert again.coverage.fired == ()
        assert again.coverage.fired == ()
        with pytest.raises(MapMismatchError, match="0 of 3 sites fired"), steer(model.module, act_map):
            pass
        with again:
            compiled(rows)
        assert len(again.coverage.fired) == 3
    assert counter.frame_count == 1


def test_strength_zero_at_end_keeps_count_of_compiled_runs(counter: CompileCounter) -> None:
    model = chain()
    compiled: Any = torch.compile(model.module, backend=counter)
    with torch.no_grad(), steer(model.module, chain_map()) as steering:
        compiled(model.rows(SOURCE))
        steering.strength = 0
    assert str(steering.coverage) == "3 of 3 sites fired"


def test_each_block_counts_its_own_compiled_runs(counter: CompileCounter) -> None:
    model, act_map = chain(), chain_map()
    compiled: Any = torch.compile(model.module, backend=counter)
    rows = model.rows(SOURCE)
    with torch.no_grad(), steer(model.module, act_map) as outer:
        compiled(rows)
        with steer(model.module, act_map, must_fire=False) as inner:
            assert inner.coverage.fired == ()
            assert len(outer.coverage.fired) == 3
            compiled(rows)
            assert len(inner.coverage.fired) == 3
    assert len(outer.coverage.fired) == 3


def test_compiled_model_steers_chosen_rows_and_leaves_further_rows(counter: CompileCounter) -> None:
    model, rows = chain(), BatchRows((1,), of=2, rows=4)
    compiled: Any = torch.compile(model.module, backend=counter)
    x = torch.randn(6, 4)
    with torch.no_grad(), steer(model.module, chain_map(), rows={"toy": rows}) as steering:
        expected = model.module(x)
        assert torch.equal(compiled(x), expected)
        count = counter.frame_count
        steering.strength = 0.5
        assert torch.equal(compiled(x), model.module(x))
        assert counter.frame_count == count


def test_stacked_maps_whose_strengths_change_at_each_call_share_one_graph(counter: CompileCounter) -> None:
    """As a host does that enters all maps at each denoising step, with strengths that fade."""
    model, act_map = chain(), chain_map()
    compiled: Any = torch.compile(model.module, backend=counter)
    rows = model.rows(SOURCE)
    with torch.no_grad():
        for strength in (1.0, 0.75, 0.5, 0.25):
            with steer(model.module, act_map, strength), steer(model.module, act_map, -strength / 2):
                compiled(rows)
    assert counter.frame_count == 1
