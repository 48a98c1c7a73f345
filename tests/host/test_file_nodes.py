"""Nodes that read and write maps, with unusual files and inputs; a script calls them in the host's own Python."""

from __future__ import annotations

from typing import Any

import pytest
from in_host import ResultsOf


@pytest.fixture
def results(results_of: ResultsOf) -> dict[str, Any]:
    return results_of("file_nodes.py")


def test_stack_notices_a_changed_file_of_a_row_whose_switch_is_connected(results: dict[str, Any]) -> None:
    assert results["stack"] == {"on": True, "off": False, "linked": True, "unchanged": False}
    assert results["gone"] == ""  # the node itself reports it, if the row is on


def test_list_of_maps_takes_a_connected_text(results: dict[str, Any]) -> None:
    assert results["list"]


def test_list_of_maps_refuses_what_is_not_a_text(results: dict[str, Any]) -> None:
    assert results["list of a number"] == "The input contains of List ACT Maps is of type int; connect one text."


def test_language_models_are_those_in_their_folder(results: dict[str, Any]) -> None:
    """A name that comes from another node, which the host does not check, leads nowhere else."""
    found = dict(results["language models"])
    assert found.pop("tiny") == "models/LLM/tiny"
    assert len(found) == 4
    assert all("There is no language model" in sentence for sentence in found.values())


def test_map_whose_cover_cannot_be_shown_is_loaded(results: dict[str, Any]) -> None:
    alone = ["text"]
    assert results["covers"] == {"whole": ["animated", "images", "text"], "damaged": alone, "cut": alone, "huge": alone}


def test_cover_is_made_of_any_picture(results: dict[str, Any]) -> None:
    found = results["thumbnails"]
    assert found["rgb"] == found["bfloat16"]
    assert found["rgb"] == pytest.approx([255, 0, 0], abs=4)
    assert found["grey"] == pytest.approx([128, 128, 128], abs=4)
    assert found["transparent"] == [255, 255, 255]  # on white, as in a fit


def test_names_that_are_devices_on_windows_are_refused(results: dict[str, Any]) -> None:
    found = results["names"]
    for name in ("ink", "console", "com", "my con"):
        assert found[name] == f"{name}.safetensors"
    for name in ("nul", "aux.v2", "styles/COM1"):
        assert found[name] == f"{name!r} is not a name for a map; give a plain file name, such as ink or styles/ink."
