"""Text and picture tokens that share a stream, steered apart."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch
from helpers import swapped
from joined_streams import PICTURE, WIDTH, Joint, JointModel, fitted
from torch import Tensor, nn
from torch.testing import assert_close

from act_core import ActMap, steer
from act_core.errors import MapMismatchError
from act_core.sites import Segment, Site
from act_core.steering import BatchRows


@pytest.mark.parametrize("text_first", [True, False])
def test_each_part_gets_its_own_transport(text_first: bool) -> None:
    model = JointModel(Joint(text_first=text_first))
    act_map = fitted(model)
    text, picture = model.inputs("five words in this prompt")
    measured: list[Tensor] = []
    last = model.module.blocks[1]
    with torch.no_grad():
        plain = model.module(text, picture)
        with steer(model.module, act_map.restrict("toy/blocks.1")) as steering:
            handle = last.register_forward_hook(lambda *arguments: measured.append(arguments[2].clone()))
            steered = model.module(text, picture)
            handle.remove()
        again = model.module(text, picture)
    assert torch.equal(again, plain)
    assert swapped(model.module) == []
    assert len(steering.coverage.fired) == 2
    middle = text.shape[1] if text_first else PICTURE
    before = measured[0] - (steered - plain)
    expected = torch.cat(
        [
            act_map["toy/blocks.1@leading"].apply(before[:, :middle]),
            act_map["toy/blocks.1@trailing"].apply(before[:, middle:]),
        ],
        1,
    )
    assert_close(measured[0], expected)


def test_strength_0_and_branches_of_a_joined_stream() -> None:
    model, rows = JointModel(Joint()), BatchRows((1,), of=2)
    act_map = fitted(model)
    text, picture = model.inputs("five words in this prompt")
    text, picture = text.repeat(2, 1, 1), picture.repeat(2, 1, 1)
    with torch.no_grad():
        plain = model.module(text, picture)
        with steer(model.module, act_map, rows={"toy": rows}) as steering:
            one = model.module(text, picture)
            steering.strength = 0
            assert torch.equal(model.module(text, picture), plain)
    assert torch.equal(one[0], plain[0])
    assert not torch.equal(one[1], plain[1])


def test_stacked_maps_compose_part_by_part() -> None:
    model = JointModel(Joint())
    act_map = fitted(model).restrict("toy/blocks.1")
    text, picture = model.inputs("five words in this prompt")
    with torch.no_grad(), steer(model.module, act_map, 0.5), steer(model.module, act_map, 0.5):
        stacked = model.module(text, picture)
    composed = act_map.scaled(0.5).then(act_map.scaled(0.5))
    with torch.no_grad(), steer(model.module, composed):
        assert_close(model.module(text, picture), stacked)


def test_maps_whose_parts_are_measured_elsewhere_compose() -> None:
    act_map = fitted(JointModel(Joint()))
    elsewhere = {
        replace(site, segment=Segment(site.segment.end, "other", None, "trailing")): transport
        for site, transport in act_map.transports.items()
        if site.segment is not None
    }
    assert list(act_map.then(ActMap(elsewhere)).transports) == list(act_map.transports)


def test_many_maps_need_one_step_for_each_part() -> None:
    model = JointModel(Joint())
    act_map = fitted(model).restrict("toy/blocks.1")
    with torch.no_grad(), ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(steer(model.module, act_map, 0.1))
        model.module(*model.inputs("two words"))
        (slot,) = model.module.blocks[1].__dict__["forward"].slots.values()
        assert len(slot.steps) == 2


def test_compiled_model_follows_the_length_of_the_prompt() -> None:
    model = JointModel(Joint())
    act_map = fitted(model)
    compiled = torch.compile(model.module, backend="eager", dynamic=False)
    with torch.no_grad(), steer(model.module, act_map):
        # More lengths than graphs that are kept: the last ones run without one.
        for sample in ("two words", "five words in this prompt", "two words", *("word " * n for n in range(3, 16))):
            inputs = model.inputs(sample)
            assert_close(compiled(*inputs), model.module(*inputs))


def test_measurement_of_an_earlier_run_is_not_used() -> None:
    model = JointModel(Joint())
    act_map = fitted(model)
    text, picture = model.inputs("two words")
    with torch.no_grad():
        with steer(model.module, act_map):
            model.module(text, picture)
        x = torch.cat([text, model.module.picture_in(picture)], 1)
        with pytest.raises(MapMismatchError, match="was not measured in this run"), steer(model.module, act_map):
            model.module.blocks[0](x)


def test_model_without_the_gauge_lacks_the_site() -> None:
    act_map = fitted(JointModel(Joint()))
    other = Joint()
    assert steer(other, act_map).coverage.missing == ()
    del other.text_in
    with pytest.raises(MapMismatchError, match="none of its 4 sites is in this model"):
        steer(other, act_map)


def test_gauge_that_does_not_run_is_an_error() -> None:
    model = JointModel(Joint())
    act_map = fitted(model)
    moved = {
        Site(s.component, s.name, None, "tokens", WIDTH, Segment(s.segment.end, "unused", None, "leading")): t
        for s, t in act_map.transports.items()
        if s.segment is not None
    }
    model.module.add_module("unused", nn.Identity())
    with (
        pytest.raises(MapMismatchError, match="was not measured in this run"),
        torch.no_grad(),
        steer(model.module, ActMap(moved)),
    ):
        model.module(*model.inputs("two words"))
