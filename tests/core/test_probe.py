"""How far a map moves each token and each site."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from act_core import ActMap, steer
from act_core.errors import MapMismatchError
from act_core.probe import average, in_picture, probe
from act_core.probe_chart import heat_map, one_below_the_other, position_map
from act_core.sites import Layout, Segment, Site
from act_core.transport import Transport


def transport(omega: float, beta: float, channels: int) -> Transport:
    return Transport(torch.full((channels,), omega), torch.full((channels,), beta))


def site(name: str, channels: int = 4, layout: Layout = "tokens", segment: Segment | None = None) -> Site:
    return Site("model", name, None, layout, channels, segment)


class Stream(nn.Module):
    """Joins three tokens of text with the tokens of a picture, in two blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.text_in = nn.Linear(4, 4)
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)

    def forward(self, picture: Tensor) -> Tensor:
        text = self.text_in(torch.ones(len(picture), 3, 4))
        return self.second(self.first(torch.cat([text, picture], 1)))


@pytest.fixture
def picture() -> Tensor:
    return torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0))


def test_moves_are_in_units_of_the_activation(picture: Tensor) -> None:
    torch.manual_seed(0)
    model = Stream()
    act_map = ActMap({site("first"): transport(1.0, 2.0, 4)})
    (moves,) = probe(model, act_map, lambda: model(picture)).values()
    text = model.text_in(torch.ones(2, 3, 4))
    sizes = model.first(torch.cat([text, picture], 1)).square().mean(-1).sqrt()
    # Every channel of every token moves by 2.
    assert moves[0].shape == (2, 7)
    torch.testing.assert_close(moves[0], torch.full((2, 7), 2.0) / sizes.median())


def test_moves_follow_the_strength_and_end_at_zero(picture: Tensor) -> None:
    model = Stream()
    act_map = ActMap({site("first"): transport(1.0, 1.0, 4)})
    whole, half, none = (
        probe(model, act_map, lambda: model(picture), strength)[act_map.site("model/first")][0]
        for strength in (1.0, 0.5, 0.0)
    )
    torch.testing.assert_close(half, whole / 2)
    assert torch.equal(none, torch.zeros(2, 7))


def test_later_sites_include_what_came_before(picture: Tensor) -> None:
    model = Stream()
    nothing = transport(1.0, 0.0, 4)
    act_map = ActMap({site("first"): transport(1.0, 1.0, 4), site("second"): nothing})
    moves = probe(model, act_map, lambda: model(picture))
    expected = model.second.weight.sum(1).square().mean().sqrt()  # of a change by 1 in each channel
    size = model(picture).square().mean(-1).sqrt().median()
    torch.testing.assert_close(moves[act_map.site("model/second")][0], (expected / size).detach().expand(2, 7))


def test_segments_are_measured_apart(picture: Tensor) -> None:
    model = Stream()
    segments = [Segment("leading", "text_in", None, "leading"), Segment("trailing", "text_in", None, "leading")]
    text, rest = (site("first", segment=segment) for segment in segments)
    moves = probe(model, ActMap({text: transport(1.0, 1.0, 4), rest: transport(1.0, 0.0, 4)}), lambda: model(picture))
    assert moves[text][0].shape == (2, 3)
    assert moves[text][0].min() > 0
    assert torch.equal(moves[rest][0], torch.zeros(2, 4))


def test_feature_maps_keep_their_positions() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1))
    act_map = ActMap({site("0", 3, "spatial"): transport(1.5, 0.0, 3)})
    (moves,) = probe(model, act_map, lambda: model(torch.randn(1, 3, 6, 8))).values()
    assert moves[0].shape == (1, 6, 8)


def test_each_run_of_a_site_counts(picture: Tensor) -> None:
    model = Stream()
    act_map = ActMap({site("first"): transport(1.0, 1.0, 4)})
    (moves,) = probe(model, act_map, lambda: [model(picture * factor) for factor in (1.0, 2.0, 3.0)]).values()
    assert len(moves) == 3
    assert average(moves).shape == (7,)


