"""Blueprints and the app: listed by the host, and inserted and run in the real frontend."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tools.comfyui.blueprint import as_subgraph
from tools.comfyui.frontend import TIMEOUT, Frontend
from tools.comfyui.server import PACK, Host
from tools.examples.subgraphs import BLUEPRINTS

SUBGRAPHS = {path.stem: json.loads(path.read_text("utf-8")) for path in sorted((PACK / "subgraphs").glob("*.json"))}
# Connects the only node of the graph to what it needs, and its outputs to nodes that show them.
CONNECT = """() => {
    const app = window.app, add = type => {
        const node = window.LiteGraph.createNode(type);
        app.graph.add(node);
        return node;
    };
    const [inserted] = app.graph._nodes;
    const sources = [add("LoadACTDemoModel"), add("EmptySD3LatentImage")];
    for (const name of ["width", "height"]) sources[1].widgets.find(widget => widget.name === name).value = 64;
    const connect = (node, names) => {
        for (const [slot, input] of node.inputs.entries())
            for (const source of names)
                for (const [at, output] of source.outputs.entries())
                    if (input.link == null && !input.widget && (output.type === input.type || input.type === "*")
                        && (source !== inserted || [input.name, "grid", "report"].includes(output.name)))
                        source.connect(at, node, slot);
    };
    connect(inserted, sources);
    const outputs = inserted.outputs.map(output => output.name);
    connect(add("PreviewAny"), [inserted]);
    if (outputs.includes("grid")) connect(add("PreviewImage"), [inserted]);
    if (outputs.includes("positive")) {
        const sampler = add("KSampler"), decoder = add("VAEDecode"), shown = add("PreviewImage");
        connect(sampler, [inserted, sources[1]]);
        connect(decoder, [sampler, sources[0]]);
        connect(shown, [decoder]);
        sampler.widgets.find(widget => widget.name === "steps").value = 2;
    }
    const quick = {steps: 1, strengths: "0, 1"};
    for (const widget of inserted.widgets) if (widget.name in quick) widget.value = quick[widget.name];
}"""


def test_files_are_what_the_command_writes(host: Host) -> None:
    listed = host.get("/object_info")
    made = {blueprint.name: as_subgraph(blueprint, listed) for blueprint in (build() for build in BLUEPRINTS)}
    assert made == SUBGRAPHS, "run 'python -m tools.make_example_workflows --keep-covers'"


def test_host_lists_and_serves_blueprints(host: Host) -> None:
    entries = host.get("/global_subgraphs")
    ours = {entry["name"]: number for number, entry in entries.items() if "act-steering" in entry["info"]["node_pack"]}
    assert set(ours) == {"Style slider", "Style from pictures", "Strength sweep"}
    for name, number in ours.items():
        assert json.loads(host.get(f"/global_subgraphs/{number}")["data"]) == SUBGRAPHS[name]


def insert(frontend: Frontend, name: str) -> None:
    """Add a node to an empty graph by searching for its name, as with a double click on the canvas."""
    page: Any = frontend.page
    frontend.open()
    page.evaluate("() => window.app.graph.clear()")
    page.evaluate("() => window.app.extensionManager.command.execute('Workspace.SearchBox.Toggle')")
    page.get_by_role("combobox").or_(page.get_by_role("searchbox")).last.fill(name)
    chosen = page.locator("[role=option][aria-selected=true]", has=page.get_by_text(name, exact=True))
    chosen.first.wait_for(timeout=TIMEOUT)
    page.keyboard.press("Enter")
    page.wait_for_function("() => window.app.graph._nodes.length === 1", timeout=TIMEOUT)


@pytest.mark.parametrize("name", SUBGRAPHS)
def test_inserted_blueprint_runs(frontend: Frontend, name: str) -> None:
    insert(frontend, name)
    frontend.page.evaluate(CONNECT)
    run = frontend.run()
    assert not run.error
    texts = [text for output in run.outputs.values() for text in output.get("text", ())]
    assert any("sites" in text for text in texts)
    assert name == "Style from pictures" or frontend.host.images(run)
    assert frontend.errors == []


def test_app_has_one_slider_and_shows_pictures(frontend: Frontend) -> None:
    page: Any = frontend.page
    graph = json.loads((PACK / "example_workflows" / "style_app.json").read_text("utf-8"))
    page.set_viewport_size({"width": 1000, "height": 700})  # small pages show apps in another way
    frontend.open()
    page.evaluate("graph => window.app.loadGraphData(graph, true, true, 'style_app')", graph)
    page.get_by_role("button", name="Skip").click(timeout=TIMEOUT)  # the tour of the first app
    page.get_by_text("strength", exact=True).first.wait_for(timeout=TIMEOUT)
    assert page.get_by_role("slider").count() == 1
    run = frontend.run()
    assert not run.error
    assert len([path for path in frontend.host.images(run) if "output" in path.parts]) == 4
    page.locator("img[src*='filename=act_']").first.wait_for(timeout=TIMEOUT)
    assert frontend.errors == []
