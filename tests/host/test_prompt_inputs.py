"""The prompts of a fit: comments, lists, and prompt sets that change."""

from __future__ import annotations

import os
from typing import Any

from graphs import SOURCE, TARGET, Parts

from tools.comfyui.server import Graph, Host


def fitted(host: Host, **changes: Any) -> str:
    """The report of a fit of a text encoder."""
    graph = Graph()
    fit = Parts(graph, "demo").fit(components="text", **changes)
    graph.add("PreviewAny", source=fit[1])
    output = host.shown(graph)
    return output["text"][0]


def test_comments_and_invisible_lines_are_not_prompts(host: Host) -> None:
    source = f"# what to lead away from\n{SOURCE}\n\u200b\n\ufeff"
    assert "5 source, such as 'a cat on a mat'" in fitted(host, source=source)


def test_prompt_set_follows_content_and_not_the_clock(host: Host) -> None:
    path = host.base / "models" / "act_prompt_sets" / "changing.txt"
    path.parent.mkdir(exist_ok=True)

    def shown(subject: str) -> str:
        path.write_text(f"[source]\n{subject}\na dog\n[target]\nink {subject}\nink dog\n")
        os.utime(path, (1_700_000_000, 1_700_000_000))  # as if within the resolution of the clock
        graph = Graph()
        graph.add("PreviewAny", source=graph.add("ACTPromptSet", name=path.name, count=8))
        output = host.shown(graph)
        return output["text"][0]

    assert shown("a cat") == "a cat\na dog"
    assert shown("a fox") == "a fox\na dog"


def test_prompt_set_lists_looks_but_no_captions(host: Host) -> None:
    kind, *options = host.get("/object_info/ACTPromptSet")["ACTPromptSet"]["input"]["required"]["name"]
    listed = options[0]["options"] if kind == "COMBO" else kind
    assert "look_cinematic.txt" in listed
    assert not [name for name in listed if "captions" in name]


def test_list_of_texts_is_one_fit(host: Host) -> None:
    graph = Graph()
    lists = {side: graph.add("ListOfLines", text=text) for side, text in (("source", SOURCE), ("target", TARGET))}
    fit = Parts(graph, "demo").fit(components="text", **lists)
    graph.add("PreviewAny", source=fit[1])
    output = host.shown(graph)
    assert "5 source, such as 'a cat on a mat'" in output["text"][0]
