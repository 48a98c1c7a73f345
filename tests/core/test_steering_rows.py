"""Steering some rows of a batch."""

from __future__ import annotations

import pytest
import torch
from helpers import (
    chain,
    swapped,
)
from steering_helpers import (
    chain_map,
    identity,
    one_site,
    recorded,
)
from torch import Tensor, nn
from torch.testing import assert_close

from act_core import ActMap, steer
from act_core.errors import MapMismatchError
from act_core.sites import Site
from act_core.steering import BatchRows
from act_core.transport import Transport


def test_only_chosen_rows_are_steered_and_choice_can_change() -> None:
    model, act_map, rows = chain(), chain_map(), BatchRows()
    (component,) = act_map.components
    x = torch.randn(4, 4)
    before = model.module(x)
    with steer(model.module, act_map):
        moved = model.module(x)
    with steer(model.module, act_map, rows={component: rows}) as steering:
        assert torch.equal(model.module(x), moved)
        rows.choose((1,), of=2)
        half = model.module(x)
        assert torch.equal(half[:2], before[:2])
        assert_close(half[2:], moved[2:])
        rows.choose(())
        fires = dict(steering.coverage.fires)
        assert torch.equal(model.module(x), before)
        assert steering.coverage.fires == fires


def test_maps_with_shared_rows_compose_and_others_act_in_turn() -> None:
    model, act_map = chain(), chain_map()
    (component,) = act_map.components
    x = torch.randn(4, 4)
    with steer(model.module, act_map), steer(model.module, act_map):
        twice = model.module(x)
    with steer(model.module, act_map):
        once = model.module(x)
    shared, own = BatchRows((0,), of=2), BatchRows((0,), of=2)
    for first, second in ((shared, shared), (shared, own)):
        with (
            steer(model.module, act_map, rows={component: first}),
            steer(model.module, act_map, rows={component: second}),
        ):
            assert_close(model.module(x)[:2], twice[:2])
    with steer(model.module, act_map, rows={component: shared}), steer(model.module, act_map):
        both = model.module(x)
    assert_close(both[:2], twice[:2])
    assert_close(both[2:], once[2:])


class Appending(nn.Module):
    """Appends rows to the batch inside the model and takes them off again, as packs for negative prompts do."""

    def __init__(self, inner: nn.Module, count: int) -> None:
        super().__init__()
        self.inner = inner
        self.count = count

    def forward(self, x: Tensor) -> Tensor:
        rows = x.shape[0]
        return self.inner(torch.cat([x, x[: self.count]]))[:rows]


@pytest.mark.parametrize("parts", [(0,), (1,)])
def test_rows_appended_inside_model_are_left_alone(parts: tuple[int, ...]) -> None:
    """With 3 rows in a call of 2, the second half of the rows is not the second branch."""
    layer, seen = nn.Identity(), []
    model, x = Appending(nn.Sequential(layer), 1), torch.randn(2, 4)
    rows = BatchRows(parts, of=2, rows=2)
    with recorded(layer, seen), steer(model, one_site("inner.0", 1, 5), rows={"toy": rows}):
        result = model(x)
    expected = x.clone()
    expected[parts[0]] += 5
    assert_close(result, expected)
    assert_close(seen[0], torch.cat([expected, x[:1]]))


def test_rows_appended_inside_model_are_left_alone_without_branches() -> None:
    layer, seen = nn.Identity(), []
    model, x = Appending(nn.Sequential(layer), 1), torch.randn(1, 4)
    with recorded(layer, seen), steer(model, one_site("inner.0", 1, 5), rows={"toy": BatchRows(None, rows=1)}):
        model(x)
    assert_close(seen[0], torch.cat([x + 5, x]))


def test_unknown_rows_cannot_be_divided() -> None:
    model, x = Appending(nn.Sequential(nn.Identity()), 1), torch.randn(2, 4)
    with (
        pytest.raises(MapMismatchError, match=r"site toy/inner\.0 has 3 rows, which cannot be divided into 2"),
        steer(model, one_site("inner.0", 1, 5), rows={"toy": BatchRows((1,), of=2)}),
    ):
        model(x)
    assert swapped(model) == []


def test_fewer_rows_than_call_are_refused() -> None:
    model = identity()
    with (
        pytest.raises(MapMismatchError, match=r"toy/0 returns 2 rows for a batch of 4"),
        steer(model.module, one_site("0", 1, 5), rows={"toy": BatchRows((1,), of=2, rows=4)}),
    ):
        model.module(torch.randn(2, 4))


def test_frames_joined_into_videos_are_divided_by_branch() -> None:
    site = Site("toy", "0", None, "spatial", 3)
    act_map = ActMap({site: Transport(torch.ones(3), torch.full((3,), 5.0))})
    model, frames = identity(), 2
    x = torch.randn(4, 3, 8, 8)  # two videos of two frames
    with steer(model.module, act_map, rows={"toy": BatchRows((1,), of=2, rows=4)}):
        y = model.module(x.unflatten(0, (2, frames)).transpose(1, 2))
    moved = y.transpose(1, 2).flatten(0, 1) - x
    assert_close(moved[:2], torch.zeros(2, 3, 8, 8))
    assert_close(moved[2:], torch.full((2, 3, 8, 8), 5.0))


def test_choose_refuses_rows_that_cannot_be_divided() -> None:
    with pytest.raises(MapMismatchError, match="has 3 rows, which cannot be divided into 2 equal parts"):
        BatchRows().choose((0,), of=2, rows=3)
