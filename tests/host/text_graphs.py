"""Workflows with language models that several host tests share."""

from __future__ import annotations

from typing import Any

from tools.comfyui.server import Graph, Host, Node

INSTRUCTION = "Describe an image of this:"
PROMPT = "When I woke up this morning, I"
LENGTH = 12  # tokens to write
REAL, TINY, SHORT = "smollm2", "tiny", "nested/short"


def loaded(graph: Graph, name: str) -> Node:
    return graph.add("LoadACTLanguageModel", name=name, dtype="auto", device="auto")


def text_of(graph: Graph, name: str, prompt: str = PROMPT, **changes: Any) -> Node:
    """A text node; its map is a node, or given by file name."""
    settings: dict[str, Any] = {"instruction": INSTRUCTION, "strength": 1.0, "mode": "continue", "max_length": LENGTH}
    settings |= {"temperature": 0.8, "top_p": 0.95, "repetition_penalty": 1.1, "seed": 3, "compare": False}
    if act_map := changes.pop("act_map", ""):
        settings["act_map"] = act_map if isinstance(act_map, Node) else graph.add("LoadACTMap", name=act_map)
    node = graph.add("ACTSteeredText", language_model=loaded(graph, name), prompt=prompt, **settings | changes)
    for output in range(3):
        graph.add("PreviewAny", source=node[output])
    return node


def written(host: Host, name: str, prompt: str = PROMPT, **changes: Any) -> tuple[str, str, str]:
    """The text, the one without the map, and the report."""
    graph = Graph()
    node = text_of(graph, name, prompt, **changes)
    outputs = host.run(graph).outputs
    first = int(node.number) + 1
    text, unsteered, report = (outputs[str(first + output)]["text"][0] for output in range(3))
    return text, unsteered, report


def refused(host: Host, name: str, prompt: str = PROMPT, **changes: Any) -> str:
    graph = Graph()
    text_of(graph, name, prompt, **changes)
    return host.fail(graph).error


def fit_of(graph: Graph, name: str, source: Any, target: Any, **changes: Any) -> Node:
    settings = {"sites": "auto", "estimator": "linear", "order": "causal", "support": "unbounded"}
    settings |= {"format": "bare text", "system": "", "user": ""}
    return graph.add(
        "FitACTTextMap", language_model=loaded(graph, name), source=source, target=target, **settings | changes
    )
