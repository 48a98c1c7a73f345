"""Starts ComfyUI on a free port with an empty base directory, and talks to it over HTTP."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

PACK = Path(__file__).resolve().parents[2]
# Below those that systems choose from.
PORTS = range(20000, 30000)
START_SECONDS = 180
RUN_SECONDS = 300
# Kinds of inputs that are set on the node itself; all others are links.
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")

Prompt = dict[str, dict[str, Any]]


class Graph:
    """A workflow in API form, written node by node: ``graph.add("KSampler", model=model, seed=0, ...)``.

    Attributes:
        prompt: the nodes, by number.
        properties: what the frontend keeps of a node beside its inputs, by number.
        labels: names that it shows in place of those of inputs, by number and input.
        extra: what it keeps of the workflow.
        note: Markdown that it shows beside the nodes; not in the API form, as the host has no such node.
    """

    def __init__(self) -> None:
        self.prompt: Prompt = {}
        self.properties: dict[str, dict[str, Any]] = {}
        self.labels: dict[tuple[str, str], str] = {}
        self.extra: dict[str, Any] = {}
        self.note = ""

    def add(self, class_type: str, **inputs: Any) -> Node:
        """A new node, whose inputs are values or outputs of other nodes."""
        number = str(len(self.prompt) + 1)
        linked = {name: value.link() if isinstance(value, Node) else value for name, value in inputs.items()}
        self.prompt[number] = {"class_type": class_type, "inputs": linked}
        return Node(number)

    def show_as_app(self, inputs: Sequence[tuple[Node, str]], outputs: Sequence[Node]) -> None:
        """Open the workflow in app mode, which shows some inputs of nodes, and the results of others."""
        listed = [[int(node.number), name] for node, name in inputs]
        self.extra = {
            "linearMode": True,
            "linearData": {"inputs": listed, "outputs": [int(node.number) for node in outputs]},
        }

    def title(self, node: Node, text: str) -> None:
        """Give a node a title, as the host's own export keeps it."""
        self.prompt[node.number]["_meta"] = {"title": text}


@dataclass(frozen=True)
class Node:
    """An output of a node: the first, or another one by its number."""

    number: str
    output: int = 0

    def __getitem__(self, output: int) -> Node:
        return Node(self.number, output)

    def link(self) -> list[Any]:
        return [self.number, self.output]


@dataclass(frozen=True)
class Run:
    """The result of a workflow that has ended.

    Attributes:
        outputs: by node.
        error: message of the node that failed; empty if none failed.
        node: its class.
    """

    outputs: dict[str, dict[str, Any]]
    error: str = ""
    node: str = ""
    status: Mapping[str, Any] = field(default_factory=dict[str, Any])


