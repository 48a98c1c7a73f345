"""Comparing maps: shared sites, angles and sizes of displacements, with and without statistics."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import MIXED_SITES, keys, mixed, prompts
from PIL import Image

from act_core import ActMap, fit, map_charts
from act_core.architectures.kinds import kind_of
from act_core.comparison import DEVIATIONS, compare, squared_displacements
from act_core.fonts import line_height
from act_core.map_charts import comparison_chart, depth_chart
from act_core.plots import MAX_ROWS, effect_chart, row_labels
from act_core.records import Card, Fingerprint, FitRecord
from act_core.sites import Site
from act_core.transport import Statistics, Transport

# Coefficients and statistics are float32.
CLOSE = 1e-5
# By a height in the row of a site, the colour of the bar there: steelblue and firebrick.
BARS = {5: (70, 130, 180), 11: (178, 34, 34)}


def site(name: str, channels: int = 2) -> Site:
    return Site("toy", name, None, "tokens", channels)


def shifting(*beta: float, omega: float = 1.0) -> Transport:
    return Transport(torch.full((len(beta),), omega), torch.tensor(beta))


def bare(act_map: ActMap) -> ActMap:
    """The map as its file keeps it: without statistics."""
    return replace(act_map, transports={s: replace(t, statistics=None) for s, t in act_map.transports.items()})


@pytest.fixture(scope="module")
def fitted() -> ActMap:
    return fit(mixed(), prompts("source", 6), prompts("target", 6), sites=MIXED_SITES)


def test_map_and_its_inverse_are_opposite(fitted: ActMap) -> None:
    found = compare(fitted, fitted.inverse())
    assert [one.site.key for one in found.shared] == keys(fitted)
    assert [one.unit for one in found.shared] == [DEVIATIONS] * 5
    # Each is read at its own source mean, and the means are those of one fit; one deviation serves both.
    assert all(one.cosine == pytest.approx(-1, abs=CLOSE) and one.angle > 179 for one in found.shared)
    assert all(one.ratio == pytest.approx(1, rel=1e-4) for one in found.shared)


def test_scaled_map_has_ratio_of_its_strength(fitted: ActMap) -> None:
    """The scaled map has no statistics; it is read at the source mean of the other."""
    for factor, cosine in ((0.5, 1), (-2.0, -1)):
        for one in compare(fitted, fitted.scaled(factor)).shared:
            assert (one.cosine, one.ratio) == (pytest.approx(cosine, abs=CLOSE), pytest.approx(abs(factor), rel=1e-4))
            assert one.unit == DEVIATIONS


def test_sizes_are_displacements_in_deviations_of_the_source() -> None:
    statistics = Statistics(*(torch.tensor(values) for values in ([2.0, 0.0], [4.0, 0.5], [0.0, 0.0], [1.0, 1.0])))
    act_map = ActMap({site("a"): replace(shifting(-2.0, 1.0, omega=3.0), statistics=statistics)})
    (one,) = compare(act_map, act_map).shared
    # (3 * 2 - 2 - 2) / 4 and 1 / 0.5
    assert one.first == pytest.approx(math.sqrt((0.5**2 + 2**2) / 2))
    squares, unit = squared_displacements(act_map)
    # The slope of 3 moves values that lie one deviation from the mean by 2 more.
    assert (squares[site("a")].tolist(), unit) == ([0.25 + 4, 4.0 + 4], DEVIATIONS)


def test_channels_with_a_constant_source_do_not_count() -> None:
    statistics = Statistics(*(torch.tensor(values) for values in ([0.0, 0.0], [1.0, 0.0], [0.0, 0.0], [1.0, 1.0])))
    act_map = ActMap({site("a"): replace(shifting(1.0, 5.0, omega=2.0), statistics=statistics)})
    assert compare(act_map, act_map).shared[0].first == pytest.approx(math.sqrt(1 / 2))
    assert squared_displacements(act_map)[0][site("a")].tolist() == [2.0, 0.0]


def test_two_deviations_give_one_unit() -> None:
    """Their root mean square: sources that deviate by 1 and by 7 are measured in units of 5."""
    maps = [
        ActMap({site("a"): replace(shifting(beta, beta), statistics=Statistics(zero, zero + std, zero + beta, zero))})
        for zero, beta, std in ((torch.zeros(2), 5.0, 1.0), (torch.zeros(2), 10.0, 7.0))
    ]
    (found,) = compare(*maps).shared
    assert (found.first, found.second) == (pytest.approx(1), pytest.approx(2))


def test_without_statistics_slopes_and_offsets_are_compared() -> None:
    one, other = (ActMap({site("a", 1): shifting(3.0, omega=omega)}) for omega in (1.0, 5.0))
    (found,) = compare(one, other).shared
    assert (found.first, found.second, found.cosine) == (3.0, 5.0, pytest.approx(0.6))  # (0, 3) and (4, 3)
    assert "statistics" in str(compare(one, other))


def test_sites_of_one_map_and_of_other_shapes_are_listed() -> None:
    one = ActMap({site("a"): shifting(1, 0), site("b"): shifting(1, 0), site("c"): shifting(1, 0)})
    other = ActMap({site("c", 3): shifting(1, 0, 0), site("a"): shifting(0, 1), site("d"): shifting(1, 0)})
    found = compare(one, other)
    assert [s.site.key for s in found.shared] == ["toy/a"]
    assert (found.only_first, found.only_second, found.differing) == (("toy/b",), ("toy/d",), ("toy/c",))
    assert found.shared[0].angle == pytest.approx(90)
    for words in ("1 only in A (first: toy/b)", "1 only in B (first: toy/d)", "1 described differently"):
        assert words in str(found)


def test_report_shows_the_typical_site() -> None:
    one, other = (
        ActMap({site(name): shifting(beta, 0.0) for name, beta in zip("abc", offsets, strict=True)})
        for offsets in ((1.0, 1.0, 1.0), (1.0, 2.0, 8.0))
    )
    assert "Typical site: cosine 1.00, size of B 2.00 times that of A (medians)." in str(compare(one, other))


def test_site_that_does_not_move_has_no_angle() -> None:
    one, other = ActMap({site("a"): shifting(0, 0)}), ActMap({site("a"): shifting(1, 0)})
    (found,) = compare(one, other).shared
    assert math.isnan(found.cosine)
    assert math.isnan(found.angle)
    assert found.ratio == math.inf
    assert comparison_chart(compare(one, other)).height > 60
    both = compare(one, one)
    assert math.isnan(both.shared[0].ratio)
    assert comparison_chart(both).height > 60


def test_bins_are_compared_at_all_levels() -> None:
    def binned(*offsets: float) -> Transport:
        return Transport(torch.ones(len(offsets), 1), torch.tensor(offsets)[:, None])

    one = ActMap({site("a", 1): binned(1.0, -1.0)}, levels=(0.9, 0.1))
    other = ActMap({site("a", 1): shifting(1.0)})
    for pair in ((one, other), (other, one)):
        (found,) = compare(*pair).shared
        assert (found.cosine, found.first, found.second) == (pytest.approx(0), pytest.approx(1), pytest.approx(1))
    shifted = ActMap({site("a", 1): binned(3.0, -3.0)}, levels=(0.8, 0.2))
    found = compare(one, shifted).shared[0]
    assert (found.cosine, found.ratio) == (pytest.approx(1), pytest.approx(3))


def test_known_effect_weighs_sites_of_maps_without_statistics(fitted: ActMap) -> None:
    squares, unit = squared_displacements(bare(fitted))
    assert unit == DEVIATIONS
    for one, transport in fitted.transports.items():
        assert float(squares[one].mean().sqrt()) == pytest.approx(transport.effect, rel=1e-6)


@pytest.mark.parametrize(
    ("architecture", "name", "kind"),
    [
        ("llama", "model.layers.3.input_layernorm", "norm"),
        ("mistral", "model.layers.3.self_attn.o_proj", "attention"),
        ("Flux", "single_blocks.7.linear2", "attention"),
        ("Flux", "double_blocks.11.img_mlp.2", "mlp"),
        ("UNetModel", "input_blocks.1.1.transformer_blocks.0", "block"),
        ("UNetModel", "output_blocks.2.0.in_layers.0", "norm"),
        ("clip_text_model", "text_model.final_layer_norm", "output"),
        ("clip_text_model", "text_projection", "output"),
        ("unknown", "layers.3.self_attn.out_proj", "attention"),
        ("unknown", "layers.3.ln_2", "norm"),
        ("unknown", "transformer_blocks.0.ff.net.2", "mlp"),
        ("unknown", "blocks.12", "block"),
        ("", "head", "output"),
    ],
)
def test_kind_comes_from_presets_or_name(architecture: str, name: str, kind: str) -> None:
    assert kind_of(site(name), architecture) == kind


def test_charts_grow_with_sites_and_blocks(fitted: ActMap) -> None:
    three = ActMap({site(f"layers.{n}.{part}"): shifting(1, 1) for n in range(3) for part in ("mlp", "norm")})
    one = three.restrict("*layers.0*")
    blocks = depth_chart(three).height - depth_chart(one).height
    sites = comparison_chart(compare(three, three)).height - comparison_chart(compare(one, one)).height
    assert 0 < blocks * 2 == sites
    assert depth_chart(three).width == depth_chart(one).width
    assert comparison_chart(compare(fitted, three)).height > 0  # no site in both


def test_depth_chart_has_a_cell_for_each_block_and_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    tables: list[Any] = []
    monkeypatch.setattr(map_charts, "heat_map", lambda *table: tables.append(table))
    sites = {"layers.0.norm1": (3.0, 4.0), "layers.0.norm2": (0.0, 0.0), "layers.1.mlp": (2.0, 2.0)}
    depth_chart(ActMap({site(name): shifting(*beta) for name, beta in sites.items()}))
    title, values, rows, kinds = tables[0]
    assert title == "displacement by depth and kind, as (slope - 1, offset)"
    assert (rows, kinds) == (["toy/layers.0", "toy/layers.1"], ["norm", "mlp"])
    # The mean over two norms of the root mean square, of which one is 0.
    assert values.nan_to_num(-1.0).tolist() == [[pytest.approx(math.sqrt(12.5) / 2), -1], [-1, 2]]
    record = FitRecord(base={"toy": Fingerprint("Flux", "")})
    depth_chart(ActMap({site("single_blocks.7.linear2"): shifting(1, 1)}, record))
    assert tables[1][3] == ["attention"]  # known from the architecture alone


def bars(chart: Image.Image, row: int) -> tuple[int, ...]:
    """How wide both bars are in a row of a chart that has no note, counted from the last one."""
    top = chart.height - 6 - line_height(13) * (row + 1)
    return tuple(sum(chart.getpixel((x, top + y)) == bar for x in range(chart.width)) for y, bar in BARS.items())


@pytest.mark.parametrize(("offsets", "colours"), [((2, 2), ["green"]), ((-2, -2), ["red"]), ((2, -2), [])])
def test_comparison_chart_shows_angle_and_sizes(offsets: tuple[float, float], colours: list[str]) -> None:
    chart = comparison_chart(compare(*(ActMap({site("a"): shifting(*beta)}) for beta in ((1, 1), offsets))))
    drawn = {shade for _, shade in chart.getcolors(1 << 20) or ()}
    assert [name for name, shade in {"green": (70, 160, 90), "red": (200, 70, 70)}.items() if shade in drawn] == colours
    assert bars(chart, 0) == (101, 201)  # with both ends


def test_comparison_chart_scales_each_unit_apart() -> None:
    statistics = Statistics(torch.zeros(2), torch.ones(2), torch.zeros(2), torch.ones(2))
    act_map = ActMap({site("a"): replace(shifting(10, 10), statistics=statistics), site("b"): shifting(1, 1)})
    chart = comparison_chart(compare(act_map, act_map))
    assert bars(chart, 1) == bars(chart, 0) == (201, 201)


def test_charts_and_report_stay_small_for_maps_of_strangers() -> None:
    sites = [site(f"{'x' * 480}{number}.0", 1) for number in range(3 * MAX_ROWS)]
    card = Card(title="a\nB: forged " + "x" * 10_000)
    many, full = (ActMap({one: shifting(1) for one in sites[:count]}, card=card) for count in (None, MAX_ROWS))
    found = compare(many, many)
    charts = [depth_chart(many), effect_chart(many), comparison_chart(found)]
    assert all(chart.width < 1200 and chart.height < 25 * MAX_ROWS for chart in charts)
    # One line more, which says how many are left out.
    assert effect_chart(many).height - effect_chart(full).height == line_height(13)
    assert charts[2].height - comparison_chart(compare(full, full)).height == line_height(13)
    assert [line[:3] for line in str(found).splitlines()[:3]] == ["A: ", "B: ", "120"]


def test_charts_say_how_many_rows_are_left_out() -> None:
    assert row_labels(["a"] * MAX_ROWS)[1] == ""
    labels, note = row_labels(["a" * 100] * (MAX_ROWS + 7))
    assert (len(labels), len(labels[0]), note) == (MAX_ROWS, 60, "7 more are not shown")


def test_charts_show_coefficients_at_the_end_of_float32() -> None:
    """A file may have them; their lengths are beyond float32."""
    largest = torch.finfo(torch.float32).max
    act_map = ActMap({site("a"): shifting(largest, largest, omega=largest)})
    assert depth_chart(act_map).height > 0
    assert comparison_chart(compare(act_map, act_map)).height > 0
