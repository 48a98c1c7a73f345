"""The examples in the docstrings of act_core run and print what they show."""

from __future__ import annotations

import contextlib
import doctest
import importlib
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import act_core
from act_core.architectures import architecture_of
from act_core.components import Component
from act_core.sites import Site
from act_core.transport import Transport

ROOT = Path(__file__).parents[2]
# Names that an example may use without importing them, in addition to those of its own module.
SHARED: dict[str, Any] = {
    **{name: getattr(act_core, name) for name in ("ActMap", "MapError", "fit", "load_map", "save_map", "steer")},
    "Component": Component,
    "Path": Path,
    "Site": Site,
    "Transport": Transport,
    "contextlib": contextlib,
    "architecture_of": architecture_of,
    "nn": nn,
    "partial": partial,
    "torch": torch,
}


def module_names() -> list[str]:
    files = sorted((ROOT / "act_core").rglob("*.py"))
    names = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files]
    return [name.removesuffix(".__init__") for name in names if not name.endswith("__main__")]


@pytest.mark.parametrize("name", module_names())
def test_examples_print_what_they_show(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # some runners ignore it
    try:
        result = doctest.testmod(module, extraglobs=dict(SHARED), optionflags=doctest.ELLIPSIS, report=False)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not result.failed, capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_most_modules_have_examples() -> None:
    finder = doctest.DocTestFinder(exclude_empty=True)
    with_examples = [
        name for name in module_names() if any(t.examples for t in finder.find(importlib.import_module(name)))
    ]
    assert len(with_examples) > 10
