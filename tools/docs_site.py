"""A hook of MkDocs: adds the pages that live outside ``docs/``, and makes the links of all pages work in the site.

Pages are written once, with links that work in the repository. In the site, a link to another page leads to that page,
a link to a file leads to a copy of it, and a link to a folder is plain text.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
# Pages outside docs/, by their path in the repository: where they are in the site.
PAGES = {
    "README.md": "index.md",
    "AGENTS.md": "agents.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/README.md": "benchmarks.md",
    "demo_model/README.md": "demo-model.md",
    "pretrained_maps/README.md": "shipped-maps.md",
    "tools/train_demo_model/README.md": "demo-model-training.md",
} | {
    f"web/docs/{folder.name}/en.md": f"nodes/{folder.name}.md"
    for folder in sorted((ROOT / "web" / "docs").iterdir())
    if folder.is_dir()
}
_SOURCES = {page: source for source, page in PAGES.items()}
_LINK = re.compile(r"(?P<picture>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s#:]+)(?P<anchor>#[^)\s]*)?\)")
_CODE = re.compile(r"^```.*?^```|`[^`\n]+`", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from outside ``docs/``, and the files that pages link to."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    for page in [file for file in files if file.is_documentation_page()]:
        source = source_of(page.src_uri)
        for link in links((ROOT / source).read_text(encoding="utf-8")):
            target = resolved(source, link["target"])
            if (ROOT / target).is_file() and files.get_file_from_path(place_of(target)) is None:
                files.append(File.generated(config, place_of(target), abs_src_path=str(ROOT / target)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Rewrite the links of a page."""
    return rewritten(markdown, page.file.src_uri)


def source_of(page: str) -> str:
    """The path in the repository of a page of the site.

    Example:
        >>> source_of("nodes/FitACTMap.md"), source_of("security.md")
        ('web/docs/FitACTMap/en.md', 'docs/security.md')
    """
    return _SOURCES.get(page, f"docs/{page}")


def place_of(source: str) -> str:
    """The path in the site of a file of the repository.

    Example:
        >>> place_of("docs/security.md"), place_of("CHANGELOG.md"), place_of("examples/read_map/read_map.mjs")
        ('security.md', 'changelog.md', 'examples/read_map/read_map.mjs')
    """
    return PAGES.get(source, source.removeprefix("docs/"))


def resolved(source: str, target: str) -> str:
    """The path in the repository that a link leads to; the README of a folder that is a page of the site.

    Example:
        >>> resolved("docs/guides/headless.md", "../../benchmarks")
        'benchmarks/README.md'
    """
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    readme = f"{path}/README.md"
    return readme if readme in PAGES else path


def links(markdown: str) -> Iterator[re.Match[str]]:
    """The links and pictures of a page whose targets are in the repository; none in code."""
    code = [match.span() for match in _CODE.finditer(markdown)]
    for link in _LINK.finditer(markdown):
        if not any(start < link.start() < end for start, end in code):
            yield link


def rewritten(markdown: str, page: str) -> str:
    """A page with links that work in the site.

    Args:
        markdown: the page, with links that work in the repository.
        page: its path in the site.

    Example:
        >>> rewritten("[a](../CHANGELOG.md#new), [b](../web/docs/FitACTMap/en.md), [c](../nodes)", "models.md")
        '[a](changelog.md#new), [b](nodes/FitACTMap.md), c'
    """
    parts: list[str] = []
    at = 0
    for link in links(markdown):
        target = resolved(source_of(page), link["target"])
        parts.append(markdown[at : link.start()])
        at = link.end()
        if (ROOT / target).is_dir():
            parts.append(link["text"])
            continue
        way = posixpath.relpath(place_of(target), posixpath.dirname(page) or ".")
        parts.append(f"{link['picture']}[{link['text']}]({way}{link['anchor'] or ''})")
    return "".join([*parts, markdown[at:]])
