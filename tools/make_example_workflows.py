"""Writes ``example_workflows``: each as a graph, in API form, and with its own output as a cover. Also ``subgraphs``.

The covers are also the pictures on the help pages of some nodes.

    python tools/make_example_workflows.py [--keep-covers] [NAME ...]

Needs ComfyUI at ``~/comfy/ComfyUI``, or at COMFYUI_PATH.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tools.comfyui.blueprint import as_subgraph  # noqa: E402
from tools.comfyui.server import Graph, Host, started  # noqa: E402
from tools.comfyui.workflow import add_note, add_titles, as_graph  # noqa: E402
from tools.examples import WORKFLOWS  # noqa: E402
from tools.examples.subgraphs import BLUEPRINTS  # noqa: E402

FOLDER = ROOT / "example_workflows"
# ComfyUI lists what it finds in a folder of this name.
SUBGRAPHS = ROOT / "subgraphs"
COVER = 512
# Nodes whose help pages show the cover of a workflow.
HELP_PAGES = {
    "style_slider": "ApplyACTSteering",
    "fit_your_own": "FitACTMap",
    "style_from_pictures": "FitACTMapFromImages",
    "regions": "CreateACTHook",
    "strength_sweep": "ACTStrengthSweep",
}


def write(host: Host, build: Callable[[Graph], None], *, cover: bool) -> None:
    """Write a workflow in both forms, and its cover unless that is kept."""
    graph = Graph()
    build(graph)
    listed = host.get("/object_info")
    add_titles(graph.prompt, listed)
    name = build.__name__
    (FOLDER / "api").mkdir(parents=True, exist_ok=True)
    (FOLDER / "api" / f"{name}.json").write_text(json.dumps(graph.prompt, indent=2) + "\n")
    (FOLDER / f"{name}.json").write_text(json.dumps(_as_file(graph, listed), indent=1) + "\n")
    if cover:
        run = host.run(graph)
        # In the order in which the nodes were added, not in that in which they ran.
        paths = host.images(replace(run, outputs=dict(sorted(run.outputs.items(), key=lambda output: int(output[0])))))
        images: list[Image.Image] = [Image.open(path) for path in paths if "output" in path.parts]
        picture = _cover(images)
        picture.save(FOLDER / f"{name}.jpg", quality=88)
        if name in HELP_PAGES:
            picture.save(ROOT / "web" / "docs" / HELP_PAGES[name] / f"{name}.png", optimize=True)


def _as_file(graph: Graph, listed: Mapping[str, Any]) -> dict[str, Any]:
    """A workflow as the frontend saves it."""
    file = as_graph(graph.prompt, listed)
    for entry in file["nodes"]:
        entry["properties"] |= graph.properties.get(str(entry["id"]), {})
        for (number, name), label in graph.labels.items():
            if int(number) == entry["id"]:
                entry["inputs"].append({"name": name, "label": label, "widget": {"name": name}, "link": None})
    if graph.note:
        add_note(file, graph.note)
    return {**file, "extra": graph.extra}


def write_subgraphs(listed: Mapping[str, Any]) -> None:
    """Write the blueprints, each under the name that the host lists."""
    SUBGRAPHS.mkdir(exist_ok=True)
    for build in BLUEPRINTS:
        blueprint = build()
        text = json.dumps(as_subgraph(blueprint, listed), indent=1)
        (SUBGRAPHS / f"{blueprint.name}.json").write_text(text + "\n")


def _cover(images: list[Image.Image]) -> Image.Image:
    """A single picture unchanged, or several in a square."""
    if len(images) == 1:
        (image,) = images
        return image.convert("RGB").resize((2 * image.width, 2 * image.height), Image.Resampling.NEAREST)
    side = images[0].width
    cover = Image.new("RGB", (2 * side, 2 * side))
    for number, image in enumerate(images[:4]):
        cover.paste(image, (side * (number % 2), side * (number // 2)))
    return cover.resize((COVER, COVER), Image.Resampling.NEAREST)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the example workflows, or some of them.")
    parser.add_argument("names", nargs="*", default=[build.__name__ for build in WORKFLOWS])
    parser.add_argument("--keep-covers", action="store_true", help="do not draw the covers again")
    args = parser.parse_args()
    root = Path(os.environ.get("COMFYUI_PATH") or Path.home() / "comfy" / "ComfyUI")
    with (
        tempfile.TemporaryDirectory() as folder,
        started(root / ".venv" / "bin" / "python", Path(folder) / "base") as host,
    ):
        for build in (build for build in WORKFLOWS if build.__name__ in args.names):
            write(host, build, cover=not args.keep_covers)
            print(f"wrote {FOLDER / build.__name__}.json")
        write_subgraphs(host.get("/object_info"))


if __name__ == "__main__":
    main()
