"""The example workflows and help pages in the real frontend, in a headless Chromium."""

from __future__ import annotations

import json
import time
from collections.abc import Generator
from pathlib import Path

import pytest
from in_host import require_language_model

from tools.comfyui.frontend import CHROMIUM, TIMEOUT, Frontend, opened
from tools.comfyui.server import PACK, Host

WORKFLOWS = sorted((PACK / "example_workflows").glob("*.json"))


@pytest.fixture(scope="module")
def frontend(host: Host) -> Generator[Frontend, None, None]:
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine, so the frontend is not tested")
    with opened(host, 1600, 900) as page:
        yield page


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_example_runs_from_page(frontend: Frontend, host_python: Path, path: Path) -> None:
    require_language_model(host_python, path.stem)
    page, host = frontend.page, frontend.host
    graph = json.loads(path.read_text("utf-8"))
    before = set(host.get("/history"))
    page.evaluate("graph => window.app.loadGraphData(graph)", graph)
    unknown = page.evaluate("() => window.app.graph._nodes.filter(n => n.has_errors).map(n => n.type)")
    assert unknown == []
    assert page.evaluate("() => window.app.graph._nodes.length") == len(graph["nodes"])
    page.evaluate("() => window.app.queuePrompt(0)")
    end = time.monotonic() + TIMEOUT / 1000
    while not (new := set(host.get("/history")) - before):
        assert time.monotonic() < end, "the page has queued nothing that ended"
        time.sleep(0.2)
    run = host.wait(new.pop())
    assert not run.error
    assert all(picture.is_file() for picture in host.images(run))
    shown = "() => window.app.graph._nodes.some(n => n.imgs && n.imgs.length && n.imgs[0].naturalWidth > 0)"
    page.wait_for_function(shown, timeout=TIMEOUT)
    assert frontend.errors == []


def test_help_pages_are_served(frontend: Frontend) -> None:
    for folder in sorted((PACK / "web" / "docs").iterdir()):
        url = f"{frontend.host.url}/extensions/act-steering/docs/{folder.name}/en.md"
        answer = frontend.page.request.get(url)
        assert answer.ok, url
        assert answer.text().startswith("# ")
        pictures = list(folder.glob("*.png"))
        assert pictures, folder
        for picture in pictures:
            assert picture.name in answer.text()
            assert frontend.page.request.get(url.replace("en.md", picture.name)).ok
