"""The pack as the Comfy registry ships it, by ``.comfyignore``: what is in it, and that it works in the host."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import zipfile
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
from graphs import QUICK
from packed import copy_shipped, shipped_files

from tools.comfyui.server import PACK, Graph, Host, started

# A megabyte is 1e6 bytes. Most of it is the demo model.
MAX_MEGABYTES = 40
LEFT_OUT = {"tests", "benchmarks", "tools", "docs", "examples", ".github", ".ci", "AGENTS.md", "CONTRIBUTING.md"}


def test_only_what_users_need_is_shipped() -> None:
    files = shipped_files()
    assert {"__init__.py", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md"} <= files
    folders = {name.split("/")[0] for name in files}
    assert {"nodes", "act_core", "web", "locales", "example_workflows", "subgraphs", "pretrained_maps"} <= folders
    assert folders & LEFT_OUT == set()
    assert sum((PACK / name).stat().st_size for name in files) < MAX_MEGABYTES * 1e6


@pytest.fixture
def comfy_cli(tmp_path: Path) -> Callable[[str], str]:
    """Runs a subcommand of ``comfy node`` in a clone of the pack, which is in ``clone``; returns what it prints."""
    command = shutil.which(os.environ.get("COMFY_CLI") or "comfy")
    if command is None:
        pytest.skip("no comfy-cli (set COMFY_CLI to its command), so the checks of the registry are not run")
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", PACK, clone], check=True)
    for name in (".comfyignore", "pyproject.toml"):
        shutil.copyfile(PACK / name, clone / name)
    quiet = {**os.environ, "DO_NOT_TRACK": "1", "HOME": str(tmp_path)}

    def run(name: str) -> str:
        asked = [command, "--skip-prompt", "node", name]
        ended = subprocess.run(asked, cwd=clone, env=quiet, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout + ended.stderr

    return run


def test_comfy_cli_packs_the_same_files(comfy_cli: Callable[[str], str], tmp_path: Path) -> None:
    comfy_cli("pack")
    with zipfile.ZipFile(tmp_path / "clone" / "node.zip") as packed:
        assert set(packed.namelist()) == shipped_files()


def test_comfy_cli_finds_nothing_to_warn_of(comfy_cli: Callable[[str], str]) -> None:
    """Its security checks find calls of exec and eval, and several statements on a line."""
    assert "warning" not in comfy_cli("validate").lower()


@pytest.fixture(scope="module")
def packed_host(host_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[Host, None, None]:
    """A host with a copy of what is shipped, in place of the repository."""
    base = tmp_path_factory.mktemp("packed") / "base"
    copy_shipped(base / "custom_nodes" / "act-steering")
    with started(host_python, base) as running:
        yield running


def test_packed_folder_works_in_the_host(packed_host: Host, host: Host) -> None:
    ours = [
        {name for name, info in which.get("/object_info").items() if info["category"] == "ACT steering"}
        for which in (packed_host, host)
    ]
    assert ours[0] == ours[1]
    pack = packed_host.base / "custom_nodes" / "act-steering"
    for name in ("style_slider", "fit_your_own"):
        assert packed_host.get(f"/api/workflow_templates/act-steering/{name}.json")["nodes"]
        graph = Graph()
        graph.prompt = json.loads((pack / "example_workflows" / "api" / f"{name}.json").read_text("utf-8"))
        for node in graph.prompt.values():
            node["inputs"].update(QUICK.get(node["class_type"], {}))
        assert packed_host.images(packed_host.run(graph))
    assert packed_host.get("/i18n")["de"]["nodeDefs"]["FitACTMap"]
