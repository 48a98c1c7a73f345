"""AGENTS.md names workflows, nodes and inputs that exist."""

from __future__ import annotations

import json
import re

import pytest

from tools.results import ROOT

PAGE = (ROOT / "AGENTS.md").read_text("utf-8")
ROWS = re.findall(r"^\| `(\w+\.json)` \| [^|]+ \| ([^|]+) \|$", PAGE, re.MULTILINE)
WORKFLOWS = ROOT / "example_workflows" / "api"


def test_every_workflow_is_listed() -> None:
    assert sorted(name for name, _ in ROWS) == sorted(path.name for path in WORKFLOWS.glob("*.json"))


@pytest.mark.parametrize(("name", "listed"), ROWS, ids=[name for name, _ in ROWS])
def test_listed_inputs_are_in_the_workflow(name: str, listed: str) -> None:
    workflow = json.loads((WORKFLOWS / name).read_text("utf-8"))
    inputs = {node["_meta"]["title"]: set(node["inputs"]) for node in workflow.values()}
    # Explanations stand in parentheses, but titles hold some, too.
    for entry in listed.split("; "):
        title, _, names = entry.partition(": ")
        named = set(re.findall(r"`(\w+)`", re.sub(r" \([^)]*\)", "", names)))
        assert named, entry
        assert named <= inputs[title], entry
