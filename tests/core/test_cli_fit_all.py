"""The command line: ``fit-all``."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import Run, refused
from helpers import assert_identical, largest_difference

from act_core import ActMap, load_map

SCENES = ["a cat", "a bridge", "old men", "plums", "rain"]


def write_set(path: Path, thing: str, count: int = len(SCENES)) -> None:
    """A prompt set whose target lacks these words at the end of each scene."""
    scenes = SCENES[:count]
    path.write_text(
        "\n".join(["[source] with", *(f"{s}, {thing}" for s in scenes), "[target] without", *scenes]), "utf-8"
    )


@pytest.fixture
def prompt_sets(tmp_path: Path) -> Path:
    """A folder with a look, a removal, and a set that is neither."""
    folder = tmp_path / "prompt_sets"
    folder.mkdir()
    write_set(folder / "look_plain_grey.txt", "grey")
    write_set(folder / "remove_hat.txt", "hat")
    write_set(folder / "gloomy_to_cheerful.txt", "sadly")
    return folder


def test_fit_all_fits_looks_and_gated_removals(
    run: Run, tmp_path: Path, tiny_pipeline: Path, prompt_sets: Path
) -> None:
    out = tmp_path / "maps"
    status, text, err = run("fit-all", "--model", tiny_pipeline, "--prompt-sets", prompt_sets, "--out", out)
    assert (status, err) == (0, "")
    assert sorted(path.stem for path in out.iterdir()) == ["look_plain_grey", "remove_hat"]
    look, removal = (load_map(path) for path in sorted(out.iterdir()))
    assert (look.card.title, removal.card.title) == ("plain grey", "remove hat")
    assert look.components == removal.components == ("clip_l", "diffusion_model")
    assert (look.record.estimator, removal.record.estimator) == ("linear", "project")
    assert all(transport.gate is None for transport in look.transports.values())
    assert all(transport.gate is not None for transport in removal.transports.values())
    assert f"[1/2] look_plain_grey: {len(look)} sites" in text
    assert f"[2/2] remove_hat: {len(removal)} sites" in text


def test_fit_all_draws_noise_and_records_by_its_seed(
    run: Run, tmp_path: Path, tiny_pipeline: Path, prompt_sets: Path
) -> None:
    (prompt_sets / "remove_hat.txt").unlink()
    maps: list[ActMap] = []
    for options in ((), ("--seed", 3), ("--seed", 0)):
        arguments = (
            "fit-all",
            "--model",
            tiny_pipeline,
            "--prompt-sets",
            prompt_sets,
            "--components",
            "model",
            *options,
        )
        out = tmp_path / str(len(maps))
        assert run(*arguments, "--out", out)[0] == 0
        maps.append(load_map(out / "look_plain_grey.safetensors"))
    default, other, zero = maps
    assert [act_map.record.seed for act_map in maps] == [0, 3, 0]
    assert_identical(default, zero)
    assert largest_difference(default, other) > 0


def test_fit_all_skips_existing_maps_unless_overwriting(
    run: Run, tmp_path: Path, tiny_pipeline: Path, prompt_sets: Path
) -> None:
    out = tmp_path / "maps"
    out.mkdir()
    (out / "remove_hat.safetensors").write_bytes(b"mine")
    fitted = ("fit-all", "--prompt-sets", prompt_sets, "--out", out, "--components", "text")
    status, text, _ = run(*fitted, "--model", tiny_pipeline)
    assert status == 0
    assert "Fitted 1, skipped 1 that exist" in text
    assert (out / "remove_hat.safetensors").read_bytes() == b"mine"
    # Nothing is left to fit, so that the model is not even loaded.
    assert run(*fitted, "--model", tmp_path / "nowhere")[0] == 0
    assert run(*fitted, "--model", tiny_pipeline, "--overwrite")[0] == 0
    assert load_map(out / "remove_hat.safetensors").components == ("clip_l",)


def test_fit_all_names_prompt_set_that_fails_and_keeps_earlier_maps(
    run: Run, tmp_path: Path, tiny_pipeline: Path, prompt_sets: Path
) -> None:
    write_set(prompt_sets / "remove_hat.txt", "hat", count=2)
    out = tmp_path / "maps"
    fitted = ("fit-all", "--model", tiny_pipeline, "--prompt-sets", prompt_sets, "--out", out, "--components", "text")
    refused(run(*fitted), "remove_hat.txt")
    assert [path.name for path in out.iterdir()] == ["look_plain_grey.safetensors"]


def test_fit_all_refuses_what_it_cannot_use(
    run: Run, tmp_path: Path, tiny: Path, tiny_pipeline: Path, prompt_sets: Path
) -> None:
    def fitted(model: Path = tiny_pipeline, sets: Path = prompt_sets, out: str = "maps") -> tuple[int, str, str]:
        return run("fit-all", "--model", model, "--prompt-sets", sets, "--out", tmp_path / out)

    refused(fitted(model=tiny), "not a pipeline folder")
    refused(fitted(sets=tmp_path), "has no prompt sets for pictures", "look_*.txt")
    refused(fitted(sets=tmp_path / "gone"), "gone is not a folder")
    refused(fitted(out="a/b/c"), "a/b/c")
    (tmp_path / "file").touch()
    refused(fitted(out="file"), "file")
    (prompt_sets / "look_bad.txt").write_text("a prompt without a heading", "utf-8")
    refused(fitted(), "look_bad.txt")
