"""Writes ``docs/screenshots``: each example workflow after a run, on the classic canvas and as Nodes 2.0.

    python -m tools.make_screenshots [NAME ...]

Needs ComfyUI at ``~/comfy/ComfyUI``, or at COMFYUI_PATH, and Chromium.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from .comfyui.frontend import opened
from .comfyui.server import started
from .examples import WORKFLOWS
from .make_node_pictures import FIT
from .results import ROOT

FOLDER = ROOT / "docs" / "screenshots"
RENDERERS = {"classic": False, "nodes_2": True}
WIDTH, HEIGHT = 1900, 1000
RUN_SECONDS = 600
# The part of the page that no menu covers.
FREE = 90, 150, 1500, 980
SAVED_WIDTH = 1400
# The folder of this run, in reports that name files.
HIDE = """base => {
    for (const node of window.app.graph._nodes)
        for (const widget of node.widgets ?? [])
            if (widget.name === "report") widget.value = widget.value.replaceAll(base, "ComfyUI");
}"""
SET = "([name, value]) => window.app.extensionManager.setting.set(name, value)"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.make_screenshots", description=__doc__)
    parser.add_argument("names", nargs="*", default=[build.__name__ for build in WORKFLOWS])
    names = parser.parse_args(arguments).names
    FOLDER.mkdir(parents=True, exist_ok=True)
    root = Path(os.environ.get("COMFYUI_PATH") or Path.home() / "comfy" / "ComfyUI")
    with (
        tempfile.TemporaryDirectory() as folder,
        started(root / ".venv" / "bin" / "python", Path(folder) / "base") as host,
        opened(host, WIDTH, HEIGHT) as frontend,
    ):
        page: Any = frontend.page
        # Small texts are drawn, too.
        page.evaluate(SET, ["LiteGraph.Canvas.MinFontSizeForLOD", 0])
        page.evaluate(SET, ["Comfy.Minimap.Visible", False])
        for renderer, nodes_2 in RENDERERS.items():
            page.evaluate(SET, ["Comfy.VueNodes.Enabled", nodes_2])
            for name in names:
                graph = json.loads((ROOT / "example_workflows" / f"{name}.json").read_text("utf-8"))
                # Nodes whose results are cached would show nothing.
                host.post("/free", {"unload_models": True, "free_memory": True})
                page.evaluate("graph => window.app.loadGraphData(graph)", {**graph, "extra": {}})  # not in app mode
                run = frontend.run(RUN_SECONDS)
                assert not run.error, f"{name}: {run.error}"
                page.evaluate(HIDE, str(host.base))
                path = FOLDER / f"{name}_{renderer}.jpg"
                _save(page.screenshot(clip=page.evaluate(FIT, FREE)), path)
                print(f"wrote {path.relative_to(ROOT)}, overlapping: {frontend.overlaps()}", flush=True)
    return 0


def _save(png: bytes, path: Path) -> None:
    with Image.open(io.BytesIO(png)) as picture:
        shown = picture.convert("RGB")
    shown.thumbnail((SAVED_WIDTH, SAVED_WIDTH))
    shown.save(path, quality=72, optimize=True)


if __name__ == "__main__":
    raise SystemExit(main())
