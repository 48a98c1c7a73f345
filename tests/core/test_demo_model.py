"""The shipped text-to-image model, and the effect of a map on it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from act_core import ActMap, fit, load_map, save_map
from act_core.demo import pictures, shipped, slider
from act_core.demo.statistics import interval
from act_core.models.diffusers import DiffusersModel
from act_core.models.sweep import sweep
from act_core.plots import grid, save_animation
from act_core.prompts import load_prompt_set

FOLDER = shipped("demo_model")
PROMPTS = load_prompt_set(shipped("prompt_sets") / slider.PROMPT_SET)
SUBJECTS = pictures.SUBJECTS[:6]


@pytest.fixture(scope="module")
def model() -> DiffusersModel:
    return pictures.demo_model()


@pytest.fixture(scope="module")
def ink(model: DiffusersModel, tmp_path_factory: pytest.TempPathFactory) -> ActMap:
    """A map, fitted, saved and loaded again."""
    act_map = fit(model, PROMPTS.source[:48], PROMPTS.target[:48], batch_size=48)
    return load_map(save_map(act_map, tmp_path_factory.mktemp("maps") / "ink.safetensors"))


def colour(images: list[Image.Image]) -> np.ndarray:
    """Mean difference between the strongest and the weakest of red, green and blue, for each picture."""
    return np.array([(np.ptp(np.asarray(image, dtype=float), axis=2) / 255).mean() for image in images])


def test_folder_is_small_safe_and_half_precision() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 28e6
    assert not [path.name for path in files if path.suffix in (".bin", ".pt", ".ckpt", ".pkl", ".py")]
    weights = [path for path in files if path.suffix == ".safetensors"]
    assert {path.parent.name for path in weights} == {"transformer", "vae", "text_encoder"}
    for path in weights:
        with safe_open(path, framework="pt") as file:
            assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"F16"}  # noqa: SIM118


def test_folder_names_standard_classes() -> None:
    index = json.loads((FOLDER / "model_index.json").read_text("utf-8"))
    classes = {name: entry[1] for name, entry in index.items() if isinstance(entry, list) and entry[0]}
    assert classes["transformer"] == "SD3Transformer2DModel"
    assert classes["vae"] == "AutoencoderTiny"
    assert classes["text_encoder"] == "CLIPTextModelWithProjection"
    assert classes["scheduler"] == "FlowMatchEulerDiscreteScheduler"


def test_model_draws_prompted_subject_and_style(model: DiffusersModel) -> None:
    coloured = model.generate([f"{name}, flat sticker" for name in SUBJECTS], guidance=3.0)
    black = model.generate([f"{name}, black ink icon" for name in SUBJECTS], guidance=3.0)
    assert {image.size for image in coloured} == {(64, 64)}
    assert colour(black).max() < colour(coloured).mean() / 2
    # An orange is orange and a leaf is green, whatever the noise.
    texts = ("tangerine", "four leaf clover")
    drawn = (model.generate([text] * 4, guidance=3.0) for text in texts)
    orange, leaf = (np.mean([np.asarray(image) for image in images], (0, 1, 2)) for images in drawn)
    assert orange[0] > orange[1] > orange[2]
    assert leaf[1] == max(leaf)


def test_colour_falls_as_strength_rises(model: DiffusersModel, ink: ActMap) -> None:
    images = sweep(model, ink, SUBJECTS, (0.0, 0.5, 1.0), guidance=3.0)
    none, half, full = (colour(list(column)).mean() for column in zip(*images, strict=True))
    assert full < half < none
    # Prompting for ink leaves at most a tenth; a third is far below chance.
    assert full < none / 3


def test_strength_zero_draws_unsteered_picture(model: DiffusersModel, ink: ActMap) -> None:
    plain = [np.asarray(image) for image in model.generate(SUBJECTS, guidance=3.0)]
    with model.steer(ink, 0.0):
        zero = [np.asarray(image) for image in model.generate(SUBJECTS, guidance=3.0)]
    np.testing.assert_array_equal(plain, zero)


def test_subjects_are_held_out() -> None:
    used = {prompt.partition(",")[0] for prompt in (*PROMPTS.source, *PROMPTS.target)}
    assert not used & set(pictures.SUBJECTS)
    assert len(PROMPTS.source) == len(PROMPTS.target) == 128


def test_grid_holds_every_picture_unchanged(model: DiffusersModel) -> None:
    images = model.generate(SUBJECTS[:2], steps=1)
    sheet = np.asarray(grid([images], ["a row"], ["one", "two"]))
    for image in images:
        wanted = np.asarray(image)
        places = [
            (y, x)
            for y in range(sheet.shape[0] - 63)
            for x in range(sheet.shape[1] - 63)
            if (sheet[y, x] == wanted[0, 0]).all() and (sheet[y : y + 64, x : x + 64] == wanted).all()
        ]
        assert places


def test_grid_cuts_long_text_at_end_of_row() -> None:
    picture = Image.new("RGB", (64, 64), "red")
    sheet = np.asarray(grid([[picture], [picture]], ["word " * 200, ""], ["one"]))
    below = sheet[-64:, :100]  # beside the second row
    assert (below == 255).all()
    assert not (sheet[:-70, :100] == 255).all()


def test_save_animation_wraps_wide_rows(tmp_path: Path) -> None:
    row = [Image.new("RGB", (1024, 8), colour) for colour in ("red", "blue")]
    save_animation([row] * 17, ["0", "1"], tmp_path / "a.webp")
    with Image.open(tmp_path / "a.webp") as animation:
        assert animation.width <= 16383
        assert animation.height > 2 * 8
        assert getattr(animation, "n_frames", 1) == 2


def test_generate_draws_same_picture_from_same_seed(model: DiffusersModel) -> None:
    before = torch.get_rng_state()
    one, two, other = (np.asarray(model.generate(["cat"], seed=seed)[0]) for seed in (3, 3, 4))
    assert (one == two).all()
    assert (one != other).any()
    assert torch.equal(torch.get_rng_state(), before)


def test_interval_contains_mean() -> None:
    low, high = interval(np.array([0.0, 1.0, 2.0, 3.0]))
    assert low < 1.5 < high
