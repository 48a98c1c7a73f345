"""Subgraphs as ComfyUI serves them from ``subgraphs/*.json`` of a node pack: one node that holds a small graph."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .server import Graph, Node
from .workflow import GAP, LINE, WIDTH, add_titles, entries

# The two ends of a subgraph, as the frontend numbers them.
INLETS, OUTLETS = "-10", -20
_MARGIN = 160


@dataclass
class Blueprint(Graph):
    """A graph in API form with inputs and outputs of its own.

    Attributes:
        name, description: as the host lists it.
        inlets: defaults by name; None for those that are only ever connected.
        outlets: an output of a node by name.
    """

    name: str
    description: str
    inlets: dict[str, Any] = field(default_factory=dict[str, Any])
    outlets: dict[str, Node] = field(default_factory=dict[str, Node])

    def __post_init__(self) -> None:
        super().__init__()

    def inlet(self, name: str, default: Any = None) -> Node:
        """An input of the subgraph, to connect to inputs of its nodes. One with a default is a widget."""
        self.inlets[name] = default
        return Node(INLETS, len(self.inlets) - 1)

    def outlet(self, name: str, node: Node) -> None:
        self.outlets[name] = node


def as_subgraph(blueprint: Blueprint, listed: Mapping[str, Any]) -> dict[str, Any]:
    """The file of a blueprint.

    Args:
        blueprint: whose nodes are laid out from left to right.
        listed: the host's description of all nodes, ``/object_info``.
    """
    add_titles(blueprint.prompt, listed)
    kinds = [_kind(blueprint, listed, at) for at in range(len(blueprint.inlets))]
    first = {"outputs": [_slot(name, kind) for name, kind in zip(blueprint.inlets, kinds, strict=True)]}
    nodes, links = entries(blueprint.prompt, listed, {INLETS: first}, list(blueprint.inlets.values()))
    inlets, outlets = nodes.pop(INLETS)["outputs"], list[dict[str, Any]]()
    for at, (name, node) in enumerate(blueprint.outlets.items()):
        start = nodes[node.number]["outputs"][node.output]
        links.append([len(links) + 1, int(node.number), node.output, OUTLETS, at, start["type"]])
        start["links"].append(len(links))
        outlets.append({**_slot(name, start["type"]), "links": [len(links)]})
    right = max(entry["pos"][0] for entry in nodes.values()) + WIDTH + GAP
    number = str(uuid.uuid5(uuid.NAMESPACE_URL, f"act-steering/subgraphs/{blueprint.name}"))
    keys = "id", "origin_id", "origin_slot", "target_id", "target_slot", "type"
    last = {"lastGroupId": 0, "lastNodeId": len(nodes), "lastLinkId": len(links), "lastRerouteId": 0}
    definition = {
        **{"id": number, "version": 1, "state": last, "revision": 0, "config": {}, "name": blueprint.name},
        "inputNode": {"id": int(INLETS), "bounding": [-_MARGIN - GAP, 0, _MARGIN, LINE * (len(inlets) + 1)]},
        "outputNode": {"id": OUTLETS, "bounding": [right, 0, _MARGIN, LINE * (len(outlets) + 1)]},
        "inputs": _ports(blueprint.name, "in", inlets, -GAP),
        "outputs": _ports(blueprint.name, "out", outlets, right),
        **{"widgets": [], "nodes": list(nodes.values()), "groups": []},
        "links": [dict(zip(keys, link, strict=True)) for link in links],
        **{"extra": {}, "category": "ACT steering", "description": blueprint.description},
    }
    return {
        **{"revision": 0, "last_node_id": 1, "last_link_id": 0},
        "nodes": [_outer(blueprint, number, inlets, outlets)],
        **{"links": [], "version": 0.4, "definitions": {"subgraphs": [definition]}, "extra": {}},
    }


def _outer(
    blueprint: Blueprint, number: str, inlets: Sequence[Mapping[str, Any]], outlets: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The one node that is inserted."""
    inputs: list[dict[str, Any]] = []
    for slot, default in zip(inlets, blueprint.inlets.values(), strict=True):
        widget = {} if default is None else {"widget": {"name": slot["name"]}}
        inputs.append({"name": slot["name"], "type": slot["type"], **widget, "link": None})
    return {
        **{"id": 1, "type": number, "pos": [0, 0], "size": [WIDTH, LINE * (len(inputs) + 2)], "flags": {}, "order": 0},
        **{"mode": 0, "inputs": inputs},
        "outputs": [{"name": slot["name"], "type": slot["type"], "links": []} for slot in outlets],
        **{"properties": {}, "widgets_values": [], "title": blueprint.name},
    }


def _ports(name: str, side: str, slots: Sequence[Mapping[str, Any]], left: float) -> list[dict[str, Any]]:
    return [
        {
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"act-steering/subgraphs/{name}/{side}/{slot['name']}")),
            **{"name": slot["name"], "type": slot["type"], "linkIds": slot["links"], "pos": [left, LINE * (at + 1)]},
        }
        for at, slot in enumerate(slots)
    ]


def _slot(name: str, kind: str) -> dict[str, Any]:
    return {"name": name, "type": kind, "links": []}


def _kind(blueprint: Blueprint, listed: Mapping[str, Any], at: int) -> str:
    """The type of an inlet: that of the first input that it is connected to."""
    for node in blueprint.prompt.values():
        for name, value in node["inputs"].items():
            if value == [INLETS, at]:
                declared = listed[node["class_type"]]["input"]
                kind = {**declared.get("required", {}), **declared.get("optional", {})}[name][0]
                return "COMBO" if isinstance(kind, list) else kind
    raise ValueError(f"Inlet {at} of {blueprint.name} is connected to no node.")
