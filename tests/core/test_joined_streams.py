"""Text and picture tokens that share a stream: found, pooled apart, saved."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path

import pytest
import torch
from helpers import keys
from joined_streams import LONG, PICTURE, SHORT, SITES, WIDTH, Joint, JointModel, fitted
from torch import Tensor, nn
from torch.testing import assert_close

from act_core import ActMap, fit, load_map, save_map
from act_core.errors import FitError


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


class Shared(Joint):
    """Runs each stream through one layer before the join."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(WIDTH, WIDTH)

    def forward(self, text: Tensor, picture: Tensor) -> Tensor:
        x = torch.cat([self.shared(self.text_in(text)), self.shared(self.picture_in(picture))], 1)
        for block in self.blocks:
            x = x + block(x)
        return x


def test_layer_that_both_streams_pass_does_not_measure_them() -> None:
    gauges = {site.segment.gauge for site in fitted(JointModel(Shared())).transports if site.segment}
    assert gauges
    assert gauges <= {"text_in", "picture_in"}


def test_parts_of_equal_size_are_followed_through_the_model() -> None:
    six = "a text of six words here"
    act_map = fit(JointModel(Joint()), [six, six.upper()], LONG, sites=SITES)
    assert {(site.segment.gauge, site.segment.measures) for site in act_map.transports if site.segment} == {
        ("text_in", "leading")
    }


def test_part_that_is_empty_for_some_prompts_is_an_error() -> None:
    class Optional(Joint):
        def forward(self, text: Tensor, picture: Tensor) -> Tensor:
            return super().forward(text, picture if text.shape[1] == 2 else picture[:, :0])

    with pytest.raises(FitError, match=r"tokens at site toy/blocks.0@leading cannot be told apart for some prompts"):
        fitted(JointModel(Optional()))