class Host:
    """A running ComfyUI."""

    def __init__(self, url: str, base: Path, log: Path, process: subprocess.Popen[bytes]) -> None:
        self.url = url
        self.base = base
        self.log = log
        self.process = process

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return json.loads(answer.read())

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        data = json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{path} answered {error.code}: {error.read().decode()[:2000]}") from error
        return json.loads(text) if text else None

    def queue(self, graph: Graph, client: str = "") -> str:
        """Put a workflow into the queue, for a client that is connected or for none; returns its id."""
        return self.post("/prompt", {"prompt": graph.prompt, "client_id": client or uuid.uuid4().hex})["prompt_id"]

    def wait(self, prompt_id: str) -> Run:
        end = time.monotonic() + RUN_SECONDS
        while time.monotonic() < end:
            history = self.get(f"/history/{prompt_id}")
            if prompt_id in history:
                return _run(history[prompt_id])
            assert "Exception in thread" not in self.log.read_text(), self.log.read_text()[-3000:]
            time.sleep(0.05)
        raise AssertionError(f"the host has not finished; its log ends with {self.log.read_text()[-2000:]}")

    def run(self, graph: Graph) -> Run:
        """Run a workflow that should succeed."""
        run = self.wait(self.queue(graph))
        assert not run.error, f"{run.node}: {run.error}\n{self.log.read_text()[-3000:]}"
        return run

    def shown(self, graph: Graph) -> dict[str, Any]:
        """Run a workflow that should succeed; what the node that was added last shows."""
        return self.run(graph).outputs[next(reversed(graph.prompt))]

    def fail(self, graph: Graph) -> Run:
        """Run a workflow in which a node should fail."""
        run = self.wait(self.queue(graph))
        assert run.error, "no node failed"
        return run

    def interrupted(self, graph: Graph, seconds: float) -> str:
        """The error of a run that is interrupted after a while."""
        prompt_id = self.queue(graph)
        while not self.get("/queue")["queue_running"]:
            time.sleep(0.02)
        time.sleep(seconds)
        self.post("/interrupt", {})
        return self.wait(prompt_id).error

    def console(self, graph: Graph) -> str:
        """What the host logs while it runs a workflow that should succeed."""
        before = len(self.log.read_text())
        self.run(graph)
        return self.log.read_text()[before:]

    def latents(self, run: Run) -> list[Tensor]:
        """The latents that the Save Latent nodes of a workflow saved, exact, in the order in which they were added."""
        entries = [run.outputs[number] for number in sorted(run.outputs, key=int)]
        saved = [entry for output in entries for entry in output.get("latents", ())]
        folder = self.base / "output"
        return [load_file(folder / e["subfolder"] / e["filename"])["latent_tensor"] for e in saved]

    def latent(self, run: Run) -> Tensor:
        """The latent that the only Save Latent node of a workflow saved."""
        (latent,) = self.latents(run)
        return latent

    def images(self, run: Run) -> list[Path]:
        """The pictures that a workflow saved or previewed."""
        entries = [entry for output in run.outputs.values() for entry in output.get("images", ())]
        return [self.base / entry["type"] / entry["subfolder"] / entry["filename"] for entry in entries]


def _run(entry: Mapping[str, Any]) -> Run:
    for kind, message in entry["status"]["messages"]:
        if kind == "execution_error":
            return Run(entry["outputs"], message["exception_message"].strip(), message["node_type"], entry["status"])
        if kind == "execution_interrupted":
            return Run(entry["outputs"], "interrupted", message["node_type"], entry["status"])
    return Run(entry["outputs"], status=entry["status"])


def _free_port() -> int:
    """A port that is free now, and that the system gives to no other program that asks for any: the host takes seconds
    to listen on it, and is asked for its state meanwhile."""
    for port in random.SystemRandom().sample(PORTS, len(PORTS)):  # tests may set the seed of others
        with socket.socket() as free:
            try:
                free.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("all ports are in use")


@contextmanager
def started(python: Path, base: Path, root: Path | None = None, *options: str | Path) -> Generator[Host, None, None]:
    """Start a ComfyUI with this pack and nothing else, unless its folder already holds one.

    Args:
        python: the host's own Python.
        base: its base directory, made here unless it exists.
        root: its folder, if not the one of the environment.
        *options: further command-line options.
    """
    root = root or python.parents[2]
    (base / "custom_nodes").mkdir(parents=True, exist_ok=True)
    link = base / "custom_nodes" / "act-steering"
    if not link.is_symlink() and not link.is_dir():
        link.symlink_to(PACK)
    port = _free_port()
    log = base / f"host_{port}.log"  # other hosts may share the base directory
    command = [python, "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(port), "--base-directory", base]
    command += ["--database-url", "sqlite:///:memory:", "--disable-auto-launch", "--disable-api-nodes"]
    # The other cache keeps results as long as memory lasts.
    command += ["--cache-classic", *options]
    # Graphs that were compiled for the instructions of another CPU compute nan on this one. The workers of the compiler
    # take longer to start than its work.
    compiler = {"TORCHINDUCTOR_CACHE_DIR": str(base / "compiled"), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    own = {"HF_HUB_OFFLINE": "1", **compiler}
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=root, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **own})
    host = Host(f"http://127.0.0.1:{port}", base, log, process)
    try:
        end = time.monotonic() + START_SECONDS
        while True:
            try:
                host.get("/system_stats")
                break
            except OSError:
                assert process.poll() is None, f"the host ended: {log.read_text()[-3000:]}"
                assert time.monotonic() < end, f"the host does not answer: {log.read_text()[-3000:]}"
                time.sleep(0.2)
        yield host
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
