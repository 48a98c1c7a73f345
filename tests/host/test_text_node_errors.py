"""What the nodes of language models refuse; `test_text_nodes` has the maps that do not fit a model."""

from __future__ import annotations

from pathlib import Path

import pytest
from text_graphs import SHORT, TINY, fit_of, refused, text_of, written

from tools.comfyui.server import Graph, Host


@pytest.mark.parametrize(
    ("name", "source", "changes", "sentence"),
    [
        (TINY, "one line", {}, "Fit ACT Text Map needs at least two source prompts, one per line, but got 1"),
        (TINY, " \n ", {}, "Fit ACT Text Map needs at least two source prompts, one per line, but got 0"),
        (SHORT, "a\n" + "x" * 70, {}, "do not fit into the model's context of 64"),
        (SHORT, "a\nb", {"format": "question"}, "has no chat template"),
    ],
)
def test_text_fit_refuses(
    host: Host, models: Path, name: str, source: str, changes: dict[str, str], sentence: str
) -> None:
    graph = Graph()
    graph.add("InspectACTMap", act_map=fit_of(graph, name, source, "c\nd", **changes))
    run = host.fail(graph)
    assert run.node == "FitACTTextMap"
    assert sentence in run.error


def test_text_fit_refuses_list_at_other_inputs(host: Host, models: Path) -> None:
    graph = Graph()
    system = graph.add("ListOfLines", text="You write.\nYou draw.")
    graph.add("InspectACTMap", act_map=fit_of(graph, TINY, "a\nb", "c\nd", format="question", system=system))
    error = host.fail(graph).error
    assert error == "system got a list of 2; connect one value."


def test_text_refuses_empty_prompt(host: Host, models: Path) -> None:
    assert "prompt of ACT Steered Text is empty" in refused(host, TINY, " \n")


def test_text_refuses_prompt_longer_than_context(host: Host, models: Path) -> None:
    assert "do not fit into the model's context of 64" in refused(host, SHORT, "x" * 70)


def test_text_refuses_length_zero(host: Host, models: Path) -> None:
    graph = Graph()
    text_of(graph, TINY, max_length=0)
    with pytest.raises(AssertionError, match="max_length"):
        host.queue(graph)


def test_load_refuses_what_is_not_a_model(host: Host, models: Path) -> None:
    assert "no_model cannot be loaded: Unrecognized model" in refused(host, "no_model")
    assert "broken.gguf could not be unpacked" in refused(host, "broken.gguf")
    assert written(host, TINY, max_length=3)[0]  # the queue runs on
