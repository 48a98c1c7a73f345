"""The example workflows and help pages in the real frontend, in a headless Chromium."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from graphs import QUICK, free
from in_host import require_language_model

from act_core import load_map
from tools.comfyui.frontend import TIMEOUT, Frontend
from tools.comfyui.server import PACK

WORKFLOWS = sorted((PACK / "example_workflows").glob("*.json"))
QUEUED = "async () => (await window.app.graphToPrompt()).output"
SET_INPUTS = """changes => {
    for (const node of window.app.graph._nodes)
        for (const [name, value] of Object.entries(changes[node.type] ?? {}))
            node.widgets.find(widget => widget.name === name).value = value;
}"""


# All pictures have arrived, and there are some. Nodes 2.0 draws nodes as elements of the page, and pictures in them.
RENDERERS = {
    True: """() => {
        const images = [...document.querySelectorAll("[data-node-id] img")];
        return images.length && images.every(image => image.naturalWidth > 0);
    }""",
    False: "() => window.app.graph._nodes.some(n => n.imgs && n.imgs.length && n.imgs[0].naturalWidth > 0)",
}
# A switch moves the nodes on the page, perhaps some frames later: before the next workflow is loaded.
SET_RENDERER = """async on => {
    await window.app.extensionManager.setting.set("Comfy.VueNodes.Enabled", on);
    await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
}"""
# They arrive node by node, the last ones perhaps after the first picture.
REPORTS_ARE = """wanted => {
    const shown = window.app.graph._nodes.flatMap(
        n => (n.widgets ?? []).filter(w => w.name === "report").map(w => [n.id, w.value])
    );
    return shown.length === Object.keys(wanted).length && shown.every(([id, text]) => wanted[id] === text);
}"""


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_example_runs_from_page(frontend: Frontend, host_python: Path, path: Path) -> None:
    """The page queues what the API form says, which runs in full in another test; here it runs with quick inputs.

    It shows pictures and reports as Nodes 2.0, and on the classic canvas after a switch.
    """
    require_language_model(host_python, path.stem)
    page, host = frontend.page, frontend.host
    graph = {**json.loads(path.read_text("utf-8")), "extra": {}}  # not in app mode
    # In Nodes 2.0, a picture of the last workflow that arrives late would be given to the node with the same number.
    page.evaluate("() => window.app.clean()")
    page.evaluate(SET_RENDERER, True)
    page.evaluate("graph => window.app.loadGraphData(graph)", graph)
    unknown = page.evaluate("() => window.app.graph._nodes.filter(n => n.has_errors).map(n => n.type)")
    assert unknown == []
    assert page.evaluate("() => window.app.graph._nodes.length") == len(graph["nodes"])
    api_form = json.loads((path.parent / "api" / path.name).read_text("utf-8"))
    queued = page.evaluate(QUEUED)
    assert {number: (node["class_type"], node["inputs"]) for number, node in queued.items()} == {
        number: (node["class_type"], node["inputs"]) for number, node in api_form.items()
    }
    page.evaluate(SET_INPUTS, QUICK)
    free(host)  # nodes whose outputs are cached show nothing
    run = frontend.run()
    assert not run.error
    assert all(picture.is_file() for picture in host.images(run))
    reports = {
        number: "\n".join(output["text"])
        for number, output in run.outputs.items()
        if "text" in output and "ACT" in api_form[number]["class_type"]
    }
    assert reports
    for nodes_2, shown in RENDERERS.items():
        page.evaluate(SET_RENDERER, nodes_2)
        page.wait_for_function(shown, timeout=TIMEOUT)
        page.wait_for_function(REPORTS_ARE, arg=reports, timeout=TIMEOUT)
        assert frontend.overlaps() == [], f"Nodes 2.0: {nodes_2}"
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


def test_model_library_shows_map_with_cover(frontend: Frontend) -> None:
    """The host's own browser of models reads title and cover from the header of the map."""
    page = frontend.page
    page.evaluate("() => window.app.extensionManager.command.execute('Workspace.ToggleSidebarTab.model-library')")
    page.get_by_text("act_maps", exact=True).click(timeout=TIMEOUT)
    shown = (
        """() => document.querySelector('[aria-label="Plain to ink"] .model-lib-model-icon')?.style.backgroundImage"""
    )
    page.wait_for_function(shown, timeout=TIMEOUT)
    act_map = load_map(PACK / "pretrained_maps" / "plain_to_ink.safetensors")
    cover = base64.b64encode(act_map.card.cover).decode()
    assert page.evaluate(shown) == f'url("data:image/jpeg;base64,{cover}")'
