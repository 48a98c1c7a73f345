"""Writes ``web/docs/<node>/node.png``: each node whose help page shows it, as the frontend draws it.

    python tools/make_node_pictures.py

Needs ComfyUI at ``~/comfy/ComfyUI``, or at COMFYUI_PATH, and Chromium.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tools.comfyui.frontend import opened  # noqa: E402
from tools.comfyui.server import started  # noqa: E402

DOCS = ROOT / "web" / "docs"
# Draws the node alone on the canvas, at a readable scale.
DRAW = """async type => {
    const app = window.app;
    // Not `clear()`: node ids would be reused, and with them the widget values of the previous node.
    for (const other of [...app.graph._nodes]) app.graph.remove(other);
    const node = window.LiteGraph.createNode(type);
    node.pos = [0, 0];
    app.graph.add(node);
    node.setSize([Math.max(node.computeSize()[0], 380), node.computeSize()[1]]);
    app.canvas.ds.scale = 1.2;
    app.canvas.ds.offset = [120, 120];
    app.canvas.setDirty(true, true);
    await new Promise(resolve => setTimeout(resolve, 800));
    const corner = app.canvas.ds.convertOffsetToCanvas([-14, -33]);
    const end = app.canvas.ds.convertOffsetToCanvas([node.size[0] + 14, node.size[1] + 14]);
    const at = app.canvas.canvas.getBoundingClientRect();
    return {x: at.x + corner[0], y: at.y + corner[1], width: end[0] - corner[0], height: end[1] - corner[1]};
}"""


def main() -> None:
    root = Path(os.environ.get("COMFYUI_PATH") or Path.home() / "comfy" / "ComfyUI")
    pages = [page for page in sorted(DOCS.glob("*/en.md")) if re.search(r"\(node\.png\)", page.read_text("utf-8"))]
    with (
        tempfile.TemporaryDirectory() as folder,
        started(root / ".venv" / "bin" / "python", Path(folder) / "base") as host,
        opened(host, 1000, 1000) as frontend,
    ):
        for page in pages:
            clip: Any = frontend.page.evaluate(DRAW, page.parent.name)
            picture = page.parent / "node.png"
            frontend.page.screenshot(path=picture, clip=clip)
            Image.open(picture).convert("P", palette=Image.Palette.ADAPTIVE, colors=64).save(picture, optimize=True)
            print(f"wrote {picture}")


if __name__ == "__main__":
    main()
