"""The command line and the terminal: encodings, start-up, interrupts, and commands that can be pasted."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import COMMANDS, Run, refused
from helpers import tiny_llama

from act_core import ActMap, load_map, save_map
from act_core.cli.arguments import Parser, command_name, quoted, words
from act_core.interrupts import deferred
from act_core.models.transformers import TransformersModel

CHINESE = "静かな海 猫"
ASCII_ONLY = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def started(*arguments: object, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """``python -m act_core`` in a separate process."""
    command = [sys.executable, "-m", "act_core", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, check=False, env={**os.environ, **environment})


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_imports_no_torch(command: str) -> None:
    script = (
        "import sys\nfrom act_core.cli import main\ntry:\n    main(sys.argv[1:])\nexcept SystemExit as stop:\n"
        "    assert stop.code == 0\nassert not {'torch', 'numpy', 'transformers', 'diffusers'} & set(sys.modules)\n"
    )
    options = [command, "--help"] if command else ["--help"]
    run = subprocess.run([sys.executable, "-c", script, *options], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.startswith("usage: act-steering")


@pytest.mark.parametrize("environment", [{"PYTHONIOENCODING": "cp1252"}, ASCII_ONLY], ids=["cp1252", "LC_ALL=C"])
def test_inspect_replaces_characters_that_terminal_lacks(
    tmp_path: Path, fitted: ActMap, environment: dict[str, str]
) -> None:
    path = save_map(fitted, tmp_path / "sea.safetensors", title=CHINESE)
    run = started("inspect", path, **environment)
    assert (run.returncode, run.stderr) == (0, b"")
    assert b"title           ???? ?" in run.stdout.replace(b"\r", b"")
    missing = started("inspect", tmp_path / f"{CHINESE}.safetensors", **environment)
    assert missing.returncode == 2
    assert missing.stderr.startswith(b"act-steering: ")


def test_words_are_utf_8_whatever_the_locale() -> None:
    """Under ``LC_ALL=C`` Python decodes arguments as ASCII, and other bytes as halves of surrogate pairs."""
    assert words(CHINESE.encode().decode("ascii", "surrogateescape")) == CHINESE
    assert words("a cat") == "a cat"


def test_module_runs_as_command() -> None:
    run = started("--version")
    assert run.returncode == 0
    assert run.stdout.startswith(b"act-steering 0.")


@pytest.mark.parametrize("text", ["-1e-1", "-.5", "-2", "-3E+0"])
def test_negative_numbers_are_strengths(text: str) -> None:
    parser = Parser()
    parser.add_argument("--strength", type=float)
    assert parser.parse_args(["--strength", text]).strength == float(text)


def test_generate_at_negative_strength_with_exponent(run: Run, tiny: Path, tiny_map: Path) -> None:
    status, text, _ = run("generate", "rain", "--model", tiny, "--map", tiny_map, "--tokens", 1, "--strength", "-1e-1")
    assert status == 0
    assert "[strength -0.1] rain" in text


@pytest.mark.parametrize("text", ["abc", "-1", "1.5", "", str(2**63)])
def test_bad_seed_is_named(run: Run, tiny: Path, tiny_map: Path, text: str) -> None:
    result = run("generate", "rain", "--model", tiny, "--map", tiny_map, f"--seed={text}")
    refused(result, f"--seed: {text!r} is not a whole number from 0 to")


def test_printed_command_works_when_pasted(run: Run, tmp_path: Path, tiny: Path, prompt_set: Path) -> None:
    model, out = tmp_path / "a model's folder", tmp_path / "my $map.safetensors"
    shutil.copytree(tiny, model)
    status, text, _ = run("fit", "--model", model, "--prompts", prompt_set, "--out", out, "--sites", "mlp")
    assert status == 0
    pasted = shlex.split(text.partition("Try it:  ")[2])
    arguments = pasted[pasted.index("generate") :]
    assert arguments[:3] == ["generate", "--model", str(model)]
    assert str(out) in arguments
    assert run(*arguments, "--tokens", 1)[0] == 0


def test_printed_command_of_pipeline_quotes_prompt(
    run: Run, tmp_path: Path, tiny_pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "source.txt").write_text('-a cat\'s "portrait"\nb', "utf-8")
    (tmp_path / "target.txt").write_text("c\nd", "utf-8")
    sides = ("--source", "source.txt", "--target", "target.txt")
    status, text, _ = run("fit", "--model", tiny_pipeline, *sides, "--out", "a.safetensors")
    assert status == 0
    pasted = shlex.split(text.partition("Try it:  ")[2])
    assert pasted[-1] == '-a cat\'s "portrait"'
    arguments = pasted[pasted.index("sweep") :]
    assert run(*arguments[:-2], "--steps", 1, "--strength", 1, *arguments[-2:])[0] == 0
    assert Path("sweep.png").is_file()


def test_command_name_is_how_the_command_was_started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my bin").mkdir()
    command = tmp_path / "my bin" / "act-steering"
    command.touch(0o755)
    monkeypatch.setattr(sys, "argv", [str(command)])
    monkeypatch.setenv("PATH", "")
    assert shlex.split(command_name()) == [os.path.join("my bin", "act-steering")]
    monkeypatch.setenv("PATH", str(command.parent))
    assert command_name() == "act-steering"
    monkeypatch.setattr(sys, "argv", ["/somewhere/act_core/__main__.py"])
    assert command_name() == quoted(sys.executable, "-m", "act_core")


def test_interrupt_that_a_library_swallows_ends_with_130(
    run: Run, tmp_path: Path, tiny_map: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # some runners ignore it

    def swallowing(*_: object, **__: object) -> TransformersModel:
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        return tiny_llama()

    monkeypatch.setattr(TransformersModel, "from_pretrained", swallowing)
    try:
        status, _, err = run("generate", "rain", "--map", tiny_map, "--model", tmp_path, "--tokens", 1)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (status, err) == (130, "act-steering: stopped.\n")


@pytest.mark.usefixtures("default_handler")
def test_deferred_interrupt_waits_in_a_command(
    run: Run, tmp_path: Path, tiny_map: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached: list[str] = []

    def loaded(*_: object, **__: object) -> TransformersModel:
        with deferred():
            signal.raise_signal(signal.SIGINT)
            reached.append("inside")
        reached.append("after")
        return tiny_llama()

    monkeypatch.setattr(TransformersModel, "from_pretrained", loaded)
    status, _, err = run("generate", "rain", "--map", tiny_map, "--model", tmp_path, "--tokens", 1)
    assert (status, err) == (130, "act-steering: stopped.\n")
    assert reached == ["inside"]


@pytest.mark.skipif(os.name == "nt", reason="needs a shell that closes standard output")
def test_closed_standard_output_is_not_an_error(tiny_map: Path) -> None:
    command = shlex.join([sys.executable, "-m", "act_core", "inspect", str(tiny_map)])
    ended = subprocess.run(f"{command} >&-", shell=True, capture_output=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, b"")


def test_closed_pipe_is_not_an_error(tiny_map: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "act_core", "inspect", str(tiny_map)]
    run = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (run.returncode, run.stderr) == (0, b"")


def test_summary_shows_prompt_without_spaces(run: Run, tmp_path: Path, fitted: ActMap) -> None:
    long = replace(fitted, record=replace(fitted.record, source_prompts=("猫" * 61,)))
    _, text, _ = run("inspect", save_map(long, tmp_path / "long.safetensors"))
    assert "猫" * 57 + "..." in "".join(text.split())
    assert "[...]" not in text
    assert load_map(tmp_path / "long.safetensors").record.source_prompts == ("猫" * 61,)
