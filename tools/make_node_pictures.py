"""Writes ``web/docs/<node>/node.png``: each node whose help page shows it, as the frontend draws it.

Also ``docs/strength_sweep.png``, that workflow after a run, and the charts on the help pages of Inspect ACT Map,
Probe ACT Map and Compare ACT Maps.

    python tools/make_node_pictures.py

Needs ComfyUI at ``~/comfy/ComfyUI``, or at COMFYUI_PATH, and Chromium.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from act_core import load_map  # noqa: E402
from act_core.comparison import compare  # noqa: E402
from act_core.map_charts import comparison_chart, depth_chart  # noqa: E402
from act_core.plots import effect_chart  # noqa: E402
from tools.comfyui.frontend import TIMEOUT, opened  # noqa: E402
from tools.comfyui.server import Graph, Host, started  # noqa: E402

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

SHOWN = "() => window.app.graph._nodes.filter(n => n.imgs && n.imgs.length && n.imgs[0].naturalWidth > 0).length > 1"
# Places the whole graph between the menus of the page; returns where it is.
FIT = """async ([left, top, right, bottom]) => {
    const app = window.app, nodes = app.graph._nodes;
    const from = [0, 1].map(i => Math.min(...nodes.map(n => n.pos[i] - 55)));
    const to = [0, 1].map(i => Math.max(...nodes.map(n => n.pos[i] + n.size[i] + 10)));
    const scale = Math.min((right - left) / (to[0] - from[0]), (bottom - top) / (to[1] - from[1]));
    const canvas = app.canvas.canvas.getBoundingClientRect();
    app.canvas.ds.scale = scale;
    app.canvas.ds.offset = [(left - canvas.x) / scale - from[0], (top - canvas.y) / scale - from[1]];
    app.canvas.setDirty(true, true);
    await new Promise(resolve => setTimeout(resolve, 5000));
    return {x: left, y: top, width: scale * (to[0] - from[0]), height: scale * (to[1] - from[1])};
}"""
# The part of a page of 2300 x 1400 that no menu covers.
FREE = 90, 150, 1900, 1380
# Also small texts, and no counters in a corner of the canvas.
READABLE = """() => {
    const setting = window.app.extensionManager.setting;
    setting.set("LiteGraph.Canvas.MinFontSizeForLOD", 0);
    setting.set("Comfy.Graph.CanvasInfo", false);
}"""


def draw_probe(host: Host) -> None:
    """What Probe ACT Map shows of the shipped map."""
    graph = Graph()
    loaded = graph.add("LoadACTDemoModel")
    act_map = graph.add("LoadACTMap", name="plain_to_ink.safetensors")
    models = {"model": loaded[0], "clip": loaded[1], "act_map": act_map}
    settings = {"prompt": "red heart, flat sticker", "strength": 1.0, "seed": 0, "steps": 8, "width": 0, "height": 0}
    graph.add("ProbeACTMap", **models, **settings)
    *_, picture = host.images(host.run(graph))  # after the cover of the loaded map
    drawn = Image.open(picture).convert("P", palette=Image.Palette.ADAPTIVE, colors=64)
    drawn.save(DOCS / "ProbeACTMap" / "moves.png", optimize=True)


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
        draw_probe(host)
    with (
        tempfile.TemporaryDirectory() as folder,
        started(root / ".venv" / "bin" / "python", Path(folder) / "base") as host,
        opened(host, 2300, 1400) as frontend,
    ):
        graph = json.loads((ROOT / "example_workflows" / "strength_sweep.json").read_text("utf-8"))
        page: Any = frontend.page
        page.evaluate(READABLE)
        page.evaluate("graph => window.app.loadGraphData(graph)", graph)
        page.evaluate("() => window.app.queuePrompt(0)")
        page.wait_for_function(SHOWN, timeout=TIMEOUT)
        picture = ROOT / "docs" / "strength_sweep.png"
        page.screenshot(path=picture, clip=page.evaluate(FIT, FREE))
        Image.open(picture).convert("P", palette=Image.Palette.ADAPTIVE, colors=128).save(picture, optimize=True)
    draw_charts()


def draw_charts() -> None:
    """The charts of shipped maps, which need no host."""
    names = ("plain_to_ink", "text_night", "text_gloomy")
    ink, night, gloomy = (load_map(ROOT / "pretrained_maps" / f"{name}.safetensors") for name in names)
    effect_chart(ink).save(DOCS / "InspectACTMap" / "effect.png", optimize=True)
    depth_chart(ink).save(DOCS / "InspectACTMap" / "depth.png", optimize=True)
    comparison_chart(compare(night, gloomy)).save(DOCS / "CompareACTMaps" / "comparison.png", optimize=True)


if __name__ == "__main__":
    main()
