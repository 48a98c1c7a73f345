"""Long runs in one process of the host: nothing grows, nothing leaks from one workflow into the next.

Short here. For a thorough run: ``ACT_SOAK_ROUNDS=300 ACT_SOAK_PROMPTS=500 pytest -s tests/host/test_soak.py``.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from controls import PROMPT, Control, census
from graphs import Parts, apply, free
from torch import Tensor

from tools.comfyui.server import Graph, Host

ROUNDS = int(os.environ.get("ACT_SOAK_ROUNDS", "40"))
PROMPTS = int(os.environ.get("ACT_SOAK_PROMPTS", "40"))
INK = "plain_to_ink.safetensors"
# Each is the odd one out in some bug: other branches, parts of the map, or other ways to apply it.
CHANGES: tuple[dict[str, Any], ...] = (
    {},
    {"branch": "both"},
    {"branch": "negative"},
    {"end_percent": 0.5},
    {"schedule": "fade out"},
    {"blocks": "late"},
    {"as_weights": True, "branch": "both"},
)


@dataclass(frozen=True)
class Rounds:
    """What happens in a round: workflows with random settings, and other things that users do.

    Attributes:
        host: the host.
        name: a map of the demo model.
        rng: of the settings.
    """

    host: Host
    name: str
    rng: random.Random

    def graph(self, *, name: str = "", fit: bool = False, applied: bool = True, **sampling: Any) -> Graph:
        """A steered picture; with `applied` off, one from which the node that steers is taken out."""
        graph = Graph()
        parts = Parts(graph, "demo")
        model, clip = parts.model, parts.clip
        if applied:
            # A new seed, so that the host does not take the map from its cache.
            act_map = parts.fit(seed=self.rng.randrange(10**6)) if fit else None
            act_map = act_map or graph.add("LoadACTMap", name=name or self.name)
            strengths = {key: round(self.rng.uniform(-1.5, 1.5), 3) for key in ("strength", "strength_clip")}
            steered = apply(graph, model, act_map, clip, **strengths | self.rng.choice(CHANGES))
            model, clip = steered[0], steered[1]
        settings = {"steps": 2, "seed": self.rng.randrange(10**6), **sampling}
        parts.sampled(model, parts.encoded(PROMPT, clip), **settings)
        return graph

    def fit(self) -> None:
        self.host.run(self.graph(fit=True))

    def apply(self) -> None:
        self.host.run(self.graph())

    def swap(self) -> None:
        for name in self.rng.sample((self.name, INK), 2):
            self.host.run(self.graph(name=name))

    def interrupt(self) -> None:
        fit = self.rng.random() < 0.5
        graph = self.graph(fit=fit, steps=2000)
        assert self.host.interrupted(graph, self.rng.uniform(0, 0.4)) == "interrupted"

    def free(self) -> None:
        self.host.run(self.graph())
        free(self.host, unload_models=False)

    def reload(self) -> None:
        self.host.run(self.graph())
        free(self.host)

    def mute(self) -> None:
        self.host.run(self.graph())
        self.host.run(self.graph(applied=False))


def test_rounds_of_everything_leave_nothing(host: Host, saved: dict[str, str], control: Control) -> None:
    rng = random.Random(17)
    rounds = Rounds(host, saved["demo"], rng)
    kinds: list[Callable[[], None]] = [
        rounds.fit,
        rounds.apply,
        rounds.interrupt,
        rounds.free,
        rounds.reload,
        rounds.swap,
        rounds.mute,
    ]

    def run(what: list[Callable[[], None]]) -> None:
        for happens in what:
            happens()
            control.check()

    run(kinds)  # what is made once, such as caches of modules, belongs to the beginning
    before = census(host)
    run(rng.choices(kinds, k=ROUNDS - len(kinds)))
    after = census(host)
    print(f"{ROUNDS} rounds; before {before}; after {after}")
    assert after.threads == before.threads
    assert after.ours == before.ours
    assert after.tensors <= before.tensors
    # The host itself keeps a few objects of each run.
    assert after.objects - before.objects < 0.02 * before.objects


@dataclass(frozen=True)
class Request:
    """The settings of a workflow over the API."""

    name: str
    strength: float
    strength_clip: float
    change: int
    seed: int

    def graph(self, number: int) -> Graph:
        graph = Graph()
        parts = Parts(graph, "demo")
        strengths = {"strength": self.strength, "strength_clip": self.strength_clip}
        loaded = graph.add("LoadACTMap", name=self.name)
        applied = apply(graph, parts.model, loaded, parts.clip, **strengths | CHANGES[self.change])
        parts.sampled(applied[0], parts.encoded(PROMPT, applied[1]), steps=2, seed=self.seed)
        # A name of its own, so that each result is saved even where it is taken from the cache.
        graph.prompt[str(len(graph.prompt))]["inputs"]["filename_prefix"] = f"soak/{number}"
        return graph


def test_queued_requests_equal_requests_alone(host: Host, saved: dict[str, str]) -> None:
    rng = random.Random(23)
    requests = [
        Request(
            rng.choice((saved["demo"], INK)),
            rng.choice((0.0, round(rng.uniform(-1.5, 1.5), 3))),
            rng.choice((0.0, round(rng.uniform(-1.5, 1.5), 3))),
            rng.randrange(len(CHANGES)),
            rng.randrange(3),
        )
        for _ in range(max(8, PROMPTS // 10))
    ]
    alone: dict[Request, Tensor] = {}
    for request in requests:
        free(host, unload_models=False)
        alone[request] = host.latent(host.run(request.graph(0)))
    pictures = list(alone.values())
    # Otherwise a strength that leaks into the next request might not be seen.
    assert sum(torch.equal(a, b) for a in pictures for b in pictures) < 2 * len(pictures)
    begin = time.monotonic()
    queued = rng.choices(requests, k=PROMPTS)
    waiting = [host.queue(request.graph(number)) for number, request in enumerate(queued)]
    runs = [host.wait(prompt_id) for prompt_id in waiting]
    seconds = time.monotonic() - begin
    wrong = Counter(
        "failed" if run.error else "differs"
        for request, run in zip(queued, runs, strict=True)
        if run.error or not torch.equal(host.latent(run), alone[request])
    )
    print(f"{PROMPTS} prompts with {len(requests)} settings in {seconds:.0f} s")
    assert not wrong