def test_differing_runs_are_refused_and_nothing_stays_behind(picture: Tensor) -> None:
    model = Stream()
    act_map = ActMap({site("first"): transport(1.0, 1.0, 4)})
    sizes = iter((4, 3))
    with pytest.raises(MapMismatchError, match="other activations at model/first when it is steered"):
        probe(model, act_map, lambda: model(picture[:, : next(sizes)]))
    counts = iter((2, 1))
    with pytest.raises(MapMismatchError, match="other activations"):
        probe(model, act_map, lambda: [model(picture) for _ in range(next(counts))])
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_layers_that_work_in_place_are_compared_with_what_they_got() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True))
    act_map = ActMap({site("0"): transport(1.0, 0.0, 4)})
    (moves,) = probe(model, act_map, lambda: model(torch.linspace(-1, 1, 12).view(1, 3, 4))).values()
    assert torch.equal(moves[0], torch.zeros(1, 3))


def test_probe_works_below_another_map(picture: Tensor) -> None:
    model = Stream()
    act_map = ActMap({site("first"): transport(1.0, 1.0, 4)})
    alone = probe(model, act_map, lambda: model(picture))
    with steer(model, ActMap({site("second"): transport(2.0, 0.0, 4)})):
        below = probe(model, act_map, lambda: model(picture))
    assert torch.equal(*(moves[act_map.site("model/first")][0] for moves in (alone, below)))


def test_positions_are_those_of_picture_tokens_only() -> None:
    tokens = torch.arange(6.0)[None]
    text = site("blocks.0.context_block.mlp")
    moves = {site("patches"): [tokens], text: [torch.full((1, 24), 9.0)], site("all"): [torch.ones(1, 31)]}
    where = in_picture(moves, 4, 6)
    assert where is not None
    assert torch.equal(where, tokens.view(2, 3).repeat_interleave(2, 0).repeat_interleave(2, 1))
    assert in_picture({site("text"): [torch.ones(1, 5)]}, 4, 6) is None
    video = {site("frames", layout="spatial"): [torch.stack([torch.zeros(4, 6), torch.ones(4, 6)])[None]]}
    where = in_picture(video, 4, 6)
    assert where is not None
    assert torch.equal(where, torch.full((4, 6), 0.5))


def test_charts_show_the_largest_value_in_colour() -> None:
    chart = heat_map("title", torch.tensor([[0.0, 0.0], [0.0, 2.0]]), ["猫", "b"], ["猫/1", "2"])
    colours = {colour for _, colour in chart.getcolors(1 << 20) or ()}
    assert (240, 110, 30) in colours
    blank = heat_map("title", torch.zeros(1, 1), ["a"], ["1"])
    assert (240, 110, 30) not in {colour for _, colour in blank.getcolors(1 << 20) or ()}
    where = position_map("where", torch.tensor([[0.0, 1.0]]), 100)
    assert where.getpixel((10, 40)) == (255, 255, 255)
    assert where.getpixel((90, 40)) == (240, 110, 30)
    assert one_below_the_other([chart, Image.new("RGB", (1000, 5))]).size == (1000, chart.height + 5)


def colours_of(chart: Image.Image) -> set[object]:
    return {colour for _, colour in chart.getcolors(1 << 20) or ()}


def test_charts_show_what_is_not_finite() -> None:
    """A model that overflows in float16 is still probed."""
    values = torch.tensor([[torch.nan, torch.inf, 1.0, 0.5]])
    table = colours_of(heat_map("title", values, ["a"], ["1", "2", "3", "4"]))
    orange, half = (240, 110, 30), (248, 182, 142)
    assert {orange, half} <= table  # of the largest finite value, and half of it
    where = position_map("where", values, 40)
    assert [where.getpixel((11 + 10 * column, 26)) for column in range(4)] == [(255, 255, 255), orange, orange, half]
    for value in (torch.nan, torch.inf):
        assert position_map("where", torch.full((2, 2), value), 40).height > 0
        assert heat_map("title", torch.full((1, 1), value), ["a"], ["1"]).height > 0


def test_heat_map_fills_each_cell() -> None:
    chart = heat_map("title", torch.tensor([[1.0, 0.5]]), ["a"], ["1", "2"])
    row = chart.crop((0, chart.height - 6 - 17, *chart.size))  # without the margin below
    counts = {colour: count for count, colour in row.getcolors(1 << 20) or ()}
    # Of 38 x 17 pixels, the number covers some; the same ones in both.
    assert all(0.6 < counts[colour] / (38 * 17) < 0.9 for colour in ((240, 110, 30), (248, 182, 142)))


def test_thin_picture_keeps_a_row() -> None:
    assert position_map("where", torch.ones(1, 1000), 256).getpixel((100, 23)) == (240, 110, 30)
