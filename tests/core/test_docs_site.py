"""The documentation site: it builds without a warning, its links resolve, and it loads nothing from elsewhere."""

from __future__ import annotations

import contextlib
import doctest
import importlib
import os
import posixpath
import re
import subprocess
import sys
import threading
from collections.abc import Generator
from dataclasses import dataclass, field
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote

import pytest
import yaml
from documents import DOCUMENTS, ROOT
from PIL import Image

import act_core
from tools import docs_examples, docs_site
from tools.comfyui.frontend import CHROMIUM, FLAGS, TIMEOUT

NODES = sorted(
    node for path in (ROOT / "nodes").glob("*.py") for node in re.findall(r'node_id="(\w+)"', path.read_text("utf-8"))
)
# Attributes that a browser loads by itself.
LOADED = {
    "img": "src",
    "script": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "object": "data",
}
SCHEME = re.compile(r"(?:[a-z][a-z0-9+.-]*:)?//|mailto:", re.IGNORECASE)


@dataclass
class Parsed(HTMLParser):
    """A page: its anchors, what it links to, what it loads, and the pictures of its article."""

    path: Path
    ids: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self._in_article = False
        self.text = self.path.read_text("utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self._in_article |= tag == "article"
        self.ids |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        loaded = values.get("href" if tag == "link" else LOADED.get(tag, ""))
        if loaded:
            self.loads.append(loaded)
        if tag == "img" and self._in_article:
            self.pictures.append(values["src"])

    def handle_endtag(self, tag: str) -> None:
        self._in_article &= tag != "article"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    # Not with --quiet, which hides warnings from --strict, too.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "WARNING" not in run.stdout + run.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Parsed]:
    """The pages by their path in the site."""
    return {path.relative_to(site).as_posix(): Parsed(path) for path in sorted(site.rglob("*.html"))}


def resolved(page: str, link: str) -> tuple[str, str]:
    """The file in the site and the anchor that a link of a page leads to."""
    target, _, anchor = link.partition("#")
    path = posixpath.normpath(posixpath.join(posixpath.dirname(page), unquote(target))) if target else page
    if target.startswith("/"):  # only on the page for missing pages, which is shown at any depth
        assert page == "404.html"
        path = unquote(target).lstrip("/")
    return ("index.html" if path in ("", ".") else path), unquote(anchor)


def test_links_and_anchors_resolve(site: Path, pages: dict[str, Parsed]) -> None:
    anchors = 0
    for page, parsed in pages.items():
        for link in parsed.links:
            if SCHEME.match(link):
                continue
            path, anchor = resolved(page, link)
            assert (site / path).is_file(), (page, link)
            if anchor and path in pages:
                assert anchor in pages[path].ids, (page, link)
                anchors += path != page
    assert anchors > 20


def test_pages_load_only_files_of_the_site(site: Path, pages: dict[str, Parsed]) -> None:
    count = 0
    for page, parsed in pages.items():
        for link in parsed.loads:
            assert not SCHEME.match(link), (page, link)
            assert (site / resolved(page, link)[0]).is_file(), (page, link)
            count += 1
        # For these, the theme would fetch a script, or the number of stars.
        assert 'class="mermaid"' not in parsed.text
        assert 'data-md-component="source"' not in parsed.text
        assert not re.search(r"<style[^>]*>[^<]*(?:@import|url\()", parsed.text)
    assert count > 100
    sheets = list(site.rglob("*.css"))
    assert sheets
    for sheet in sheets:
        urls = re.findall(r"(?:url\(|@import)\s*[\"']?([^\"')\s]+)", sheet.read_text("utf-8"))
        assert [url for url in urls if not url.startswith(("data:", "#")) and SCHEME.match(url)] == []


def nav_entries(entry: Any) -> list[str]:
    """The pages of a part of ``nav``."""
    if isinstance(entry, str):
        return [entry]
    parts = entry.values() if isinstance(entry, dict) else entry
    return [page for part in parts for page in nav_entries(part)]


def test_every_page_is_in_the_nav_once(pages: dict[str, Parsed]) -> None:
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))
    listed = [page.removesuffix(".md") + ".html" for page in nav_entries(config["nav"])]
    assert sorted(listed) == sorted(set(pages) - {"404.html"})
    assert {docs_site.source_of(page.removesuffix(".html") + ".md") for page in listed} == set(DOCUMENTS)


