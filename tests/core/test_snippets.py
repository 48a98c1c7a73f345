"""Every snippet of the README and of the pages runs unmodified, in an empty folder with the files that it names."""

from __future__ import annotations

import argparse
import ast
import re
import runpy
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from documents import DOCUMENTS, ROOT, inline_code, snippets
from hostile_files import gguf_bytes, torch_bytes
from PIL import Image

from act_core.cli import main
from act_core.cli.main import _parser
from act_core.prompts import load_prompt_set

PYTHON = snippets("python")
SHELL = snippets("sh")


def commands() -> list[tuple[str, list[str]]]:
    """The ``act-steering`` commands of each shell snippet that has some, with its page."""
    found = [(page, [line for line in code.splitlines() if line.startswith("act-steering ")]) for page, code in SHELL]
    return [(page, lines) for page, lines in found if lines]


def all_commands() -> list[tuple[str, str]]:
    """All lines of shell snippets and all code in sentences, each after its page."""
    lines = [(page, line) for page, code in SHELL for line in code.replace("\\\n", " ").splitlines()]
    return [*lines, *((page, " ".join(code.split())) for page, code in inline_code())]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_pipeline: Path) -> Path:
    """A folder to run the snippets in: with the shipped folders, a pipeline, prompt files and pictures.

    Of the shipped prompts it has only the first of each side.
    """
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompt_sets").mkdir()
    for path in (ROOT / "prompt_sets").glob("*.txt"):
        prompts = load_prompt_set(path)
        lines = ["[source]", *prompts.source[:8], "[target]", *prompts.target[:8]]
        (tmp_path / "prompt_sets" / path.name).write_text("\n".join(lines), "utf-8")
    for name in ("pretrained_maps", "example_workflows", "demo_model"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "my_pipeline").symlink_to(tiny_pipeline)
    subjects = ["cat", "rocket", "castle", "bell"]
    (tmp_path / "plain.txt").write_text("\n".join(f"{subject}, flat sticker" for subject in subjects), "utf-8")
    (tmp_path / "ink.txt").write_text("\n".join(f"{subject}, black ink icon" for subject in subjects), "utf-8")
    (tmp_path / "my_pictures").mkdir()
    for colour in ("red", "green", "blue"):
        Image.new("RGB", (64, 64), colour).save(tmp_path / "my_pictures" / f"{colour}.png")
    (tmp_path / "happy.gguf").write_bytes(gguf_bytes({"direction.1": torch.ones(8)}))
    (tmp_path / "caa.pt").write_bytes(torch_bytes(torch.ones(8)))
    (tmp_path / "incr-linear_ot-mean").mkdir()
    hook = {"net.w1": torch.ones(1, 8), "net.b1": torch.ones(1, 8)}
    (tmp_path / "incr-linear_ot-mean" / "unet.conv_norm_out.statedict").write_bytes(torch_bytes(hook))
    return tmp_path


def test_pages_have_snippets() -> None:
    assert len(PYTHON) >= 3
    assert len(commands()) >= 5
    assert {page for page, _ in SHELL} >= {"README.md", "docs/command-line.md", "docs/guides/headless.md"}


@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_python_snippet_runs(number: int, folder: Path) -> None:
    page, code = PYTHON[number]
    # An ellipsis is valid Python, but a reader cannot use it.
    assert not [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant) and node.value is ...]
    script = folder / f"snippet_{number}_of_{Path(page).stem}.py"
    script.write_text(code, "utf-8")
    runpy.run_path(str(script), run_name="__main__")
    written = set(re.findall(r'(?:save\(|save_map\(\w+, )"([\w.]+)"', code))
    assert written
    assert written <= {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("number", range(len(commands())))
def test_commands_of_snippet_run(number: int, folder: Path) -> None:
    for line in commands()[number][1]:
        arguments = shlex.split(line)[1:]
        assert main(arguments) == 0
        for option, value in pairwise(arguments):
            assert option not in ("--out", "--output") or (folder / value).is_file()


def test_commands_in_several_processes_are_understood() -> None:
    lines = [line for _, code in SHELL for line in code.splitlines() if " -m act_core " in line]
    assert lines
    for line in lines:
        assert re.match(r"torchrun --nproc-per-node \d+ -m act_core ", line)
        _parser().parse_args(shlex.split(line.partition(" -m act_core ")[2]))


def test_options_of_commands_in_sentences_exist() -> None:
    (subparsers,) = [a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction)]
    checked = 0
    for page, line in all_commands():
        command = re.match(r"(?:act-steering|(?:torchrun .*|python )-m act_core) (.*)", line)
        if command is None:
            continue
        name, *arguments = shlex.split(command[1])
        if name.startswith("-"):
            continue
        assert name in subparsers.choices, (page, line)
        options = subparsers.choices[name]._option_string_actions
        for argument, value in pairwise([*arguments, ""]):
            if argument.startswith("--"):
                assert argument in options, (page, line)
                choices = options[argument].choices
                assert not choices or not value or value in choices, (page, line)
                checked += 1
    assert checked > 20


def test_modules_and_make_targets_in_commands_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    modules, made = set[str](), set[str]()
    for page, line in all_commands():
        for module in re.findall(r"python -m ((?:benchmarks|tools)(?:\.\w+)+)", line):
            path = ROOT / module.replace(".", "/")
            assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), (page, line)
            modules.add(module)
        for target in re.findall(r"^make ([\w-]+)", line):
            assert target in targets, (page, line)
            made.add(target)
    assert len(modules) > 20
    assert made >= {"demo", "test", "docs", "evidence"}


@pytest.mark.parametrize("page", DOCUMENTS)
def test_links_lead_to_files_of_the_repository(page: str) -> None:
    text = re.sub(r"^ *```.*?^ *```|`[^`\n]+`", "", DOCUMENTS[page], flags=re.MULTILINE | re.DOTALL)
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]
    folder = (ROOT / page).parent
    assert [target for target in targets if not (folder / target).exists()] == []
