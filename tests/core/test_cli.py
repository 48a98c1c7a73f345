"""The command line: what each command does."""

from __future__ import annotations

import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import COMMANDS, SITES, SOURCE, TARGET, Run, refused
from PIL import Image

from act_core import load_map, save_map
from act_core.models.transformers import TransformersModel
from act_core.records import Fingerprint
from act_core.text import plain_text


def test_fit_inspect_and_generate_on_real_model(run: Run, tmp_path: Path, prompt_set: Path) -> None:
    out = tmp_path / "mood.safetensors"
    status, text, _ = run("fit", "--prompts", prompt_set, "--out", out, "--sites", SITES, "--author", "A")
    assert status == 0
    assert "2 sites, exact walk" in text
    loaded = load_map(out)
    assert (loaded.card.title, loaded.card.author) == ("gloomy to cheerful", "A")
    assert loaded.record.source_prompts == tuple(SOURCE)

    status, text, _ = run("inspect", out, "--model", "default")
    assert status == 0
    text = " ".join(text.split())  # long lines are wrapped
    for expected in ("gloomy to cheerful", "3 source", "3 target", *(s.key for s in loaded.transports), "2 of 2 sites"):
        assert expected in text
    assert "Warning" not in text

    status, text, _ = run("generate", "When I woke up", "--map", out, "--tokens", 4, "--strength", "0")
    assert status == 0
    assert "[strength 0] When I woke up" in text


def test_fit_inspect_and_sweep_on_pipeline(run: Run, tmp_path: Path, tiny_pipeline: Path, pipeline_map: Path) -> None:
    loaded = load_map(pipeline_map)
    assert loaded.components == ("clip_l", "diffusion_model")
    status, text, _ = run("inspect", pipeline_map, "--model", tiny_pipeline)
    assert status == 0
    assert f"{len(loaded)} of {len(loaded)} sites fired" in text
    swept = ("sweep", "--model", tiny_pipeline, "--map", pipeline_map, "--steps", 2, "--strength", 0, "--strength", 4)
    for name, frames in (("a.png", 1), ("a.webp", 2)):
        status, *_ = run(*swept, "--out", tmp_path / name, "rain", "a field in the sun")
        assert status == 0
        with Image.open(tmp_path / name) as picture:
            assert getattr(picture, "n_frames", 1) == frames
            # Two rows, or two columns, of pictures of 16 x 16, each shown eight times as large.
            assert min(picture.size) > 128
            assert max(picture.size) > 256


def test_fit_on_chosen_components_of_pipeline(run: Run, tmp_path: Path, tiny_pipeline: Path, prompt_set: Path) -> None:
    out = tmp_path / "text.safetensors"
    status, *_ = run("fit", "--model", tiny_pipeline, "--prompts", prompt_set, "--out", out, "--components", "text")
    assert status == 0
    assert load_map(out).components == ("clip_l",)


def test_sweep_warns_of_missing_sites(run: Run, tmp_path: Path, tiny_pipeline: Path, pipeline_map: Path) -> None:
    act_map = load_map(pipeline_map)
    first = next(iter(act_map.transports))
    moved = {replace(site, name="gone") if site == first else site: t for site, t in act_map.transports.items()}
    save_map(replace(act_map, transports=moved), tmp_path / "other.safetensors")
    options = ("--map", tmp_path / "other.safetensors", "--out", tmp_path / "a.png", "--steps", 1, "--strength", 1)
    status, text, _ = run("sweep", "rain", "--model", tiny_pipeline, *options)
    assert status == 0
    assert "of which 1 are not in this model (first: clip_l/gone)" in text


def test_fit_from_two_files_with_every_setting(run: Run, tmp_path: Path, tiny: Path) -> None:
    for name, lines in (("sad", SOURCE), ("glad", TARGET)):
        (tmp_path / f"{name}.txt").write_text("\n".join(lines), "utf-8")
    files = ("--source", tmp_path / "sad.txt", "--target", tmp_path / "glad.txt")
    chosen = {
        "sites": "mlp",
        "estimator": "gaussian",
        "order": "simultaneous",
        "support": "observed",
        "interval": "pooled",
        "moved": "both",
        "spatial": "pointwise",
        "seed": "4",
    }
    settings = [part for name, value in chosen.items() for part in (f"--{name}", value)]
    out = tmp_path / "glad.safetensors"
    status, *_ = run("fit", "--model", tiny, *files, "--out", out, "--batch-size", 2, "--memory", 500, *settings)
    assert status == 0
    loaded = load_map(out)
    assert loaded.card.title == "sad to glad"
    assert len(loaded) == 3
    names = [name for name in chosen if name not in ("sites", "seed")]
    assert {name: getattr(loaded.record, name) for name in names} == {name: chosen[name] for name in names}
    assert loaded.record.seed == 4


