"""Steered text-to-image pipelines, on tiny random ones of every kind."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import assert_identical, keys
from pipelines import (
    PIPELINES,
    SIZE,
    SOURCE,
    all_swapped,
    fitted,
    pixels,
)
from torch import Tensor

from act_core import MapError, load_map, save_map
from act_core.interception import intercepted
from act_core.models.diffusers import DIFFUSION_MODEL, DiffusersModel
from act_core.models.sweep import sweep


def test_steer_changes_nothing_at_strength_zero_and_after_block(model: DiffusersModel) -> None:
    before = pixels(model, guidance=3.0)
    act_map = fitted(model)
    with model.steer(act_map, 0.0):
        np.testing.assert_array_equal(pixels(model, guidance=3.0), before)
    with model.steer(act_map, 4.0) as steering:
        assert np.abs(pixels(model, guidance=3.0) - before).max() > 0
    assert len(steering.coverage.fired) == len(act_map)
    np.testing.assert_array_equal(pixels(model, guidance=3.0), before)
    assert all_swapped(model) == []


@pytest.mark.parametrize("kind", [kind for kind in PIPELINES if kind != "flux"])
@pytest.mark.parametrize("branch", ["positive", "negative"])
def test_steer_steers_only_rows_of_branch(pipeline: Callable[[str], Any], kind: str, branch: Any) -> None:
    model = DiffusersModel(pipeline(kind), size=SIZE)
    every = keys(fitted(model))
    # Not the first of the diffusion model, which does not know the prompt yet: there the map is the identity.
    text, image = next(key for key in every if key.startswith("clip_l")), every[-1]
    for key in (text, image):
        act_map = fitted(model).restrict(key)
        outputs: list[list[Tensor]] = []
        component, name = key.split("/")
        module = model.modules[component].get_submodule(name)
        for strength in (0.0, 1.0):
            seen: list[Tensor] = []

            def note(output: Tensor, seen: list[Tensor] = seen) -> Tensor:
                seen.append(output.clone())
                return output

            # Inside of what steers, as the model itself sees it.
            with model.steer(act_map, strength, branch), intercepted({module: note}):
                pixels(model, guidance=3.0, negative="dull")
            outputs.append(seen)
        calls = zip(*outputs, strict=True)
        halves = [pair for call in calls for pair in zip(*(output.chunk(2) for output in call), strict=True)]
        moved = [not torch.equal(*pair) for pair in halves]
        if key is text:  # one call for the positive branch, then one for the negative
            assert moved == ([True, True, False, False] if branch == "positive" else [False, False, True, True])
        else:  # negative rows come first; the first step of several
            assert moved[:2] == ([False, True] if branch == "positive" else [True, False])


def test_steer_without_guidance_treats_all_rows_as_positive(unet: DiffusersModel) -> None:
    act_map = fitted(unet)
    before = pixels(unet, guidance=1.0)
    with unet.steer(act_map, 4.0, "negative") as steering:
        np.testing.assert_array_equal(pixels(unet, guidance=1.0), before)
    assert steering.coverage.fired == ()
    with unet.steer(act_map, 4.0, "both"):
        both = pixels(unet, guidance=1.0)
    with unet.steer(act_map, 4.0):
        np.testing.assert_array_equal(pixels(unet, guidance=1.0), both)


@pytest.mark.parametrize("branch", ["positive", "negative"])
def test_fit_on_steered_model_treats_all_rows_as_positive(unet: DiffusersModel, branch: Any) -> None:
    act_map = fitted(unet)
    wanted = act_map
    if branch == "positive":
        with unet.steer(act_map, 4.0, "both"):
            wanted = fitted(unet)
    for draws_before in (False, True):
        with unet.steer(act_map, 4.0, branch):
            if draws_before:
                pixels(unet, guidance=3.0)
            assert_identical(fitted(unet), wanted)


@pytest.mark.parametrize("kind", ["stable diffusion", "flux"])
def test_check_reports_absent_branch(pipeline: Callable[[str], Any], kind: str) -> None:
    model = DiffusersModel(pipeline(kind))
    with model.steer(fitted(model), 1.0, "negative") as steering:
        pixels(model, guidance=1.0)
        with pytest.raises(MapError, match="is absent without guidance"):
            steering.check()


@pytest.mark.parametrize("kind", ["stable diffusion", "flux"])
def test_compiled_pipeline_behaves_like_plain_one(pipeline: Callable[[str], Any], kind: str) -> None:
    plain = DiffusersModel(pipeline(kind))
    act_map = fitted(plain)
    compiled = copy.copy(pipeline(kind))
    for name, part in compiled.components.items():
        if isinstance(part, torch.nn.Module) and name != "vae":
            setattr(compiled, name, torch.compile(part, backend="eager"))
    model = DiffusersModel(compiled)
    assert list(model.modules) == list(plain.modules)
    assert model.steer(act_map).warnings == ()
    assert keys(fitted(model)) == keys(act_map)
    with plain.steer(act_map, 2.0):
        wanted = pixels(plain)
    with model.steer(act_map, 2.0) as steering:
        assert np.array_equal(pixels(model), wanted)
        assert not steering.coverage.silent


def test_steer_accepts_strength_for_each_component(unet: DiffusersModel) -> None:
    act_map = fitted(unet)
    with unet.steer(act_map, {"clip_l": 0.0, DIFFUSION_MODEL: 3.0}):
        one = pixels(unet)
    with unet.steer(act_map.restrict(f"{DIFFUSION_MODEL}/*"), 3.0):
        np.testing.assert_array_equal(pixels(unet), one)


def test_generate_draws_same_picture_alone_and_in_batch(unet: DiffusersModel) -> None:
    together = pixels(unet, SOURCE[:2], seed=7)
    alone = pixels(unet, SOURCE[1:2], seed=8)
    assert np.abs(together[1] - alone[0]).max() <= 1  # rounding


def test_loaded_map_steers_like_fitted_one(model: DiffusersModel, tmp_path: Path) -> None:
    act_map = fitted(model)
    loaded = load_map(save_map(act_map, tmp_path / "map.safetensors"))
    with model.steer(act_map, 2.0):
        steered = pixels(model)
    with model.steer(loaded, 2.0) as steering:
        np.testing.assert_array_equal(pixels(model), steered)
    assert steering.warnings == ()


def test_steer_refuses_map_of_another_pipeline(unet: DiffusersModel, pipeline: Callable[[str], Any]) -> None:
    other = DiffusersModel(pipeline("one encoder"), size=SIZE, components="model")
    with pytest.raises(MapError, match="none of its") as caught:
        unet.steer(fitted(other))
    assert "\n" not in str(caught.value)


def test_generate_accepts_numbers_of_numpy_and_calls_step(pipeline: Callable[[str], Any]) -> None:
    model = DiffusersModel(pipeline("one encoder"), size=SIZE)  # some schedulers call the model more often
    steps: list[int] = []
    plain = model.generate(["rain"], steps=2, guidance=1.5, seed=3)
    numbers: dict[str, Any] = {"steps": np.int64(2), "guidance": np.float32(1.5), "seed": np.int64(3)}
    assert model.generate(["rain"], step=lambda: steps.append(1), **numbers) == plain
    assert len(steps) == 2

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.generate(["rain"], steps=2, step=stop)


def test_sweep_returns_row_for_each_prompt_and_column_for_each_strength(unet: DiffusersModel) -> None:
    act_map = fitted(unet)
    rows = sweep(unet, act_map, SOURCE[:2], [0.0, 4.0], steps=2)
    assert [len(row) for row in rows] == [2, 2]
    assert [row[0] for row in rows] == unet.generate(SOURCE[:2], steps=2)
    assert rows[0][1] != rows[0][0]
    with pytest.raises(MapError, match="The list of strengths is empty"):
        sweep(unet, act_map, SOURCE[:2], [])
