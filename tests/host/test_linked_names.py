"""Nodes that read a file whose name comes from another node."""

from __future__ import annotations

from typing import Any

import pytest
from controls import cached

from tools.comfyui.server import Graph, Host

READERS: dict[str, tuple[str, dict[str, Any]]] = {
    "LoadACTMap": ("plain_to_ink.safetensors", {}),
    "ACTMapLoader": ("plain_to_ink.safetensors", {"strength": 1.0, "strength_clip": 1.0}),
    "ACTPromptSet": ("plain_to_ink.txt", {"count": 2}),
    "ACTPictureSet": ("sepia", {"captions": True}),
}


@pytest.mark.parametrize("linked", [False, True], ids=["chosen", "linked"])
@pytest.mark.parametrize("reader", READERS)
def test_file_is_read_once_in_two_runs(host: Host, reader: str, *, linked: bool) -> None:
    name, inputs = READERS[reader]
    graph = Graph()
    if reader == "ACTMapLoader":
        inputs = {**inputs, "model": graph.add("LoadACTDemoModel")}
    read = graph.add(reader, name=graph.add("AnyText", text=name) if linked else name, **inputs)
    graph.add("PreviewImage", images=read) if reader == "ACTPictureSet" else graph.add("PreviewAny", source=read)
    before = len(host.log.read_text())
    host.run(graph)
    assert read.number in cached(host.run(graph).status)
    assert "not 'NoneType'" not in host.log.read_text()[before:]
