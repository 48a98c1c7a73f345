"""The messages on the troubleshooting page occur in the code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest
from documents import DOCUMENTS, ROOT

PAGE = DOCUMENTS["docs/troubleshooting.md"]
LINES = [line.strip("| ").split(" | ") for line in PAGE.splitlines() if line.startswith("| ")]
ROWS = [cells for cells in LINES if cells[0] != "message"]
# Messages of the host are marked.
HOST_MARK = "(ComfyUI's console)"
QUOTES = [quote for cells in ROWS if HOST_MARK not in cells[0] for quote in re.findall(r"\*([^*]+)\*", cells[0])]
# Stands for a placeholder of an f-string.
GAP = "\0"


def texts() -> Iterator[str]:
    """The texts in the code, but no docstrings, with a gap for each placeholder."""
    for folder in ("act_core", "nodes"):
        for path in (ROOT / folder).rglob("*.py"):
            nodes = list(ast.walk(ast.parse(path.read_text("utf-8"))))
            docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
            for node in nodes:
                if isinstance(node, ast.JoinedStr):
                    yield "".join(str(part.value) if isinstance(part, ast.Constant) else GAP for part in node.values)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                    yield node.value


TEXTS = sorted(set(texts()))


def matches(quote: str, text: str) -> bool:
    """Whether the parts of a quote stand in a text of the code, in their order; an ellipsis must bridge each gap."""
    parts = [re.escape(part) for part in re.split(r" ?\.\.\.", quote) if part.strip()]
    return re.search(".*".join(parts), text, re.DOTALL) is not None


def test_page_has_messages() -> None:
    assert len(QUOTES) > 50
    assert len(set(QUOTES)) == len(QUOTES)
    assert [cells[0] for cells in ROWS if "*" not in cells[0]] == [
        "no message, and no change",
        "no message, and a new file is not in the list",
    ]
    assert [cells[0] for cells in ROWS if HOST_MARK in cells[0]] == [f"*Value not in list: ...* {HOST_MARK}"]


@pytest.mark.parametrize("quote", QUOTES)
def test_message_occurs_in_the_code(quote: str) -> None:
    assert len(quote.replace("...", "").strip()) >= 12
    assert [text for text in TEXTS if matches(quote, text)]


def test_changed_message_would_be_noticed() -> None:
    text = f"{GAP} has no effect: {GAP} of {GAP} sites fired"
    assert matches("... has no effect: ... of ... sites fired", text)
    assert not matches("... has no effects: ... of ... sites fired", text)
    assert not matches("has no effect: 0 of ... sites fired", text)
    assert not matches("sites fired ... has no effect", text)
