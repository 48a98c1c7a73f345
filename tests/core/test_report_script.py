"""The script that shows reports on nodes, run by Node.js with a page that stands in for that of the host."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "web" / "js" / "report.js"
# What the script uses of the page.
APP = """
export const app = {extensions: [], registerExtension: extension => app.extensions.push(extension)};
"""
WIDGETS = """
export const ComfyWidgets = {
    STRING(node, name) {
        const widget = {name, value: "", options: {}, element: {style: {}}};
        node.widgets.push(widget);
        return {widget};
    },
};
"""
# A graph with a node at its top and two in subgraphs, one inside the other.
PAGE = """
import { app } from "./scripts/app.js";
await import("./extensions/act-steering/js/report.js");
const [extension] = app.extensions;
const INNER = "11111111-2222-3333-4444-555555555555", OUTER = "66666666-7777-8888-9999-000000000000";

function node(category, changes = {}) {
    class Kind {
        static nodeData = {category};
        widgets = [{name: "strength", value: 1}];
        size = [200, 100];
        computeSize() { return [180, 120 + 90 * (this.widgets.length - 1)]; }
        setSize(size) { this.size = size; }
        setDirtyCanvas() { this.isDirty = true; }
        onExecuted(output) { this.executed = output; }
    }
    extension.beforeRegisterNodeDef(Kind, Kind.nodeData);
    return Object.assign(new Kind(), changes);
}
function graph(nodes, changes = {}) {
    return {getNodeById: id => nodes[id] ?? null, ...changes};
}
const ours = node("ACT steering"), other = node("sampling"), inside = node("ACT steering"), deep = node("ACT steering");
const inner = graph({3: deep}), outer = graph({7: inside, 8: node("", {subgraph: inner})});
const subgraphs = new Map([[INNER, inner], [OUTER, outer]]);
app.graph = graph({1: ours, 2: other, 5: node("", {subgraph: outer})}, {subgraphs});

const shown = node => node.widgets.slice(1).map(widget => [widget.name, widget.value]);
const all = () => [ours, other, inside, deep].map(shown);
const found = {};
"""


def on_page(tmp_path: Path, script: str) -> dict[str, Any]:
    """What a script puts into `found` on the page."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("there is no Node.js on this machine, so the script of the page is not tested")
    files = {"scripts/app.js": APP, "scripts/widgets.js": WIDGETS, "package.json": '{"type": "module"}'}
    files["page.js"] = f"{PAGE}\n{script}\nconsole.log(JSON.stringify(found));"
    files["extensions/act-steering/js/report.js"] = SCRIPT.read_text("utf-8")
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    done = subprocess.run([node, "page.js"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_report_appears_after_a_run_and_is_replaced_by_the_next(tmp_path: Path) -> None:
    found = on_page(
        tmp_path,
        """
        ours.onExecuted({text: ["14 of 14 sites found", "strength 1"], images: []});
        found.first = shown(ours);
        found.size = ours.size;
        found.before = ours.executed.images;
        ours.onExecuted({text: ["13 of 14 sites found"]});
        ours.onExecuted({});
        found.second = shown(ours);
        const [, report] = ours.widgets;
        found.stored = [report.serialize, report.options.serialize];
        found.readOnly = report.element.readOnly;
        """,
    )
    assert found["first"] == [["report", "14 of 14 sites found\nstrength 1"]]
    assert found["size"] == [200, 210]  # as wide as before, and as high as it needs
    assert found["before"] == []  # what the host does with an output, it still does
    assert found["second"] == [["report", "13 of 14 sites found"]]
    assert found["stored"] == [False, False]  # neither in a workflow nor in a request
    assert found["readOnly"]


def test_nodes_of_others_show_nothing(tmp_path: Path) -> None:
    found = on_page(
        tmp_path,
        """
        other.onExecuted({text: ["hello"]});
        extension.onNodeOutputsUpdated({2: {text: ["hello"]}, 99: {text: ["of a node that is gone"]}});
        found.all = all();
        """,
    )
    assert found["all"] == [[], [], [], []]


@pytest.mark.parametrize("names", ["places", "paths"])
def test_reports_come_back_also_inside_subgraphs(tmp_path: Path, names: str) -> None:
    """As after a switch of tabs: for a run that ended meanwhile, the page names nodes by the path to them."""
    inside, deep = {"places": ("`${OUTER}:7`", "`${INNER}:3`"), "paths": ('"5:7"', '"5:8:3"')}[names]
    found = on_page(
        tmp_path,
        f"""
        const gone = "99999999-0000-0000-0000-000000000000";
        extension.onNodeOutputsUpdated({{
            1: {{text: ["top"]}}, [{inside}]: {{text: ["inside"]}}, [{deep}]: {{text: ["deep"]}},
            [`${{gone}}:1`]: {{text: ["gone"]}}, "4:1": {{text: ["gone"]}},
        }});
        found.all = all();
        """,
    )
    assert found["all"] == [[["report", "top"]], [], [["report", "inside"]], [["report", "deep"]]]
