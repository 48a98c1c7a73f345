"""The boundary between the nodes and the host: which modules a file may import."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

PACK = Path(__file__).resolve().parents[2]
# Modules of the host, and packages that come with it.
HOST_API = "comfy_api"
LIBRARIES = {"PIL", "numpy", "torch"}


def imported(path: Path) -> set[str]:
    """The top-level names of all absolute imports, also of those inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names.add(node.module.split(".")[0])
    return names


def called_methods(path: Path) -> set[str]:
    """Names of all methods that are called on something."""
    calls = (node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call))
    return {call.func.attr for call in calls if isinstance(call.func, ast.Attribute)}


@pytest.mark.parametrize("path", sorted((PACK / "nodes").glob("*.py")), ids=lambda path: path.stem)
def test_nodes_import_only_the_api_of_the_host(path: Path) -> None:
    assert imported(path) - set(sys.stdlib_module_names) <= {HOST_API, *LIBRARIES}


@pytest.mark.parametrize("path", sorted((PACK / "nodes").rglob("*.py")), ids=lambda path: path.stem)
def test_no_node_runs_another_node(path: Path) -> None:
    assert "execute" not in called_methods(path)


def test_core_imports_neither_nodes_nor_host() -> None:
    for path in (PACK / "act_core").rglob("*.py"):
        assert not imported(path) & {"nodes", "comfy", "comfy_api", "folder_paths"}, path
