"""Workflows as the frontend saves them: titles, links, widgets and notes. The nodes are made up."""

from __future__ import annotations

from typing import Any

from tools.comfyui.server import Graph
from tools.comfyui.workflow import add_note, add_titles, as_graph

# As the host describes its nodes.
LISTED: dict[str, Any] = {
    "Loader": {
        "display_name": "Load Model",
        "input": {"required": {"file": [["a", "b"]]}},
        "output": ["MODEL", "CLIP"],
        "output_name": ["model", "clip"],
    },
    "CLIPTextEncode": {
        "display_name": "Encode",
        "input": {"required": {"text": ["STRING", {"multiline": True}], "clip": ["CLIP"]}},
        "output": ["CONDITIONING"],
        "output_name": ["conditioning"],
    },
    "Sampler": {
        "display_name": "",
        "input": {
            "required": {
                "model": ["MODEL"],
                "seed": ["INT", {"default": 0, "control_after_generate": True}],
                "steps": ["INT", {"default": 20}],
                "positive": ["CONDITIONING"],
                "negative": ["CONDITIONING"],
            },
            "optional": {"mask": ["MASK"]},
        },
        "output": ["LATENT"],
        "output_name": ["latent"],
    },
}


def graph() -> tuple[Graph, dict[str, Any]]:
    """A small workflow in API form with titles, and as the frontend saves it."""
    made = Graph()
    loader, other = (made.add("Loader", file=file) for file in "ab")
    positive = made.add("CLIPTextEncode", text="a cat", clip=loader[1])
    negative = made.add("CLIPTextEncode", text="", clip=other[1])
    made.add("Sampler", model=loader, seed=7, positive=positive, negative=negative)
    add_titles(made.prompt, LISTED)
    return made, as_graph(made.prompt, LISTED)


def test_titles_tell_nodes_of_one_kind_apart() -> None:
    made, _ = graph()
    titles = [node["_meta"]["title"] for node in made.prompt.values()]
    assert titles == ["Load Model", "Load Model 2", "Positive prompt", "Negative prompt", "Sampler"]


def test_links_agree_at_both_ends() -> None:
    _, file = graph()
    nodes = {node["id"]: node for node in file["nodes"]}
    assert file["last_node_id"] == max(nodes) == len(nodes)
    assert file["last_link_id"] == len(file["links"]) == len({link[0] for link in file["links"]})
    for number, source, output, target, place, kind in file["links"]:
        start, end = nodes[source]["outputs"][output], nodes[target]["inputs"][place]
        assert number in start["links"]
        assert end["link"] == number
        assert start["type"] == end["type"] == kind
        assert nodes[source]["pos"][0] + nodes[source]["size"][0] < nodes[target]["pos"][0]
    assert [slot["name"] for slot in nodes[5]["inputs"] if slot["link"] is None] == ["mask"]


def test_widgets_are_in_the_order_of_the_inputs() -> None:
    _, file = graph()
    values = {node["id"]: node["widgets_values"] for node in file["nodes"]}
    assert values == {1: ["a"], 2: ["b"], 3: ["a cat"], 4: [""], 5: [7, "fixed", 20]}


def test_note_is_one_more_node_above_the_others() -> None:
    _, file = graph()
    add_note(file, "**Read me**")
    note = file["nodes"][-1]
    assert (note["type"], note["widgets_values"]) == ("MarkdownNote", ["**Read me**"])
    assert note["id"] == file["last_node_id"] == len(file["nodes"])
    assert note["pos"][1] + note["size"][1] < min(node["pos"][1] for node in file["nodes"][:-1])
