"""Workflows in API form: titles for their nodes, and the graph that the frontend saves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .server import WIDGETS

WIDTH, GAP, LINE = 320, 60, 24
# Nodes that show a text box or a picture below their inputs.
TALL = ("CLIPTextEncode", "SaveImage")
TALL_LINES = 140


def add_titles(prompt: Mapping[str, Any], listed: Mapping[str, Any]) -> None:
    """Give each node a title, as the host's own export does; those that read prompts name the prompt.

    Clients find nodes by their titles, so a title that several nodes share gets a number.
    """
    uses = {
        value[0]: name.removesuffix("_NEW").replace("cond", "region").capitalize()
        for node in prompt.values()
        for name, value in node["inputs"].items()
        if isinstance(value, list) and prompt[value[0]]["class_type"] == "CLIPTextEncode"
    }
    count: dict[str, int] = {}
    for number, node in prompt.items():
        title = (
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
    depths: dict[str, int] = {}
    nodes: dict[str, dict[str, Any]] = {}
    links: list[list[Any]] = []
    below: dict[int, int] = {}
    for number, node in prompt.items():
        before = [value[0] for value in node["inputs"].values() if isinstance(value, list)]
        depth = depths[number] = 1 + max((depths[other] for other in before), default=-1)
        entry = _entry(number, node, listed[node["class_type"]], nodes, links)
        entry["size"] = [WIDTH, _height(entry)]
        entry["pos"] = [depth * (WIDTH + GAP), below.get(depth, 0)]
        below[depth] = entry["pos"][1] + entry["size"][1] + GAP
        nodes[number] = entry
    last = {"last_node_id": len(nodes), "last_link_id": len(links)}
    rest = {"groups": [], "config": {}, "extra": {}, "version": 0.4}
    return {**last, "nodes": list(nodes.values()), "links": links, **rest}


def _entry(
    number: str,
    node: Mapping[str, Any],
    info: Mapping[str, Any],
    nodes: Mapping[str, dict[str, Any]],
    links: list[list[Any]],
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
                values.append("")
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


def _height(entry: Mapping[str, Any]) -> int:
    values = entry["widgets_values"]
    lines = max(len(entry["inputs"]), len(entry["outputs"])) + len(values)
    lines += 4 * any(isinstance(value, str) and "\n" in value for value in values)
    return LINE * (lines + 2) + (TALL_LINES if entry["type"] in TALL else 0)
