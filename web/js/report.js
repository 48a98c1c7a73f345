/**
 * Shows the report of a node on the node itself, below its other widgets, on the classic canvas and as Nodes 2.0.
 *
 * A node reports by `ui={"text": (report,)}`. The text is in no workflow and in no request: it is what the last run
 * said.
 */

import { app } from "../../../scripts/app.js";
import { ComfyWidgets } from "../../../scripts/widgets.js";

const CATEGORY = "ACT steering";
const NAME = "report";
const MIN_HEIGHT = 90; // pixels

function textOf(output) {
    const text = output?.text;
    return Array.isArray(text) ? text.join("\n") : text;
}

function addWidget(node) {
    const { widget } = ComfyWidgets.STRING(node, NAME, ["STRING", { multiline: true }], app);
    widget.serialize = false;
    Object.assign(widget.options, { serialize: false, read_only: true, getMinHeight: () => MIN_HEIGHT });
    const element = widget.element ?? widget.inputEl;
    element.readOnly = true;
    element.placeholder = "";
    Object.assign(element.style, { fontFamily: "monospace", opacity: 0.8 });
    return widget;
}

/** The node of an output: also one in a subgraph, named by `subgraph:node`, or by the nodes that lead to it. */
function nodeOf(id) {
    const path = id.split(":");
    const last = path.pop();
    let graph = app.graph;
    for (const part of path) graph = app.graph.subgraphs?.get(part) ?? graph?.getNodeById(part)?.subgraph;
    return graph?.getNodeById(last);
}

function show(node, output) {
    const text = textOf(output);
    if (!text) return;
    const widget = node.widgets?.find(({ name }) => name === NAME) ?? addWidget(node);
    widget.value = text;
    const [width, height] = node.computeSize();
    if (height > node.size[1]) node.setSize([Math.max(width, node.size[0]), height]);
    node.setDirtyCanvas(true, true);
}

app.registerExtension({
    name: "ACTSteering.Report",
    beforeRegisterNodeDef(nodeType, nodeData) {
        if (nodeData.category !== CATEGORY) return;
        const { onExecuted } = nodeType.prototype;
        nodeType.prototype.onExecuted = function (output, ...rest) {
            onExecuted?.call(this, output, ...rest);
            show(this, output);
        };
    },
    // Also when the page brings results back, such as from another tab; older pages do not call it.
    onNodeOutputsUpdated(outputs) {
        for (const [id, output] of Object.entries(outputs)) {
            const node = nodeOf(id);
            if (node?.constructor.nodeData?.category === CATEGORY) show(node, output);
        }
    },
});
