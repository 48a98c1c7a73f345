"""Loading text-to-image pipelines, and the input that they refuse."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pipelines import (
    SIZE,
    TOKENS,
    fitted,
    one_encoder,
    pixels,
    stable_diffusion,
)

from act_core import MapError
from act_core.models.diffusers import DiffusersModel


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pipelines") / "tiny"
    one_encoder().save_pretrained(path)
    return path


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def test_from_pretrained_loads_saved_pipeline(folder: Path) -> None:
    loaded = DiffusersModel.from_pretrained(folder, size=SIZE)
    np.testing.assert_array_equal(pixels(loaded), pixels(DiffusersModel(one_encoder(), size=SIZE)))


def test_from_pretrained_loads_stable_diffusion(tmp_path: Path) -> None:
    stable_diffusion().save_pretrained(tmp_path / "sd")
    loaded = DiffusersModel.from_pretrained(tmp_path / "sd", size=SIZE)
    np.testing.assert_array_equal(pixels(loaded), pixels(DiffusersModel(stable_diffusion(), size=SIZE)))


def refused(match: str, make: Callable[[], object]) -> None:
    with pytest.raises(MapError, match=match) as caught:
        make()
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


def test_from_pretrained_refuses_folder_without_pipeline(tmp_path: Path) -> None:
    refused("not a pipeline folder", lambda: DiffusersModel.from_pretrained(tmp_path))
    (tmp_path / "model_index.json").write_text("{")
    refused("is damaged", lambda: DiffusersModel.from_pretrained(tmp_path))


def test_from_pretrained_names_missing_part(copied: Path) -> None:
    shutil.rmtree(copied / "vae")
    refused("no folder 'vae'", lambda: DiffusersModel.from_pretrained(copied))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_from_pretrained_refuses_unknown_kind(copied: Path) -> None:
    edit(copied / "model_index.json", _class_name="AudioLDMPipeline")
    refused("AudioLDMPipeline, which cannot be steered", lambda: DiffusersModel.from_pretrained(copied))


def test_from_pretrained_reports_unknown_scheduler_in_one_sentence(copied: Path) -> None:
    edit(copied / "model_index.json", scheduler=["diffusers", "NoSuchScheduler"])
    refused("cannot be loaded", lambda: DiffusersModel.from_pretrained(copied))


def test_from_pretrained_reports_wrong_shapes_in_one_sentence(copied: Path) -> None:
    edit(copied / "transformer" / "config.json", num_attention_heads=4)
    refused("cannot be loaded", lambda: DiffusersModel.from_pretrained(copied))


@pytest.mark.parametrize(
    ("size", "match"), [((0, 16), "multiples"), ((18, 16), "multiples of 4"), ((16, 4096), "too large")]
)
def test_size_that_model_cannot_draw_is_refused(
    pipeline: Callable[[str], Any], size: tuple[int, int], match: str
) -> None:
    refused(match, lambda: DiffusersModel(pipeline("one encoder"), size=size))


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"prompts": []}, "list of prompts is empty"),
        ({"prompts": "rain"}, r"takes a list of prompts; write \['rain'\]"),
        ({"prompts": [None]}, "Prompt 1 is None"),
        ({"negative": None}, "is None, not a text"),
        ({"steps": 0}, "at least 1"),
        ({"steps": 1.5}, r"steps is 1\.5"),
        ({"guidance": float("nan")}, "finite"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_generate_refuses_settings_in_one_sentence(unet: DiffusersModel, settings: dict[str, Any], match: str) -> None:
    values: dict[str, Any] = {"prompts": ["rain"], **settings}
    refused(match, lambda: unet.generate(**values))


def test_generate_warns_of_truncated_prompt(model: DiffusersModel, caplog: pytest.LogCaptureFixture) -> None:
    text = "a" * (TOKENS + 10)
    with caplog.at_level(logging.WARNING, "act_core"):
        long = pixels(model, [text])
        assert f"{text!r} has {TOKENS + 10} tokens, of which a text encoder reads the first {TOKENS}" in caplog.text
        caplog.clear()
        model.batches([text, "rain"], 2)
        assert caplog.text.count("reads the first") == 1
    reads_on = model.name in ("sd3", "flux")  # their T5
    assert (pixels(model, [text + "b"]) == long).all() != reads_on


def test_unknown_components_and_branches_are_refused(unet: DiffusersModel) -> None:
    refused("components is 'sound'", lambda: DiffusersModel(unet.pipeline, components="sound"))  # pyright: ignore
    refused("branch is 'left'", lambda: unet.steer(fitted(unet), 1.0, "left"))  # pyright: ignore
