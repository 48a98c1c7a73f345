"""The host's page in a headless Chromium."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from .server import Host, Run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
TIMEOUT = 120_000  # milliseconds
SETTLE_SECONDS = 60
# Pairs of nodes that cover each other, by type, with their places (left, top, right, bottom).
_OVERLAPS = """() => {
    const title = 30;
    const boxes = window.app.graph._nodes.map(node => {
        const drawn = document.querySelector(`[data-node-id="${node.id}"]`);  // by Nodes 2.0, with its title
        const height = drawn ? drawn.offsetHeight : node.size[1] + title;
        const left = node.pos[0], top = node.pos[1] - title;
        return {type: node.type, left, top, right: left + node.size[0], bottom: top + height};
    });
    const meet = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
    return boxes.flatMap((a, at) => boxes.slice(at + 1).filter(b => meet(a, b)).map(b => [a, b].map(
        ({type, left, top, right, bottom}) => `${type} at ${[left, top, right, bottom].map(Math.round)}`
    )));
}"""


class Frontend:
    """The page of the host, and the errors on its console."""

    def __init__(self, page: Any, host: Host) -> None:
        self.page = page
        self.host = host
        self.errors: list[str] = []
        page.on("console", self._on_message)
        page.on("pageerror", self._on_error)
        self.open()

    def open(self) -> None:
        """Open the page, or open it anew."""
        page = self.page
        page.goto(self.host.url)
        page.wait_for_function("() => window.app && window.app.graph && window.app.ui", timeout=TIMEOUT)
        page.wait_for_function("() => window.LiteGraph.registered_node_types['LoadACTDemoModel']", timeout=TIMEOUT)
        # The page opens a default workflow, which would replace one that is loaded too early.
        page.wait_for_function("() => window.app.graph._nodes.length > 0", timeout=TIMEOUT)

    def run(self, seconds: float = TIMEOUT / 1000) -> Run:
        """Run the workflow on the page, as its button does, and wait up to some seconds for the result."""
        before = set(self.host.get("/history"))
        self.page.evaluate("() => window.app.queuePrompt(0)")
        end = time.monotonic() + seconds
        while not (new := set(self.host.get("/history")) - before):
            assert time.monotonic() < end, "the page has queued nothing that ended"
            time.sleep(0.2)
        return self.host.wait(new.pop())

    def overlaps(self) -> list[list[str]]:
        """Pairs of nodes that cover each other, with their places, once the page has settled."""
        end = time.monotonic() + SETTLE_SECONDS
        while (pairs := self.page.evaluate(_OVERLAPS)) and time.monotonic() < end:
            time.sleep(0.2)
        return pairs

    def _on_message(self, message: Any) -> None:
        if message.type == "error":
            self._on_error(f"{message.text} {message.location}")

    def _on_error(self, error: object) -> None:
        text = str(error)
        if "act-steering" in text or "ACT" in text:  # the page also logs unrelated errors
            self.errors.append(text)


@contextmanager
def opened(host: Host, width: int, height: int) -> Generator[Frontend, None, None]:
    """The page of a host, opened for the first time."""
    from playwright.sync_api import sync_playwright

    settings = host.base / "user" / "default" / "comfy.settings.json"
    settings.parent.mkdir(parents=True, exist_ok=True)
    # Otherwise the template dialog covers the canvas.
    settings.write_text(json.dumps({"Comfy.TutorialCompleted": True}))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        yield Frontend(browser.new_page(viewport={"width": width, "height": height}), host)
        browser.close()
