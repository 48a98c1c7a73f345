"""Every snippet of the README runs unmodified, in an empty folder with the files that it names."""

from __future__ import annotations

import ast
import re
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile_files import gguf_bytes, torch_bytes
from PIL import Image

from act_core.cli import main
from act_core.prompts import load_prompt_set

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")


def snippets(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    """The ``act-steering`` commands of each shell snippet."""
    found = [[line for line in code.splitlines() if line.startswith("act-steering ")] for code in snippets("sh")]
    return [lines for lines in found if lines]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
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
    (tmp_path / "my_pipeline").symlink_to(ROOT / "demo_model")
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


def test_readme_has_snippets() -> None:
    assert len(snippets("python")) >= 2
    assert len(commands()) >= 2


@pytest.mark.parametrize("number", range(len(snippets("python"))))
def test_python_snippet_runs(number: int, folder: Path) -> None:
    code = snippets("python")[number]
    # An ellipsis is valid Python, but a reader cannot use it.
    assert not [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant) and node.value is ...]
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(code, f"README snippet {number}", "exec"), namespace)
    written = set(re.findall(r'(?:save\(|save_map\(\w+, )"([\w.]+)"', code))
    assert written
    assert written <= {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("number", range(len(commands())))
def test_commands_of_snippet_run(number: int, folder: Path) -> None:
    for line in commands()[number]:
        arguments = shlex.split(line)[1:]
        assert main(arguments) == 0
        for option, value in pairwise(arguments):
            assert option not in ("--out", "--output") or (folder / value).is_file()


def test_paths_in_readme_exist() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link.split("#")[0]).exists()] == []