def test_generate_at_several_strengths(run: Run, tiny: Path, tiny_map: Path) -> None:
    strengths = ("--strength", "0", "--strength", "-1.5")
    _, text, _ = run("generate", "rain", "sun", "--model", tiny, "--map", tiny_map, "--tokens", 3, *strengths)
    assert [line.split("]")[0] + "]" for line in text.splitlines() if line.startswith("[strength")] == [
        "[strength 0]",
        "[strength 0]",
        "[strength -1.5]",
        "[strength -1.5]",
    ]


def test_generate_at_strength_zero_equals_model_without_map(run: Run, tiny: Path, tiny_map: Path) -> None:
    _, text, _ = run("generate", "rain", "--model", tiny, "--map", tiny_map, "--strength", "0", "--tokens", 9)
    plain = TransformersModel.from_pretrained(tiny).generate(["rain"], max_new_tokens=9)[0]
    assert text.endswith(f"[strength 0] rain{plain_text(plain)}\n")


def test_generated_control_characters_do_not_reach_the_terminal(
    run: Run, tiny: Path, tiny_map: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = TransformersModel.generate
    monkeypatch.setattr(TransformersModel, "generate", lambda *a, **b: [" and \x1b[31mred" for _ in real(*a, **b)])
    _, text, _ = run("generate", "rain", "--model", tiny, "--map", tiny_map)
    assert text.endswith("[strength 1] rain and \ufffd[31mred\n")


def test_other_weights_are_a_warning(run: Run, tmp_path: Path, tiny: Path, tiny_map: Path) -> None:
    model = TransformersModel.from_pretrained(tiny)
    model.module.model.norm.weight.data += 0.5
    model.module.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    for command in (("generate", "rain", "--map", tiny_map, "--tokens", 1), ("inspect", tiny_map)):
        status, text, _ = run(*command, "--model", tmp_path)
        assert status == 0
        assert "Warning: The map 'gloomy to cheerful' was fitted on other weights" in text


def test_map_of_other_architecture_is_refused_unless_allowed(
    run: Run, tmp_path: Path, tiny: Path, tiny_map: Path
) -> None:
    act_map, path = load_map(tiny_map), tmp_path / "other.safetensors"
    record = replace(act_map.record, base={"language_model": Fingerprint("gpt2", "", "GPT2LMHeadModel")})
    save_map(replace(act_map, record=record), path)
    for command in (("generate", "rain", "--map", path, "--tokens", 1), ("inspect", path)):
        status, _, errors = run(*command, "--model", tiny)
        assert status == 2
        assert "was fitted on gpt2 (language_model), but this model is llama" in errors
        status, text, _ = run(*command, "--model", tiny, "--allow-other-architecture")
        assert status == 0
        assert "Warning: The map 'gloomy to cheerful' was fitted on gpt2" in text


def test_fit_overwrites_only_if_asked(run: Run, tmp_path: Path, tiny: Path, prompt_set: Path) -> None:
    out = tmp_path / "mood.safetensors"
    command = ("fit", "--model", tiny, "--prompts", prompt_set, "--out", out, "--sites", "mlp")
    assert run(*command)[0] == 0
    before = out.read_bytes()
    refused(run(*command, "--title", "other"), "mood.safetensors", "--overwrite")
    assert out.read_bytes() == before
    assert run(*command, "--title", "other", "--overwrite")[0] == 0
    assert load_map(out).card.title == "other"


def test_installed_command_inspects_map(tiny_map: Path) -> None:
    command = Path(sys.executable).with_name("act-steering")
    done, missing = (
        subprocess.run([command, "inspect", path], capture_output=True, text=True, check=False)
        for path in (tiny_map, "gone.safetensors")
    )
    assert done.returncode == 0
    assert "gloomy to cheerful" in done.stdout
    refused((missing.returncode, missing.stdout, missing.stderr), "gone.safetensors")


def test_help_lists_every_command(run: Run) -> None:
    status, text, _ = run("--help")
    assert status == 0
    assert all(command in text for command in COMMANDS)


def example_of(run: Run, command: str) -> list[str]:
    status, text, _ = run(command, "--help")
    assert status == 0
    _, found, example = text.partition("example:\n")
    assert found
    words = shlex.split(example)
    assert words[:2] == ["act-steering", command]
    return words[1:]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_command_shows_example(run: Run, command: str) -> None:
    assert example_of(run, command)


@pytest.mark.parametrize("command", ["fit", "inspect", "generate"])
def test_example_in_help_works(
    run: Run, command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny: Path, tiny_map: Path
) -> None:
    example = example_of(run, command)
    monkeypatch.chdir(tmp_path)
    if command != "fit":
        Path("cheerful.safetensors").write_bytes(tiny_map.read_bytes())
    status, _, err = run(*example, "--model", tiny)
    assert (status, err) == (0, "")
