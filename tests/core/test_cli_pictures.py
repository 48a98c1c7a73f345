"""The command line: fitting a map from a folder of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import Run, refused
from PIL import Image

from act_core import load_map
from act_core.models.picture_loss import PictureModel


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "my style"
    folder.mkdir()
    for number in range(4):
        values = torch.randint(256, (20, 30, 3), generator=torch.Generator().manual_seed(number), dtype=torch.uint8)
        Image.fromarray(values.numpy()).save(folder / f"{number}.png")
    return folder


def test_fit_from_pictures(run: Run, tmp_path: Path, tiny_pipeline: Path, pictures: Path) -> None:
    out = tmp_path / "style.safetensors"
    fit = ("fit", "--model", tiny_pipeline, "--size", 16, 16, "--target-images", pictures, "--steps", 3, "--out", out)
    status, text, _ = run(*fit)
    assert status == 0
    assert "refined for 3 steps on 4 samples" in text
    loaded = load_map(out)
    assert loaded.card.title == "my style"
    assert (loaded.record.fitted_by, loaded.record.target_count) == ("refinement", 4)
    status, text, _ = run("inspect", out)
    assert status == 0
    assert "by refinement" in text
    swept = ("sweep", "--model", tiny_pipeline, "--map", out, "--steps", 2, "--strength", 1, "--out")
    assert run(*swept, tmp_path / "a.png", "rain")[0] == 0


def test_captions_are_kept_in_the_map(run: Run, tmp_path: Path, tiny_pipeline: Path, pictures: Path) -> None:
    for number in range(4):
        (pictures / f"{number}.txt").write_text(f"thing {number}")
    out = tmp_path / "style.safetensors"
    fit = ("fit", "--model", tiny_pipeline, "--size", 16, 16, "--target-images", pictures, "--captions", "--steps", 1)
    assert run(*fit, "--out", out)[0] == 0
    assert load_map(out).record.target_prompts == tuple(f"thing {number}" for number in range(4))


def test_transport_from_pictures(run: Run, tmp_path: Path, tiny_pipeline: Path, pictures: Path) -> None:
    out = tmp_path / "style.safetensors"
    transport = (
        "--target-images",
        pictures,
        "--estimator",
        "transport",
        "--levels",
        "0.3, 0.9",
        "--sites",
        "attention",
    )
    status, text, _ = run("fit", "--model", tiny_pipeline, "--size", 16, 16, *transport, "--out", out)
    assert status == 0
    assert "Note: source pictures drawn by the model without captions." in text
    loaded = load_map(out)
    assert loaded.levels == (0.9, 0.3)
    assert (loaded.record.fitted_by, loaded.record.source_count, loaded.record.target_count) == ("transport", 4, 4)
    status, text, _ = run("inspect", out)
    assert status == 0
    assert "0.9, 0.3" in text
    swept = ("sweep", "--model", tiny_pipeline, "--map", out, "--steps", 2, "--strength", 1, "--out")
    assert run(*swept, tmp_path / "a.png", "rain")[0] == 0


def test_source_pictures_and_estimator(run: Run, tmp_path: Path, tiny_pipeline: Path, pictures: Path) -> None:
    others = tmp_path / "others"
    others.mkdir()
    for number in range(3):
        Image.new("RGB", (20, 20), (0, 80 * number, 0)).save(others / f"{number} \N{CAT FACE}.png")
    out = tmp_path / "style.safetensors"
    both = ("--target-images", pictures, "--source-images", others, "--estimator", "mean", "--levels", "0.5")
    assert run("fit", "--model", tiny_pipeline, "--size", 16, 16, *both, "--sites", "attention", "--out", out)[0] == 0
    record = load_map(out).record
    assert (record.estimator, record.source_count) == ("mean", 3)


@pytest.mark.parametrize(("options", "rows"), [((), 16), (("--batch-size", 32), 20), (("--batch-size", 5), 5)])
def test_batch_size_of_a_refinement(
    run: Run,
    tmp_path: Path,
    tiny_pipeline: Path,
    pictures: Path,
    options: tuple[object, ...],
    rows: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for number in range(4, 20):
        Image.new("RGB", (20, 20), (0, 10 * number, 0)).save(pictures / f"{number}.png")
    loss, seen = PictureModel.loss, list[int]()

    def recorded(model: PictureModel, samples: Sequence[Any], generator: torch.Generator) -> torch.Tensor:
        seen.append(len(samples))
        return loss(model, samples, generator)

    monkeypatch.setattr(PictureModel, "loss", recorded)
    fit = ("fit", "--model", tiny_pipeline, "--size", 16, 16, "--target-images", pictures, "--no-name-pictures")
    assert run(*fit, "--steps", 1, *options, "--out", tmp_path / "style.safetensors")[0] == 0
    assert max(seen) == rows


def test_model_that_cannot_be_refined_is_fitted_by_transport(
    run: Run, tmp_path: Path, tiny_pipeline: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = PictureModel.loss
    monkeypatch.setattr(PictureModel, "loss", lambda *arguments: loss(*arguments).detach())
    out = tmp_path / "style.safetensors"
    fit = ("fit", "--model", tiny_pipeline, "--size", 16, 16, "--target-images", pictures, "--sites", "attention")
    status, text, _ = run(*fit, "--out", out)
    assert status == 0
    assert "Note: fitted by transport rather than refined, since this model cannot be differentiated" in text
    assert load_map(out).record.fitted_by == "transport"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (["--estimator", "transport", "--levels", "0.5, 1.5"], "The noise level is 1.5"),
        (["--estimator", "transport", "--levels", "high"], "give numbers from 0 to 1"),
        (["--estimator", "transport", "--source-images", "nowhere"], "nowhere is not a folder"),
        (["--estimator", "transport", "--steps", "3"], "--steps has no effect"),
        (["--levels", "0.5"], "--levels has no effect on a refinement"),
        (["--source-images", "here"], "--source-images has no effect on a refinement"),
        (["--target-images", "nowhere"], "nowhere is not a folder"),
        (["--captions"], "0.png has no caption"),
        (["--steps", "0"], "steps is 0"),
        (["--model", "default"], "needs a text-to-image pipeline"),
        (["--prompts", "gloomy_to_cheerful"], "not both"),
        (["--estimator", "end_to_end"], "end_to_end is for prompts"),
        (["--estimator", "project"], "Gates and projections"),
        (["--estimator", "transport", "--support", "gated"], "Gates and projections"),
    ],
)
def test_bad_pictures_write_nothing(
    run: Run, tmp_path: Path, tiny_pipeline: Path, pictures: Path, changes: list[str], reason: str
) -> None:
    out = tmp_path / "style.safetensors"
    fit = ("fit", "--model", tiny_pipeline, "--size", 16, 16, "--target-images", pictures, "--out", out)
    result = run(*fit, *changes)
    refused(result, reason)
    assert "Loading" not in result[1]  # which may take minutes
    assert not out.exists()
