"""Helpers for tests of the command line: prompts, and checks of errors."""

from __future__ import annotations

from collections.abc import Callable

SOURCE = ["The rain never stops.", "I lost my keys and my hope.", "Nobody came to see him."]
TARGET = ["The sun is out again.", "I found my keys and a friend.", "Everybody came to see him."]
SITES = "*/model.layers.[01].input_layernorm"
COMMANDS = (
    "demo",
    "fit",
    "inspect",
    "generate",
    "sweep",
    "calibrate",
    "fit-all",
    "export-lora",
    "import",
    "export-control-vector",
    "check-prompts",
    "gallery",
    "compare",
    "prune",
    "blend",
)
Run = Callable[..., tuple[int, str, str]]


def refused(result: tuple[int, str, str], *words: str) -> None:
    """Check for exit status 2 and a single line on stderr that contains these words."""
    status, _, err = result
    assert status == 2
    assert err.endswith("\n")
    assert len(err.splitlines()) == 1, err
    assert err.startswith("act-steering: ")
    for word in words:
        assert word in err
