"""The command line: calibrating a map."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from command_line import Run, refused

from act_core import load_map
from act_core.calibrating import MIN_SUBJECTS


@pytest.fixture
def sides(tmp_path: Path) -> tuple[Path, Path]:
    """Files of subjects and targets."""
    texts = ("rain", "snow", "wind", "fog"), ("sun, rain", "sun, snow", "sun, wind", "sun, fog")
    files = tmp_path / "prompts.txt", tmp_path / "targets.txt"
    for file, lines in zip(files, texts, strict=True):
        file.write_text("\n".join(lines))
    return files


def test_calibrate_writes_a_map_and_a_chart(
    run: Run, tmp_path: Path, tiny_pipeline: Path, pipeline_map: Path, sides: tuple[Path, Path]
) -> None:
    out, chart = tmp_path / "out.safetensors", tmp_path / "curve.png"
    prompts, _ = sides
    options = ("--model", tiny_pipeline, "--steps", 2, "--prompts", prompts, "--out", out, "--chart", chart)
    status, text, err = run("calibrate", pipeline_map, *options)
    assert (status, err) == (0, "")
    assert "0 to 1 is strength 0 to" in text
    found = load_map(out)
    assert found.card.strength_range is not None
    assert found.card.strength_range[1] == pytest.approx(found.calibrated.range[1], abs=0.01)
    assert chart.read_bytes().startswith(b"\x89PNG")
    status, text, _ = run("inspect", out)
    assert "calibrated" in text
    refused(run("calibrate", pipeline_map, *options), "already exists")


def test_calibrate_replaces_the_map_itself_only_when_asked(
    run: Run, tmp_path: Path, tiny_pipeline: Path, pipeline_map: Path, sides: tuple[Path, Path]
) -> None:
    map_file = tmp_path / "map.safetensors"
    map_file.write_bytes(pipeline_map.read_bytes())
    options = ("--model", tiny_pipeline, "--steps", 1, "--prompts", sides[0])
    refused(run("calibrate", map_file, *options), "already exists", "--overwrite")
    assert run("calibrate", map_file, *options, "--overwrite")[0] == 0
    assert load_map(map_file).calibrated.range[1] > 0
    assert {file.name for file in tmp_path.iterdir()} == {"map.safetensors", "prompts.txt", "targets.txt"}


def test_outputs_are_checked_before_the_model_is_loaded(run: Run, tmp_path: Path, pipeline_map: Path) -> None:
    given = ("calibrate", pipeline_map, "--model", tmp_path / "gone", "--out")
    for options, reason in (
        ((tmp_path / "out.txt",), "out.txt is not a name for a map; it must end in .safetensors"),
        ((tmp_path / "out.safetensors", "--chart", tmp_path / "gone" / "a.png"), "a.png cannot be written"),
    ):
        result = run(*given, *options)
        refused(result, reason)
        assert "Loading" not in result[1]


def test_chart_that_cannot_be_written_keeps_the_old_one(
    run: Run,
    tmp_path: Path,
    tiny_pipeline: Path,
    pipeline_map: Path,
    sides: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, chart = tmp_path / "out.safetensors", tmp_path / "curve.png"
    chart.write_bytes(b"what was there")
    sync = os.fsync

    def full(file: int) -> None:
        if out.exists():
            raise OSError(28, "No space left on device")
        sync(file)

    monkeypatch.setattr(os, "fsync", full)
    options = ("--model", tiny_pipeline, "--steps", 1, "--prompts", sides[0], "--out", out, "--chart", chart)
    refused(run("calibrate", pipeline_map, *options), "No space left")
    assert load_map(out).calibration is not None
    assert chart.read_bytes() == b"what was there"


def test_failed_calibration_leaves_the_map_as_it_was(
    run: Run, tmp_path: Path, tiny: Path, tiny_pipeline: Path, pipeline_map: Path, sides: tuple[Path, Path]
) -> None:
    map_file = tmp_path / "map.safetensors"
    map_file.write_bytes(pipeline_map.read_bytes())
    (few := tmp_path / "few.txt").write_text("rain\nsnow")
    given = ("calibrate", map_file, "--overwrite")
    refused(run(*given, "--model", tiny_pipeline, "--prompts", few), f"at least {MIN_SUBJECTS} different prompts")
    refused(run(*given, "--model", tiny_pipeline, "--prompts", few, "--targets", sides[1]), "different prompts")
    refused(run(*given, "--model", tiny, "--prompts", sides[0]), "not a pipeline folder")
    refused(run(*given, "--model", tiny_pipeline, "--chart", tmp_path / "a.txt"), "must end in .png")
    assert map_file.read_bytes() == pipeline_map.read_bytes()
