"""The example workflows over HTTP, in this host and in the oldest supported one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from graphs import QUICK
from in_host import require_language_model
from PIL import Image

from tools.comfyui.server import PACK, WIDGETS, Graph, Host
from tools.examples import WORKFLOWS
from tools.make_locales import LOCALES

FOLDER = PACK / "example_workflows"
SLOW = "calibrate_and_export", "fit_text_map", "steered_prompt"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))


def api_form(name: str) -> Graph:
    graph = Graph()
    graph.prompt = json.loads((FOLDER / "api" / f"{name}.json").read_text("utf-8"))
    return graph


def quick_form(name: str) -> Graph:
    graph = api_form(name)
    for node in graph.prompt.values():
        node["inputs"].update(QUICK.get(node["class_type"], {}))
    return graph


def test_each_example_has_a_cover() -> None:
    assert sorted(build.__name__ for build in WORKFLOWS) == NAMES
    for name in NAMES:
        assert Image.open(FOLDER / f"{name}.jpg").format == "JPEG"


def test_host_lists_the_examples_and_nothing_else(host: Host) -> None:
    """It takes every JSON file in folders of several names for a workflow."""
    assert sorted(host.get("/workflow_templates")["act-steering"]) == NAMES


def test_every_node_is_in_an_example() -> None:
    """The translations name all nodes, which `test_english_texts_are_those_that_the_nodes_show` checks."""
    nodes = set(json.loads((LOCALES / "en" / "nodeDefs.json").read_text("utf-8")))
    assert nodes <= {node["class_type"] for name in NAMES for node in api_form(name).prompt.values()}


@pytest.mark.parametrize("name", NAMES)
def test_nodes_of_example_have_titles_of_their_own(name: str) -> None:
    """Clients that send a workflow find its nodes by their titles."""
    titles = [node["_meta"]["title"] for node in api_form(name).prompt.values()]
    assert all(titles)
    assert len(set(titles)) == len(titles)


def test_titles_tell_the_two_prompts_apart() -> None:
    titles = {node["_meta"]["title"] for node in api_form("style_slider").prompt.values()}
    assert {"Positive prompt", "Negative prompt"} <= titles


@pytest.mark.parametrize("name", NAMES)
def test_example_runs(host: Host, host_python: Path, name: str) -> None:
    require_language_model(host_python, name)
    # `test_calibrate` and `test_text_nodes` run in full what takes longest here.
    pictures = host.images(host.run(quick_form(name) if name in SLOW else api_form(name)))
    assert pictures
    assert all(Image.open(picture).getextrema()[0] != (255, 255) for picture in pictures)  # not blank


def test_headless_client_fetches_pictures(host: Host, tmp_path: Path) -> None:
    command = [sys.executable, FOLDER / "run_headless.py", FOLDER / "api" / "style_slider.json"]
    options = ["--strength", "0.6", "--server", host.url, "--out", str(tmp_path)]
    run = subprocess.run([*command, *options], capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr
    pictures = [Path(line) for line in run.stdout.splitlines()]
    assert len(pictures) == 4
    assert all(Image.open(picture).size == (256, 256) for picture in pictures)


@pytest.mark.parametrize(
    ("change", "server", "says"),
    [
        ({"source": "one prompt"}, "{host}", "FitACTMap: Fit ACT Map needs at least two source prompts"),
        ({"order": "backwards"}, "{host}", "Value not in list"),  # ComfyUI does not take it
        ({}, "http://127.0.0.1:9", "is ComfyUI running there?"),
    ],
)
def test_headless_client_reports_failures(
    host: Host, tmp_path: Path, change: dict[str, str], server: str, says: str
) -> None:
    prompt = api_form("fit_your_own").prompt
    (fit,) = [node for node in prompt.values() if node["class_type"] == "FitACTMap"]
    fit["inputs"].update(change)
    (tmp_path / "failing.json").write_text(json.dumps(prompt))
    options = ["--server", server.format(host=host.url), "--out", tmp_path / "made"]
    command = [sys.executable, FOLDER / "run_headless.py", tmp_path / "failing.json", *options]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode != 0
    assert says in run.stderr
    assert "Traceback" not in run.stderr


def ours(host: Host) -> dict[str, Any]:
    return {name: info for name, info in host.get("/object_info").items() if info.get("category") == "ACT steering"}


def test_oldest_host_has_same_nodes(host: Host, oldest: Host) -> None:
    inputs = [{name: info["input_order"] for name, info in ours(which).items()} for which in (host, oldest)]
    assert inputs[0] == inputs[1]
    assert inputs[0]


@pytest.mark.parametrize("name", NAMES)
def test_example_runs_in_oldest_host(oldest: Host, host_python: Path, name: str) -> None:
    require_language_model(host_python, name)
    assert oldest.images(oldest.run(quick_form(name)))


@pytest.mark.parametrize("name", NAMES)
def test_graph_equals_api_form(host: Host, name: str) -> None:
    graph, prompt = json.loads((FOLDER / f"{name}.json").read_text("utf-8")), api_form(name).prompt
    listed = host.get("/object_info")
    (note,) = [node for node in graph["nodes"] if node["type"] == "MarkdownNote"]  # which the page draws by itself
    graph["nodes"].remove(note)
    assert {str(node["id"]): node["type"] for node in graph["nodes"]} == {n: v["class_type"] for n, v in prompt.items()}
    links = {link[0]: [str(link[1]), link[2]] for link in graph["links"]}
    for node in graph["nodes"]:
        inputs = prompt[str(node["id"])]["inputs"]
        linked = {entry["name"]: links[entry["link"]] for entry in node["inputs"] if entry["link"]}
        assert linked == {key: value for key, value in inputs.items() if isinstance(value, list)}
        schema = listed[node["type"]]["input"]
        values = list(node["widgets_values"])
        for key, (kind, *options) in {**schema.get("required", {}), **schema.get("optional", {})}.items():
            if not (isinstance(kind, list) or kind in WIDGETS):
                continue
            value = values.pop(0)
            if options and options[0].get("control_after_generate"):
                assert values.pop(0) == "fixed"
            if not isinstance(inputs.get(key), list):
                assert value == inputs[key], f"{node['type']}.{key}"
        assert not values
