"""Calibrations: the even scale, what edits of a map make of it, and how one is measured."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from map_files import metadata_of, refused, rewritten
from torch import Tensor

from act_core import ActMap, MapError, calibrate, load_map, save_map
from act_core.calibration import Calibration
from act_core.curves import Arm, direction
from act_core.plots import calibration_chart
from act_core.records import Card, FitRecord
from act_core.sites import Site
from act_core.transport import Transport

SITES = [Site("diffusion_model", "layer", None, "tokens", 2), Site("clip_l", "layer", None, "tokens", 2)]
FOUND = Calibration((-1.0, 0.0, 1.0), (-0.5, 0.0, 1.0), (0.9, 1.0, 0.7), (0.0, 0.6, 1.2), (0.0, -0.2, -1.0))
WITHOUT_OPPOSITE = replace(FOUND, down=(), negative="none")
PROMPTS = tuple(f"thing {number}" for number in range(6))


def toy(calibration: Calibration | None = FOUND, slope: float = 2.0) -> ActMap:
    record = FitRecord(source_prompts=PROMPTS, target_prompts=tuple(f"{text} in ink" for text in PROMPTS))
    transport = Transport(torch.full((2,), slope), torch.ones(2))
    return ActMap(dict.fromkeys(SITES, transport), record, calibration=calibration)


@pytest.mark.parametrize(("position", "raw"), [(0, 0), (0.25, 0.3), (0.5, 0.6), (1, 1.2), (1.5, 1.8), (-1, -1)])
def test_raw_is_piecewise_linear_and_goes_on_beyond_the_range(position: float, raw: float) -> None:
    assert FOUND.raw(position) == pytest.approx(raw)
    assert FOUND.position(raw) == pytest.approx(position)


@pytest.mark.parametrize("position", [math.nan, math.inf, -math.inf])
def test_raw_refuses_what_is_not_finite(position: float) -> None:
    with pytest.raises(MapError, match="it must be a number from -1000 to 1000"):
        FOUND.raw(position)


def test_scale_without_opposite_refuses_negative_positions() -> None:
    assert WITHOUT_OPPOSITE.range == (0.0, 1.2)
    assert WITHOUT_OPPOSITE.position(-0.1) is None
    with pytest.raises(MapError, match="no usable opposite"):
        WITHOUT_OPPOSITE.raw(-0.1)


@pytest.mark.parametrize(
    "change",
    [
        {"effects": (0.0, 1.0)},
        {"strengths": (-1.0, 0.5, 1.0)},
        {"strengths": (1.0, 0.0, -1.0)},
        {"kept": (0.9, float("nan"), 0.7)},
        {"up": (0.0, 1e9)},
        {"up": (0.0,)},
        {"up": (0.1, 1.0)},
        {"up": (0.0, 1.0, 0.5)},
        {"down": (0.0, 1.0)},
        {"down": ()},
        {"negative": "none"},
        {"negative": "left"},
    ],
)
def test_bad_calibration_is_refused(path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(MapError):
        replace(FOUND, **change)
    refused(rewritten(path, toy(), metadata={"act.calibration": json.dumps({**asdict(FOUND), **change})}))


@pytest.mark.parametrize("text", ["", "7", "[]", "{}", "null", '{"strengths": 3}', '{"up": ["a"]}'])
def test_damaged_calibration_is_refused(path: Path, text: str) -> None:
    refused(rewritten(path, toy(), metadata={"act.calibration": text}))


@pytest.mark.parametrize("found", [FOUND, WITHOUT_OPPOSITE, replace(FOUND, negative="inverse")])
def test_calibration_survives_saving(path: Path, found: Calibration) -> None:
    save_map(toy(found), path)
    assert load_map(path).calibrated == found
    assert metadata_of(path)["act.format"] == "2"
    save_map(toy(None), path)
    assert metadata_of(path)["act.format"] == "1"
    with pytest.raises(MapError, match="is not calibrated"):
        _ = load_map(path).calibrated


def test_scaled_map_keeps_the_same_strengths_at_the_same_positions() -> None:
    for position in (-1, -0.3, 0.4, 1):
        assert toy().scaled(2).calibrated.raw(position) * 2 == pytest.approx(FOUND.raw(position))
        assert toy().scaled(-1).calibrated.raw(position) == pytest.approx(-FOUND.raw(-position))
    assert toy().scaled(-1).calibrated.effects == (-1.0, 0.0, 0.5)
    assert toy().scaled(0).calibration is None
    assert toy(WITHOUT_OPPOSITE).scaled(-1).calibration is None


def test_map_scaled_to_almost_nothing_has_no_calibration() -> None:
    assert toy().scaled(0.01).calibrated.range == pytest.approx((-100, 120))
    assert toy().scaled(0.001).calibration is None
    assert float(toy().scaled(0.001).transports[SITES[0]].beta[0]) == pytest.approx(0.001)


def test_inverse_keeps_only_what_was_measured() -> None:
    assert toy().inverse().calibration is None
    turned = toy(replace(FOUND, negative="inverse")).inverse().calibrated
    assert turned.raw(1) == 1.0
    assert turned.raw(-1) == -1.2
    assert turned.effects == (-1.0, 0.0, 0.5)


def test_inverse_has_the_range_that_was_measured() -> None:
    inverted = replace(FOUND, negative="inverse", down=(0.0, -0.4, -1.755))
    for calibration, expected in ((None, None), (FOUND, None), (inverted, (0.0, 1.76))):
        ranged = replace(toy(calibration), card=Card("Ink", strength_range=(0.0, 1.2)))
        assert ranged.inverse().card == Card("Ink", strength_range=expected)
    down, strengths = ranged.on_even_scale({"diffusion_model": -1.0, "clip_l": 0.0})
    assert strengths == {"diffusion_model": 1.755, "clip_l": 0.0}
    assert down.card.strength_range == (0.0, 1.76)
    assert ranged.on_even_scale({"diffusion_model": -1.0, "clip_l": 0.5})[0].card == Card("Ink")
    assert ranged.on_even_scale({"diffusion_model": 1.0, "clip_l": 0.5})[0].card.strength_range == (0.0, 1.2)


def test_other_maps_are_not_calibrated() -> None:
    assert toy().restrict("clip_l/*").calibration is None
    assert toy().then(toy()).calibration is None
    assert toy().restrict("clip_l/*").joined(toy().restrict("diffusion_model/*")).calibration is None


def test_even_scale_inverts_only_components_below_zero() -> None:
    act_map = toy(replace(FOUND, negative="inverse"))
    applied, strengths = act_map.on_even_scale({"diffusion_model": -1.0, "clip_l": 0.5})
    assert strengths == {"diffusion_model": 1.0, "clip_l": 0.6}
    assert torch.equal(applied["diffusion_model/layer"].omega, torch.full((2,), 0.5))
    assert torch.equal(applied["clip_l/layer"].omega, torch.full((2,), 2.0))
    negated = toy()
    assert negated.on_even_scale({"clip_l": -1.0}) == (negated, {"clip_l": -1.0})


class Painter:
    """A model whose pictures are made of the subject, and of a style that the map moves along a curve.

    Args:
        curve: how far the style goes at each strength; 1 is the target.
        inverse: the same for the inverse map.
        loses: strength from which on the subject is lost.
    """

    def __init__(self, curve: Any, inverse: Any = lambda strength: 0.0, loses: float = 9.0) -> None:
        self.curve, self.inverse, self.loses = curve, inverse, loses
        self.drawn: list[float] = []

    def draw(self, prompts: Sequence[str], act_map: ActMap | None = None, strength: float = 0.0) -> Tensor:
        rows: list[Tensor] = []
        for number, prompt in enumerate(prompts):
            generator = torch.Generator().manual_seed(number + (100 if abs(strength) >= self.loses else 0))
            rows.append(torch.cat([torch.randn(30, generator=generator), torch.zeros(1)]))
            rows[-1][-1] = float("in ink" in prompt)
        pictures = torch.stack(rows)
        if act_map is not None:
            self.drawn.append(strength)
            is_inverse = bool(act_map["clip_l/layer"].omega[0] < 1)
            pictures[:, -1] = self.inverse(strength) if is_inverse else self.curve(strength)
        return pictures

    def activations(self, latents: Tensor, prompts: Sequence[str]) -> Tensor:
        assert len(latents) == len(prompts)
        return latents[:, -1:] * torch.tensor([[3.0, -1.0]])


def test_range_ends_where_the_effect_is_complete() -> None:
    found = calibrate(Painter(lambda s: s / 1.5), toy(None)).calibrated
    assert found.range == (-1.5, pytest.approx(1.5))
    assert found.negative == "negated"
    assert found.effects[found.strengths.index(0.75)] == pytest.approx(0.5)
    assert found.kept[found.strengths.index(0.75)] == pytest.approx(1, abs=0.01)


def test_range_ends_where_the_effect_peaks() -> None:
    found = calibrate(Painter(lambda s: 0.8 * min(s, 2 - s) if s > 0 else 0.0), toy(None)).calibrated
    assert 0.9 < found.range[1] <= 1  # within 0.05 of the peak at 1
    assert found.negative == "none"


def test_range_ends_where_the_effect_levels_off() -> None:
    found = calibrate(Painter(lambda s: min(s, 0.75 + 0.3 * (s - 0.75))), toy(None)).calibrated
    assert found.range[1] == 0.75  # the effect is complete at 1.58


def test_flat_start_and_small_bends_do_not_shorten_the_range() -> None:
    start = calibrate(Painter(lambda s: max(0.1 * s, 2 * s - 1)), toy(None)).calibrated
    bend = calibrate(Painter(lambda s: s + (0.03 if s == 0.25 else 0)), toy(None)).calibrated
    assert start.range[1] == bend.range[1] == 1.0


def test_range_ends_before_the_content_is_lost() -> None:
    painter = Painter(lambda s: s / 2, loses=1.0)
    assert calibrate(painter, toy(None)).calibrated.range == (-0.75, 0.75)
    assert max(painter.drawn) == 1.0  # no further
    assert min(painter.drawn) == -1.0


def test_inverse_is_what_a_negative_strength_does_where_it_leads_further() -> None:
    found = calibrate(Painter(lambda s: s if s > 0 else s / 3, lambda s: -s), toy(None)).calibrated
    assert found.negative == "inverse"
    assert found.range == (-1.5, 1.0)
    assert found.effects[0] == pytest.approx(-1.5)


def test_map_that_cannot_be_inverted_is_calibrated() -> None:
    found = calibrate(Painter(lambda s: s, lambda s: s), toy(None, slope=0.0)).calibrated
    assert found.negative == "negated"


def test_even_steps_are_equal_in_the_pictures() -> None:
    painter = Painter(lambda s: min(1.1, s**3) if s > 0 else 0.0)
    found = calibrate(painter, toy(None), strengths=[-1, *(step / 20 for step in range(1, 25))]).calibrated
    reached = [painter.curve(found.raw(step / 5)) for step in range(6)]
    steps = [after - before for before, after in pairwise(reached)]
    assert max(steps) - min(steps) < 0.05  # equal steps of the strength differ by 0.48


def test_map_without_target_is_measured_along_its_own_way() -> None:
    found = calibrate(Painter(lambda s: s), toy(None), PROMPTS).calibrated
    assert found.effects[found.strengths.index(1.0)] == pytest.approx(1.0)
    assert found.range[1] == 2.0


@pytest.mark.parametrize("curve", [lambda _: 0.0, lambda s: -s, lambda s: 0.05 * s])
def test_map_that_does_not_reach_its_target_has_no_range(curve: Any) -> None:
    with pytest.raises(MapError, match="no range to recommend"):
        calibrate(Painter(curve), toy(None))


def test_calibration_sets_the_recommended_range_of_the_card() -> None:
    found = calibrate(Painter(lambda s: s / 1.5), toy(None))
    assert found.card.strength_range == (-1.5, 1.5)
    # Both ends of the even scale are inside.
    found = calibrate(Painter(lambda s: s / 0.622, lambda s: 0.01), toy(None))
    low, high = found.calibrated.range
    assert found.card.strength_range is not None
    lowest, highest = found.card.strength_range
    assert lowest <= low < high <= highest
    assert (lowest, highest) == (pytest.approx(low, abs=0.01), pytest.approx(high, abs=0.01))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"prompts": ["a", "b"]}, "at least 3 different prompts"),
        ({"prompts": ["a", "a", "a"]}, "got 1"),
        ({"prompts": ["a", "b", "c"], "targets": ["d"]}, "1 targets"),
        ({"strengths": [0.5, 1]}, "one below"),
        ({"strengths": [float("nan"), 1]}, "strength"),
    ],
)
def test_bad_input_is_refused_before_anything_is_drawn(arguments: dict[str, Any], reason: str) -> None:
    painter = Painter(lambda s: s)
    with pytest.raises(MapError, match=reason):
        calibrate(painter, toy(None), **arguments)
    assert not painter.drawn


def test_map_without_prompts_needs_some() -> None:
    with pytest.raises(MapError, match="keeps no prompts"):
        calibrate(Painter(lambda s: s), replace(toy(None), record=FitRecord()))


def test_refined_map_is_calibrated_on_its_captions() -> None:
    record = FitRecord(fitted_by="refinement", target_prompts=(*PROMPTS[:3], ""))
    found = calibrate(Painter(lambda s: s), replace(toy(None), record=record)).calibrated
    assert found.effects[found.strengths.index(1.0)] == pytest.approx(1.0)


def test_progress_ends_at_its_total() -> None:
    seen: list[tuple[int, int]] = []
    calibrate(Painter(lambda s: s / 1.5), toy(None), progress=lambda done, total, _: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1]
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_direction_of_equal_sides_is_zero() -> None:
    same = torch.ones(4, 3)
    assert direction(same, same).tolist() == [0, 0, 0]


def test_away_needs_every_step_to_lead_away() -> None:
    arm = Arm((0.0, 0.5, 1.0, 1.5), (0.0, -0.3, -0.2, -0.9), (1.0,) * 4, (1.0,) * 3)
    assert arm.away() == 0.5


def test_chart_draws_curves_without_an_opposite() -> None:
    assert calibration_chart(WITHOUT_OPPOSITE).tobytes() != calibration_chart(FOUND).tobytes()
