"""The command line: calibrating a map."""

from __future__ import annotations

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
