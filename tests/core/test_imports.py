"""Import rules: the layers of the project, and where model libraries and the host may be imported."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODEL_LIBRARIES = {"transformers", "diffusers", "accelerate", "gguf", "scipy", "vaderSentiment"}
HOST = {"comfy", "comfy_api", "comfy_extras", "comfy_execution", "execution", "folder_paths", "nodes", "server"}
# Each may import those after it.
LAYERS = ["tests", "benchmarks", "tools", "act_core"]


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
        waiting += [child for child in ast.iter_child_nodes(statement) if isinstance(child, ast.stmt)]


def names_in(statement: ast.AST) -> set[str]:
    """The top-level packages that one statement imports; none for a relative import."""
    if isinstance(statement, ast.Import):
        return {alias.name.partition(".")[0] for alias in statement.names}
    if isinstance(statement, ast.ImportFrom) and not statement.level and statement.module:
        return {statement.module.partition(".")[0]}
    return set()


def imported(path: Path) -> set[str]:
    """Packages that importing the module imports."""
    return set[str]().union(*map(names_in, at_module_level(ast.parse(path.read_text("utf-8")))))


def imported_anywhere(path: Path) -> set[str]:
    """Packages that are imported at module level or in a function."""
    return set[str]().union(*map(names_in, ast.walk(ast.parse(path.read_text("utf-8")))))


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def test_import_of_act_core_imports_nothing_heavy() -> None:
    script = "import sys, act_core, act_core.cli; print(*{name.partition('.')[0] for name in sys.modules})"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not set(run.stdout.split()) & {*MODEL_LIBRARIES, "torch", "numpy"}


def test_import_of_public_names_imports_no_model_library() -> None:
    script = "import sys\nfrom act_core import *\nprint(*{name.partition('.')[0] for name in sys.modules})"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "torch" in run.stdout.split()
    assert not set(run.stdout.split()) & MODEL_LIBRARIES


def outside_of_adapters() -> list[str]:
    core = ROOT / "act_core"
    own = (core / "models", core / "demo")
    files = [path for path in sources("act_core") if not any(folder in path.parents for folder in own)]
    return [str(path.relative_to(ROOT)) for path in files]


@pytest.mark.parametrize("path", outside_of_adapters())
def test_only_adapters_and_demo_import_model_libraries(path: str) -> None:
    assert not imported(ROOT / path) & MODEL_LIBRARIES


def test_imported_sees_the_imports_of_an_adapter() -> None:
    assert "transformers" in imported(ROOT / "act_core" / "models" / "transformers.py")


def test_act_core_imports_neither_nodes_nor_host() -> None:
    everywhere = set[str]().union(*map(imported_anywhere, sources("act_core")))
    assert not everywhere & {*HOST, *LAYERS[:3]}


def node_files() -> list[str]:
    return [str(path.relative_to(ROOT)) for path in sorted((ROOT / "nodes").glob("*.py"))]


@pytest.mark.parametrize("path", node_files())
def test_nodes_import_only_comfy_api_of_the_host(path: str) -> None:
    assert imported_anywhere(ROOT / path) & HOST <= {"comfy_api"}


@pytest.mark.parametrize("layer", LAYERS)
def test_layer_imports_no_layer_above(layer: str) -> None:
    above = set(LAYERS[: LAYERS.index(layer)])
    wrong = {str(path.relative_to(ROOT)) for path in sources(layer) if imported_anywhere(path) & above}
    assert wrong == set()
