"""The example workflows and help pages in the real frontend, in a headless Chromium."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from server import PACK, Host

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
WORKFLOWS = sorted((PACK / "example_workflows").glob("*.json"))
SECONDS = 120_000


class Frontend:
    """The page of the host, and the errors on its console."""

    def __init__(self, page: Any, host: Host) -> None:
        self.page = page
        self.host = host
        self.errors: list[str] = []
        page.on("console", lambda message: self._note(message.type, f"{message.text} {message.location}"))
        page.on("pageerror", lambda error: self._note("error", str(error)))
        page.goto(host.url)
        page.wait_for_function("() => window.app && window.app.graph && window.app.ui", timeout=SECONDS)
        page.wait_for_function("() => window.LiteGraph.registered_node_types['LoadACTDemoModel']", timeout=SECONDS)
        # The page opens with a workflow of its own, which would take the place of one that is loaded too early.
        page.wait_for_function("() => window.app.graph._nodes.length > 0", timeout=SECONDS)

    def _note(self, kind: str, text: str) -> None:
        if kind == "error" and ("act-steering" in text or "ACT" in text):
            self.errors.append(text)


@pytest.fixture(scope="module")
def frontend(host: Host) -> Generator[Frontend, None, None]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine, so the frontend is not tested")
    settings = host.base / "user" / "default" / "comfy.settings.json"
    settings.parent.mkdir(parents=True, exist_ok=True)
    settings.write_text(json.dumps({"Comfy.TutorialCompleted": True}))
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        yield Frontend(browser.new_page(viewport={"width": 1600, "height": 900}), host)
        browser.close()


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_an_example_loads_runs_from_the_page_and_shows_its_picture(frontend: Frontend, path: Path) -> None:
    page, host = frontend.page, frontend.host
    graph = json.loads(path.read_text("utf-8"))
    before = set(host.get("/history"))
    page.evaluate("graph => window.app.loadGraphData(graph)", graph)
    unknown = page.evaluate("() => window.app.graph._nodes.filter(n => n.has_errors).map(n => n.type)")
    assert unknown == []
    assert page.evaluate("() => window.app.graph._nodes.length") == len(graph["nodes"])
    page.evaluate("() => window.app.queuePrompt(0)")
    end = time.monotonic() + SECONDS / 1000
    while not (new := set(host.get("/history")) - before):
        assert time.monotonic() < end, "the page has queued nothing that ended"
        time.sleep(0.2)
    run = host.wait(new.pop())
    assert not run.error
    assert all(picture.is_file() for picture in host.images(run))
    shown = "() => window.app.graph._nodes.some(n => n.imgs && n.imgs.length && n.imgs[0].naturalWidth > 0)"
    page.wait_for_function(shown, timeout=SECONDS)
    assert frontend.errors == []


def test_the_help_page_of_each_node_is_where_the_frontend_looks(frontend: Frontend) -> None:
    for folder in sorted((PACK / "web" / "docs").iterdir()):
        url = f"{frontend.host.url}/extensions/act-steering/docs/{folder.name}/en.md"
        answer = frontend.page.request.get(url)
        assert answer.ok, url
        assert answer.text().startswith("# ")
        for picture in folder.glob("*.png"):
            assert picture.name in answer.text()
            assert frontend.page.request.get(url.replace("en.md", picture.name)).ok
