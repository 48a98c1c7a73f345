"""Workflows in API form: titles for their nodes, and the graph that the frontend saves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .server import WIDGETS

WIDTH, GAP, LINE = 320, 60, 26
NOTE_WIDTH, NOTE_HEIGHT = 2 * WIDTH + GAP, 120
# Height of what nodes show below their inputs: a box for a text, the report of a run, a picture.
TEXT, REPORT, PICTURE = 70, 110, 270
_BOTH = {"LoadACTMap", "ACTMapLoader", "InspectACTMap", "CompareACTMaps", "ProbeACTMap", "CalibrateACTMap"}
PICTURES = {*_BOTH, "ACTStrengthSweep", "SaveImage"}
_FITS = {"FitACTMap", "FitACTMapFromImages", "FitACTTextMap"}
_TEXTS = {"ACTStrengthSweep", "ACTMapStack", "ListACTMaps", "ACTSteeredText", "ApplyACTSteering", "PreviewAny"}
REPORTS = {*_BOTH, *_FITS, *_TEXTS, "ApplyACTSteeringCLIP", "SaveACTMap", "ExportACTMapAsLoRA"}


def add_titles(prompt: Mapping[str, Any], listed: Mapping[str, Any]) -> None:
    """Give each node without a title one, as the host's own export does; those that read prompts name the prompt.

    Clients find nodes by their titles, so a title that several nodes share gets a number.
    """
    uses = {
        value[0]: name.removesuffix("_NEW").replace("cond", "region").capitalize()
        for node in prompt.values()
        for name, value in node["inputs"].items()
        if isinstance(value, list) and prompt.get(value[0], {}).get("class_type") == "CLIPTextEncode"
    }
    count: dict[str, int] = {}
    for number, node in prompt.items():
        title = node.get("_meta", {}).get("title") or (
            f"{uses[number]} prompt"
            if number in uses
            else (listed[node["class_type"]]["display_name"] or node["class_type"])
        )
        count[title] = count.get(title, 0) + 1
        node["_meta"] = {"title": title if count[title] == 1 else f"{title} {count[title]}"}


def as_graph(prompt: Mapping[str, Any], listed: Mapping[str, Any]) -> dict[str, Any]:
    """A workflow in API form as the graph that the frontend saves, laid out from left to right.

    Args:
        prompt: the workflow, with titles.
        listed: the host's description of all nodes, ``/object_info``.
    """
    nodes, links = entries(prompt, listed)
    last = {"last_node_id": len(nodes), "last_link_id": len(links)}
    rest = {"groups": [], "config": {}, "extra": {}, "version": 0.4}
    return {**last, "nodes": list(nodes.values()), "links": links, **rest}


def add_note(file: dict[str, Any], text: str) -> None:
    """Add a note in Markdown above a graph, as the frontend saves one."""
    number, height = file["last_node_id"] + 1, NOTE_HEIGHT
    file["last_node_id"] = number
    file["nodes"].append(
        {
            **{"id": number, "type": "MarkdownNote", "pos": [0, -height - 2 * GAP], "size": [NOTE_WIDTH, height]},
            **{"flags": {}, "order": len(file["nodes"]), "mode": 0, "inputs": [], "outputs": [], "title": "Note"},
            **{"properties": {}, "widgets_values": [text], "color": "#432", "bgcolor": "#653"},
        }
    )


def entries(
    prompt: Mapping[str, Any],
    listed: Mapping[str, Any],
    first: Mapping[str, dict[str, Any]] | None = None,
    defaults: Sequence[Any] = (),
) -> tuple[dict[str, dict[str, Any]], list[list[Any]]]:
    """The nodes of a graph by number, and its links.

    Args:
        prompt: the workflow, with titles.
        listed: the host's description of all nodes.
        first: what stands in the graph before its nodes, with outputs to link from.
        defaults: values of the widgets that are linked from there, by output.
    """
    depths: dict[str, int] = {}
    nodes: dict[str, dict[str, Any]] = {**(first or {})}
    links: list[list[Any]] = []
    below: dict[int, int] = {}
    for number, node in prompt.items():
        before = [value[0] for value in node["inputs"].values() if isinstance(value, list)]
        depth = depths[number] = 1 + max((depths.get(other, -1) for other in before), default=-1)
        entry = _entry(number, node, listed[node["class_type"]], nodes, links, defaults)
        entry["size"] = [WIDTH, _height(entry, listed[node["class_type"]])]
        entry["pos"] = [depth * (WIDTH + GAP), below.get(depth, 0)]
        below[depth] = entry["pos"][1] + entry["size"][1] + GAP
        nodes[number] = entry
    return nodes, links


def _entry(
    number: str,
    node: Mapping[str, Any],
    info: Mapping[str, Any],
    nodes: Mapping[str, dict[str, Any]],
    links: list[list[Any]],
    defaults: Sequence[Any],
) -> dict[str, Any]:
    """A node of the graph; links from the nodes before it are added to both ends and to `links`."""
    inputs: list[dict[str, Any]] = []
    values: list[Any] = []
    declared = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
    for name, (kind, *options) in declared.items():
        value = node["inputs"].get(name)
        is_widget = isinstance(kind, list) or kind in WIDGETS
        if isinstance(value, list):
            source, output = value
            link, start = len(links) + 1, nodes[source]["outputs"][output]
            links.append([link, int(source), output, int(number), len(inputs), start["type"]])
            start["links"].append(link)
            inputs.append({"name": name, "type": start["type"], "link": link})
            if is_widget:
                inputs[-1]["widget"] = {"name": name}
                values.append(defaults[output] if int(source) < 0 else "")
                if options and options[0].get("control_after_generate"):
                    values.append("fixed")
        elif is_widget:
            values.append(value if value is not None else options[0].get("default"))
            if options and options[0].get("control_after_generate"):
                values.append("fixed")
        else:
            inputs.append({"name": name, "type": kind, "link": None})
    outputs = zip(info["output_name"], info["output"], strict=True)
    return {
        "id": int(number),
        "type": node["class_type"],
        "pos": [],
        "size": [],
        "flags": {},
        "order": len(nodes),
        "mode": 0,
        "inputs": inputs,
        "outputs": [{"name": name, "type": kind, "links": []} for name, kind in outputs],
        "title": node["_meta"]["title"],
        "properties": {"Node name for S&R": node["class_type"]},
        "widgets_values": values,
    }


def _height(entry: Mapping[str, Any], info: Mapping[str, Any]) -> int:
    declared = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
    linked = {slot["name"] for slot in entry["inputs"]}
    boxes = sum(
        bool(options and options[0].get("multiline")) for name, (_, *options) in declared.items() if name not in linked
    )
    lines = max(len(entry["inputs"]), len(entry["outputs"])) + len(entry["widgets_values"])
    kind = entry["type"]
    return LINE * (lines + 2) + TEXT * boxes + REPORT * (kind in REPORTS) + PICTURE * (kind in PICTURES)
