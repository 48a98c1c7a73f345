"""Text and picture tokens that share a stream: found, pooled apart, steered apart, saved."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import keys, swapped
from torch import Tensor, nn
from torch.testing import assert_close

from act_core import ActMap, fit, load_map, save_map, steer
from act_core.architectures import Architecture
from act_core.components import Component
from act_core.errors import FitError, MapMismatchError
from act_core.fitting import FitModel, MicroBatch
from act_core.sites import Segment, Site
from act_core.steering import BatchRows

WIDTH = 4
PICTURE = 6  # tokens
SITES = "toy/blocks.*"


class Joint(nn.Module):
    """Embeds text and picture, and runs both as one stream.

    Args:
        join: how the stream is made: ``cat``, or ``slices`` of an empty tensor.
        text_first: whether the text comes first.
    """

    def __init__(self, join: str = "cat", *, text_first: bool = True) -> None:
        super().__init__()
        self.text_in = nn.Linear(WIDTH, WIDTH)
        self.picture_in = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))
        self.join = join
        self.text_first = text_first
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))

    def forward(self, text: Tensor, picture: Tensor) -> Tensor:
        parts = [self.text_in(text), self.picture_in(picture)]
        first, second = parts if self.text_first else parts[::-1]
        if self.join == "cat":
            x = torch.cat([first, second], dim=-2)
        else:
            x = first.new_zeros(len(first), first.shape[1] + second.shape[1], WIDTH)
            x[:, : first.shape[1]] = first
            x[:, first.shape[1] :] = second
        for block in self.blocks:
            x = x + block(x)
        return x


class JointModel(FitModel[str]):
    """A word is a token of text; all pictures have the same number of tokens.

    Text tokens come from one distribution on both sides, so that prompts of another length are the only difference.
    """

    def __init__(self, module: Joint) -> None:
        self.module = module

    @property
    def components(self) -> list[Component]:
        return [Component("toy", self.module, Architecture("toy"))]

    def batch_key(self, sample: str) -> Hashable:
        return len(sample.split())

    def inputs(self, sample: str) -> tuple[Tensor, Tensor]:
        words = sample.split()
        text = torch.tensor([[float(hash_of(word, channel)) for channel in range(WIDTH)] for word in words])
        generator = torch.Generator().manual_seed(len(sample))
        return text[None] + 5, torch.randn(1, PICTURE, WIDTH, generator=generator)

    def batches(self, samples: Sequence[str], size: int) -> list[MicroBatch]:
        return [MicroBatch(1, partial(self.module, *self.inputs(sample))) for sample in samples]


def hash_of(word: str, channel: int) -> int:
    return (sum(map(ord, word)) * (channel + 3)) % 7 - 3


SHORT = ["a cat", "two dogs", "my house", "that boat"]
LONG = ["a cat on the old red roof", "two dogs in the rain at night", "my house by the long wide sea", "that boat ok"]


def fitted(model: JointModel, target: Sequence[str] = LONG, **changes: Any) -> ActMap:
    return fit(model, SHORT, target, sites=SITES, **changes)


@pytest.mark.parametrize("text_first", [True, False])
@pytest.mark.parametrize("join", ["cat", "slices"])
def test_parts_of_a_joined_stream_are_separate_sites(join: str, text_first: bool) -> None:
    act_map = fitted(JointModel(Joint(join, text_first=text_first)))
    assert keys(act_map) == [f"toy/blocks.{number}@{end}" for number in range(2) for end in ("leading", "trailing")]
    assert "text and picture tokens of joined streams steered apart" in act_map.record.notes


def test_stream_of_prompts_of_one_length_is_one_site() -> None:
    act_map = fitted(JointModel(Joint()), target=["the fog", "old trees", "no wind", "some snow"])
    assert keys(act_map) == ["toy/blocks.0", "toy/blocks.1"]


def test_parts_are_pooled_apart() -> None:
    """Means of the two parts, measured by hand on the untouched model."""
    model = JointModel(Joint())
    act_map = fitted(model, order="simultaneous")
    means: dict[str, list[Tensor]] = {"leading": [], "trailing": []}
    for sample in SHORT:
        text, picture = model.inputs(sample)
        with torch.no_grad():
            x = torch.cat([model.module.text_in(text), model.module.picture_in(picture)], 1)
            y = model.module.blocks[0](x)
        means["leading"].append(y[:, : text.shape[1]].mean(1))
        means["trailing"].append(y[:, text.shape[1] :].mean(1))
    for end, values in means.items():
        statistics = act_map[f"toy/blocks.0@{end}"].statistics
        assert statistics is not None
        assert_close(statistics.source_mean, torch.cat(values).mean(0))


def test_length_alone_does_not_move_the_picture() -> None:
    """Where pictures do not attend to text, they are the same for prompts of any length."""

    class SamePictures(JointModel):
        def inputs(self, sample: str) -> tuple[Tensor, Tensor]:
            return super().inputs(sample)[0], torch.ones(1, PICTURE, WIDTH)

    class Together(SamePictures):
        def batch_key(self, sample: str) -> Hashable:
            return None

    module = Joint()
    apart = fitted(SamePictures(module), order="simultaneous")
    together = fitted(Together(module), order="simultaneous")

    def shift(act_map: ActMap, key: str) -> float:
        statistics = act_map[key].statistics
        assert statistics is not None
        return float((statistics.target_mean - statistics.source_mean).abs().max())

    assert shift(together, "toy/blocks.0") > 0.1
    assert shift(apart, "toy/blocks.0@trailing") < 1e-6  # rounding


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


def test_compiled_model_follows_the_length_of_the_prompt() -> None:
    model = JointModel(Joint())
    act_map = fitted(model)
    compiled = torch.compile(model.module, backend="eager", dynamic=False)
    with torch.no_grad(), steer(model.module, act_map):
        # More lengths than graphs that are kept: the last ones run without one.
        for sample in ("two words", "five words in this prompt", "two words", *("word " * n for n in range(3, 16))):
            inputs = model.inputs(sample)
            assert_close(compiled(*inputs), model.module(*inputs))


def test_map_with_segments_is_saved_as_format_2(tmp_path: Path) -> None:
    act_map = fitted(JointModel(Joint()))
    loaded = load_map(save_map(act_map, tmp_path / "joint.safetensors"))
    assert [repr(site) for site in loaded.transports] == [repr(site) for site in act_map.transports]
    assert b'"act.format":"2"' in (tmp_path / "joint.safetensors").read_bytes()
    save_map(fitted(JointModel(Joint()), target=["the fog", "old trees"]), tmp_path / "one.safetensors")
    assert b'"act.format":"1"' in (tmp_path / "one.safetensors").read_bytes()


def test_compiled_model_is_fitted() -> None:
    model = JointModel(Joint())
    plain = fitted(model)
    for block in model.module.blocks:
        block.compile(backend="eager")
    compiled = fitted(model)
    assert keys(compiled) == keys(plain)
    for key in keys(plain):
        assert_close(compiled[key].omega, plain[key].omega)


def test_many_maps_need_one_step_for_each_part() -> None:
    model = JointModel(Joint())
    act_map = fitted(model).restrict("toy/blocks.1")
    with torch.no_grad(), ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(steer(model.module, act_map, 0.1))
        model.module(*model.inputs("two words"))
        (slot,) = model.module.blocks[1].__dict__["forward"].slots.values()
        assert len(slot.steps) == 2


def test_maps_whose_parts_are_measured_elsewhere_compose() -> None:
    act_map = fitted(JointModel(Joint()))
    elsewhere = {
        replace(site, segment=Segment(site.segment.end, "other", None, "trailing")): transport
        for site, transport in act_map.transports.items()
        if site.segment is not None
    }
    assert list(act_map.then(ActMap(elsewhere)).transports) == list(act_map.transports)


class Padded(Joint):
    """Pads the text to a multiple of four with tokens that are weights, and refines it before the join."""

    def __init__(self) -> None:
        super().__init__()
        self.pad = nn.Parameter(torch.ones(1, 1, WIDTH))
        self.refiner = nn.Linear(WIDTH, WIDTH)

    def forward(self, text: Tensor, picture: Tensor) -> Tensor:
        text = self.text_in(text)
        text = torch.cat([text, self.pad.repeat(1, -text.shape[1] % 4, 1)], 1)
        x = torch.cat([self.refiner(text), self.picture_in(picture)], 1)
        for block in self.blocks:
            x = x + block(x)
        return x


def test_padding_is_not_a_stream() -> None:
    act_map = fit(JointModel(Padded()), SHORT, [*LONG, "four words without padding"], sites="toy/blocks.*, toy/refiner")
    assert keys(act_map)[0] == "toy/refiner"
    assert {site.segment.gauge for site in act_map.transports if site.segment} == {"refiner"}


def test_parts_of_equal_size_are_followed_through_the_model() -> None:
    six = "a text of six words here"
    act_map = fit(JointModel(Joint()), [six, six.upper()], LONG, sites=SITES)
    assert {(site.segment.gauge, site.segment.measures) for site in act_map.transports if site.segment} == {
        ("text_in", "leading")
    }


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


def test_part_that_is_empty_for_some_prompts_is_an_error() -> None:
    class Optional(Joint):
        def forward(self, text: Tensor, picture: Tensor) -> Tensor:
            return super().forward(text, picture if text.shape[1] == 2 else picture[:, :0])

    with pytest.raises(FitError, match=r"tokens at site toy/blocks.0@leading cannot be told apart for some prompts"):
        fitted(JointModel(Optional()))
