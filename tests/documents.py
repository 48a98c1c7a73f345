"""The pages of the documentation, as tests read them."""

from __future__ import annotations

import re
from pathlib import Path

from tools.docs_site import PAGES

ROOT = Path(__file__).parents[1]
# Everything that is in the site, by its path in the repository.
DOCUMENTS: dict[str, str] = {
    path.relative_to(ROOT).as_posix(): path.read_text("utf-8")
    for path in sorted([*(ROOT / "docs").rglob("*.md"), *(ROOT / page for page in PAGES)])
}


def snippets(language: str) -> list[tuple[str, str]]:
    """The blocks of code in a language, each after the path of its page."""
    block = re.compile(rf"^ *```{language}\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
    return [(page, code) for page, text in DOCUMENTS.items() for code in block.findall(text)]


def inline_code() -> list[tuple[str, str]]:
    """The code inside of sentences and tables, each after the path of its page."""
    found: list[tuple[str, str]] = []
    for page, text in DOCUMENTS.items():
        sentences = re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)
        found += [(page, code) for code in re.findall(r"`([^`]+)`", sentences)]
    return found
