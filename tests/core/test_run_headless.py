"""The headless client: the files that it accepts, and its errors for others. A fake server replaces ComfyUI."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "example_workflows" / "api"
CLIENT = ROOT / "example_workflows" / "run_headless.py"
NODES = {"1": {"class_type": "ApplyACTSteering", "inputs": {"strength": 1.0, "strength_clip": 1.0}}}


class FakeComfyUI(BaseHTTPRequestHandler):
    """Answers /prompt, /history and /view as ComfyUI does, and keeps what was queued."""

    queued: ClassVar[list[Any]] = []

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        self.queued.append((self.path, json.loads(self.rfile.read(length))))
        self.answer(json.dumps({"prompt_id": "7"}).encode())

    def do_GET(self) -> None:
        image = {"filename": "a.png", "subfolder": "", "type": "output"}
        history = {"7": {"status": {"messages": []}, "outputs": {"1": {"images": [image]}}}}
        self.answer(json.dumps(history).encode() if self.path == "/history/7" else b"picture")

    def answer(self, body: bytes) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


@pytest.fixture
def server() -> Iterator[str]:
    FakeComfyUI.queued = []
    with ThreadingHTTPServer(("127.0.0.1", 0), FakeComfyUI) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{http.server_port}"
        finally:
            http.shutdown()
            thread.join()


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(CLIENT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


TAKEN = {
    "API form": json.dumps(NODES),
    "wrapped in prompt": json.dumps({"prompt": NODES}),
    "byte order mark": "\ufeff" + json.dumps(NODES),
}


@pytest.mark.parametrize("content", TAKEN.values(), ids=TAKEN)
@pytest.mark.parametrize("slash", ["", "/"])
def test_client_runs_workflow_and_saves_pictures(tmp_path: Path, server: str, content: str, slash: str) -> None:
    (tmp_path / "workflow.json").write_text(content, "utf-8")
    options = ("--server", server + slash, "--strength", "0.5", "--out", tmp_path / "out")
    ended = run(tmp_path / "workflow.json", *options)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert (tmp_path / "out" / "a.png").read_bytes() == b"picture"
    ((path, body),) = FakeComfyUI.queued
    assert path == "/prompt"
    assert body["prompt"]["1"]["inputs"] == {"strength": 0.5, "strength_clip": 0.5}


def queued_inputs(server: str, path: Path, strength: float) -> dict[str, dict[str, Any]]:
    """The inputs of the nodes that the client queues, by class."""
    ended = run(path, "--server", server, "--strength", strength, "--out", path.parent)
    assert (ended.returncode, ended.stderr) == (0, "")
    ((_, body),) = FakeComfyUI.queued
    return {node["class_type"]: node["inputs"] for node in body["prompt"].values()}


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("ACTMapLoader", ["strength", "strength_clip"]),
        ("ApplyACTSteeringCLIP", ["strength_clip"]),
        ("CreateACTHook", ["strength"]),
        ("ACTSteeredText", ["strength"]),
    ],
)
def test_strength_is_that_of_every_node_that_applies_a_map(
    tmp_path: Path, server: str, kind: str, names: list[str]
) -> None:
    nodes = {"1": {"class_type": kind, "inputs": dict.fromkeys(names, 1.0)}}
    (tmp_path / "workflow.json").write_text(json.dumps(nodes), "utf-8")
    assert queued_inputs(server, tmp_path / "workflow.json", 0.5) == {kind: dict.fromkeys(names, 0.5)}


def test_strength_sets_the_number_that_is_connected(tmp_path: Path, server: str) -> None:
    loader = queued_inputs(server, Path(shutil.copy(SHIPPED / "style_app.json", tmp_path)), 0.5)
    assert loader["PrimitiveFloat"] == {"value": 0.5}
    assert isinstance(loader["ACTMapLoader"]["strength"], list)


@pytest.mark.parametrize("inputs", [{"strength": ["2", 0], "strength_clip": ["2", 0]}, {}])
def test_client_refuses_strength_that_no_node_takes(tmp_path: Path, server: str, inputs: dict[str, Any]) -> None:
    kind = "ACTMapLoader" if inputs else "KSampler"
    nodes = {"1": {"class_type": kind, "inputs": inputs}, "2": {"class_type": "PreviewAny", "inputs": {}}}
    (tmp_path / "workflow.json").write_text(json.dumps(nodes), "utf-8")
    ended = run(tmp_path / "workflow.json", "--server", server, "--strength", "0.5")
    assert (ended.returncode, ended.stderr) == (1, "No node of this workflow takes --strength.\n")
    assert FakeComfyUI.queued == []


REFUSED = {
    "editor form": (json.dumps({"nodes": [], "links": []}), "as the editor saves it"),
    "empty": ("", "empty or not a JSON file"),
    "not JSON": ("{", "empty or not a JSON file"),
    "no nodes": ("{}", "not a workflow in API form"),
    "a list": ("[]", "not a workflow in API form"),
    "node without inputs": ('{"1": {"class_type": "ApplyACTSteering"}}', "not a workflow in API form"),
    "nested too deeply": ("[" * 100_000, "not a JSON file"),
    "other JSON": ('{"a": {"b": 1}}', "not a workflow in API form"),
    "missing": (None, "cannot be read: No such file"),
}


@pytest.mark.parametrize(("content", "reason"), REFUSED.values(), ids=REFUSED)
def test_client_names_the_file_to_export(tmp_path: Path, server: str, content: str | None, reason: str) -> None:
    path = tmp_path / "workflow.json"
    if content is not None:
        path.write_text(content, "utf-8")
    ended = run(path, "--server", server)
    assert ended.returncode == 1
    assert str(path) in ended.stderr
    assert reason in ended.stderr
    assert "Export (API)" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    assert FakeComfyUI.queued == []


def test_client_refuses_editor_form_of_shipped_workflows() -> None:
    assert "as the editor saves it" in run(ROOT / "example_workflows" / "style_slider.json").stderr


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.0 200 OK\r\n\r\n<html>", "does not answer as ComfyUI does"),
        (b"HTTP/1.0 200 OK\r\n\r\n[]", "does not answer as ComfyUI does"),
        (b'HTTP/1.0 200 OK\r\n\r\n{"status": "ok"}', "does not answer as ComfyUI does"),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 9\r\n\r\n{", "broke off the connection"),
        (b"", "broke off the connection"),
    ],
)
def test_client_names_the_server_that_is_not_comfyui(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch, answer: bytes, reason: str
) -> None:
    monkeypatch.setattr(FakeComfyUI, "do_POST", lambda handler: handler.wfile.write(answer))
    (tmp_path / "workflow.json").write_text(json.dumps(NODES), "utf-8")
    ended = run(tmp_path / "workflow.json", "--server", server)
    assert ended.returncode == 1
    assert server in ended.stderr
    assert reason in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_client_names_the_folder_that_cannot_be_made(tmp_path: Path, server: str) -> None:
    (tmp_path / "workflow.json").write_text(json.dumps(NODES), "utf-8")
    ended = run(tmp_path / "workflow.json", "--server", server, "--out", tmp_path / "workflow.json" / "pictures")
    assert ended.returncode == 1
    assert "workflow.json/pictures is not a folder for pictures" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    assert FakeComfyUI.queued == []


@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "127.0.0.1"])
def test_client_names_the_address_that_does_not_answer(tmp_path: Path, address: str) -> None:
    (tmp_path / "workflow.json").write_text(json.dumps(NODES), "utf-8")
    ended = run(tmp_path / "workflow.json", "--server", address)
    assert ended.returncode == 1
    assert address in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