def test_every_node_has_a_page_with_a_picture(site: Path, pages: dict[str, Parsed]) -> None:
    assert len(NODES) > 20
    assert sorted(page.split("/")[1] for page in pages if page.startswith("nodes/")) == [f"{n}.html" for n in NODES]
    for node in NODES:
        page = f"nodes/{node}.html"
        assert pages[page].pictures, node
        for picture in pages[page].pictures:
            with Image.open(site / resolved(page, picture)[0]) as image:
                assert min(image.size) > 50, picture
    overview = {resolved("nodes.html", link)[0] for link in pages["nodes.html"].links if not SCHEME.match(link)}
    rows = set(re.findall(r"\]\(\.\./web/docs/(\w+)/en\.md\)", DOCUMENTS["docs/nodes.md"]))
    assert sorted(rows) == NODES
    assert {f"nodes/{node}.html" for node in NODES} <= overview


def public_names() -> list[str]:
    """The dotted names on the API page, with those in parentheses after them."""
    text = DOCUMENTS["docs/api/index.md"].partition("## Public names")[2]
    found = [f"act_core.{name}" for name in act_core.__all__]
    for name, inner in re.findall(r"`((?:act_core\.|ActMap)[\w.]*)`(?:\s\(([^)]*)\))?", text):
        name = name.replace("ActMap", "act_core.ActMap")
        found += [name, *(f"{name}.{part}" for part in re.findall(r"`(\w+)`", inner))]
    return sorted(set(found))


@pytest.mark.parametrize("name", public_names())
def test_public_name_exists_and_is_documented(name: str, pages: dict[str, Parsed]) -> None:
    parent, _, last = name.rpartition(".")
    owner: Any = act_core.ActMap if parent == "act_core.ActMap" else importlib.import_module(parent)
    with contextlib.suppress(ModuleNotFoundError):
        importlib.import_module(name)  # if it is a module
    found = getattr(owner, last)
    found = getattr(found, "fget", found)  # of a property
    anchor = name if isinstance(found, ModuleType) else f"{found.__module__}.{found.__qualname__}"
    assert anchor in set[str]().union(*(parsed.ids for page, parsed in pages.items() if page.startswith("api/")))


def test_public_names_are_many() -> None:
    assert len(public_names()) > 40
    assert "act_core.interop.lora.save_lora" in public_names()
    assert "act_core.ActMap.inverse" in public_names()


def test_examples_of_docstrings_are_shown_as_code(pages: dict[str, Parsed]) -> None:
    for page in ("api/fitting.html", "api/maps.html"):
        assert '<span class="gp">&gt;&gt;&gt; </span>' in pages[page].text
        # What becomes of them otherwise.
        assert 'class="example"' not in pages[page].text
        assert "<blockquote>" not in pages[page].text


def test_readme_is_short() -> None:
    assert len(DOCUMENTS["README.md"].splitlines()) <= 150


@pytest.mark.parametrize("module", [docs_site, docs_examples])
def test_examples_of_the_tools_print_what_they_show(module: Any) -> None:
    result = doctest.testmod(module)
    assert result.attempted
    assert not result.failed


def test_links_in_code_stay_and_links_to_folders_become_text() -> None:
    text = "`[a](../README.md)` [b](../README.md#install) [c](../nodes)\n```\n[d](../README.md)\n```\n"
    made = docs_site.rewritten(text, "guides.md")
    assert made == "`[a](../README.md)` [b](index.md#install) c\n```\n[d](../README.md)\n```\n"


@pytest.fixture
def server(site: Path) -> Generator[str]:
    """The address of the site on this machine."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}/"
        running.shutdown()


def test_browser_loads_pages_and_searches_on_this_machine_alone(server: str) -> None:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: NO BROWSER TEST")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine: THE SITE IS NOT TESTED IN A BROWSER")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        requests: list[str] = []
        errors: list[str] = []
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        for name in ("index.html", "how-it-works.html", "nodes/FitACTMap.html", "api/fitting.html"):
            page.goto(server + name)
            page.wait_for_load_state("networkidle")
            sizes = page.evaluate("() => [...document.querySelectorAll('article img')].map(i => i.naturalWidth)")
            assert all(size > 50 for size in sizes)
        page.goto(server + "index.html")
        page.locator("input[data-md-component=search-query]").fill("lockstep")
        page.locator(".md-search-result__item a[href*='how-it-works']").first.wait_for(
            state="attached", timeout=TIMEOUT
        )
        browser.close()
    assert len(requests) > 10
    assert [url for url in requests if not url.startswith((server, "data:", "blob:"))] == []
    assert errors == []
