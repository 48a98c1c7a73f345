"""The real host: a ComfyUI where its own installer puts it, or at COMFYUI_PATH."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def host_python() -> Path:
    """The Python of the host's own environment."""
    host = Path(os.environ.get("COMFYUI_PATH") or Path.home() / "comfy" / "ComfyUI")
    python = host / ".venv" / "bin" / "python"
    if not (host / "main.py").is_file() or not python.is_file():
        pytest.skip(f"no ComfyUI with its .venv at {host}; set COMFYUI_PATH to yours")
    return python


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """A run without the host must not look like one with it."""
    skipped = [report for report in terminalreporter.stats.get("skipped", []) if "tests/host/" in report.nodeid]
    if skipped:
        terminalreporter.section("NOT TESTED IN THE REAL HOST", sep="!", red=True, bold=True)
        terminalreporter.line(f"{len(skipped)} tests were skipped: there is no ComfyUI with its .venv at")
        terminalreporter.line("~/comfy/ComfyUI; set COMFYUI_PATH to yours and run again.")
