"""The wheel on its own: built, installed into an empty folder, and run from there."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import act_core
from tools.results import ROOT


def called(*command: str | Path, folder: Path, path: Path | None = None) -> str:
    """Run a command in a folder; returns what it prints."""
    own = {} if path is None else {"PYTHONPATH": str(path)}
    run = subprocess.run(command, cwd=folder, env={**os.environ, **own}, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built without isolation, for which pip would fetch the build backend."""
    folder = tmp_path_factory.mktemp("wheel")
    called(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, folder=ROOT)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds what the wheel installs, and nothing else."""
    folder = tmp_path_factory.mktemp("installed")
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", folder, wheel)
    called(*pip, folder=folder)
    return folder


def test_wheel_holds_the_library_and_its_data(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"act_core", f"act_steering-{act_core.__version__}.dist-info"}
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "act_core").rglob("*.py")}
    prompt_sets = {f"act_core/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "prompt_sets").rglob("*.txt")}
    assert modules | prompt_sets | {"act_core/py.typed"} <= set(names)


def test_installed_command_fits_and_inspects(installed: Path, tmp_path: Path, tiny: Path, prompt_set: Path) -> None:
    where = "import act_core; print(act_core.__file__)"
    assert Path(called(sys.executable, "-c", where, folder=tmp_path, path=installed).strip()).is_relative_to(installed)
    command = installed / "bin" / "act-steering"
    assert act_core.__version__ in called(command, "--version", folder=tmp_path, path=installed)
    out = tmp_path / "mood.safetensors"
    fit = ("fit", "--model", tiny, "--prompts", prompt_set, "--out", out)
    assert "exact walk" in called(command, *fit, folder=tmp_path, path=installed)
    assert "3 source, such as" in called(command, "inspect", out, folder=tmp_path, path=installed)
