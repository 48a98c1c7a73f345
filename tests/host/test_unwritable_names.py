"""Map names that the file system refuses, and the name that Save ACT Map returns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from graphs import steered

from tools.comfyui.server import Graph, Host, Node, Run

CARD: dict[str, Any] = {"title": "", "author": "", "description": "", "license": ""}
STRENGTHS: dict[str, Any] = {"strength_low": 0.0, "strength_high": 1.0}


def save_node(host: Host, loaded: str, name: str) -> tuple[Graph, Node]:
    graph = Graph()
    node = graph.add("SaveACTMap", act_map=graph.add("LoadACTMap", name=loaded), name=name, **CARD, **STRENGTHS)
    return graph, node


def test_saved_name_is_listed_name(host: Host, saved: dict[str, str]) -> None:
    graph, node = save_node(host, saved["demo"], "styles/ink")
    graph.add("PreviewAny", source=node)
    texts = [output["text"][0] for output in host.run(graph).outputs.values()]
    listed = host.get("/object_info/LoadACTMap")["LoadACTMap"]["input"]["required"]["name"]
    name = str(Path("styles") / "ink.safetensors")
    assert name in texts
    assert name in str(listed)
    assert torch.equal(steered(host, "demo", name), steered(host, "demo", saved["demo"]))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("{saved}/inside", "Choose another name"),  # a file is no folder
        ("long" * 100, "Choose another"),
        ("nul\0byte", "is not a name for a map"),
    ],
)
def test_save_refuses_unwritable_name(host: Host, saved: dict[str, str], name: str, sentence: str) -> None:
    folder = host.base / "models" / "act_maps"
    before = sorted(folder.rglob("*"))
    run: Run = host.fail(save_node(host, saved["demo"], name.format(saved=saved["demo"]))[0])
    assert run.node == "SaveACTMap"
    assert sentence in run.error
    assert run.error.count("\n") == 0
    assert sorted(folder.rglob("*")) == before
