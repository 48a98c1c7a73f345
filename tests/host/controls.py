"""What must hold after anything that went wrong in a host: the same pictures, an empty queue, no thread left."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from graphs import Parts, apply, free
from torch import Tensor

from tools.comfyui.server import Graph, Host

PROMPT = "a cat on a mat"
# Parts of the pack whose objects belong to a model or a workflow.
OF_A_RUN = ("act_core.maps", "act_core.steering", "nodes.")


class Control:
    """A plain and a steered picture of the demo model, which the host must always draw in the same way.

    Args:
        host: the host.
        name: the map of the steered picture.
    """

    def __init__(self, host: Host, name: str) -> None:
        self._host, self._name = host, name
        self._expected = self._drawn()
        assert not torch.equal(*self._expected)

    def check(self) -> None:
        """Assert that nothing of what ran before is left; not twice in a row, since the host keeps its last results."""
        queue = self._host.get("/queue")
        assert queue == {"queue_running": [], "queue_pending": []}
        plain, steered = self._drawn()
        assert torch.equal(plain, self._expected[0])
        assert torch.equal(steered, self._expected[1])
        assert "act-walk" not in self._host.get("/test/threads")

    def _drawn(self) -> list[Tensor]:
        graph = Graph()
        parts = Parts(graph, "demo")
        applied = apply(graph, parts.model, graph.add("LoadACTMap", name=self._name), parts.clip, strength=0.9)
        parts.sampled(steps=2)
        parts.sampled(applied[0], parts.encoded(PROMPT, applied[1]), steps=2)
        run = self._host.run(graph)
        samplers = {number for number, node in graph.prompt.items() if node["class_type"] == "KSampler"}
        assert not samplers & set(cached(run.status)), "the host drew nothing, but answered from its cache"
        return self._host.latents(run)


def cached(status: Any) -> list[str]:
    """Nodes of a run that were answered from the host's cache."""
    return [node for kind, message in status["messages"] if kind == "execution_cached" for node in message["nodes"]]


@dataclass(frozen=True)
class Census:
    """What the process of a host holds once its models are unloaded.

    Attributes:
        threads: by name.
        ours: objects of the pack's classes, by class.
        tensors: bytes.
        objects: number of all objects.
        resident: bytes of memory.
    """

    threads: dict[str, int]
    ours: dict[str, int]
    tensors: int
    objects: int
    resident: int


def census(host: Host) -> Census:
    """Unload and forget everything that the host can, and count what is left once it has collected its garbage."""
    host.post("/history", {"clear": True})
    free(host)
    end = time.monotonic() + 15  # it collects every ten seconds
    while True:
        found = Census(**host.get("/test/census"))
        if time.monotonic() > end or not any(name.startswith(OF_A_RUN) for name in found.ours):
            return found
        time.sleep(0.2)
