"""Processes of one thread that hold a model and fit on demand, for `benchmarks.processes`."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist

from act_core.fitting import fit
from act_core.fitting.gather import together
from act_core.fitting.lockstep import Walk
from act_core.fitting.pooling import Values
from act_core.fitting.samples import MicroBatch, Side
from act_core.models.transformers import TransformersModel
from act_core.prompts import PromptSet

from .models import load_model, load_prompts
from .timing import timed

# Rows of a micro-batch, the default of a fit.
BATCH = 32


@dataclass(frozen=True)
class Fitted:
    """What a fit took: (processor) seconds of the walk, seconds of the whole fit, and a hash of the map's values."""

    walk: float
    busy: float
    whole: float
    map_sha256: str


class Ranks:
    """Processes that fit together, started once.

    Args:
        count: number of processes.
        prompts: of each side.
        sites: of the fit.
    """

    def __init__(self, count: int, prompts: int, sites: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        context = multiprocessing.get_context("spawn")
        pipes = [context.Pipe() for _ in range(count)]
        self._processes = [
            context.Process(target=_serve, args=(theirs, rank, count, port, prompts, sites), daemon=True)
            for rank, (_, theirs) in enumerate(pipes)
        ]
        self._pipes = [ours for ours, _ in pipes]
        for process in self._processes:
            process.start()
        self._all("ready")

    def fit(self) -> list[Fitted]:
        """Fit once; what it took in each process."""
        return self._all("fit")

    def passes(self) -> float:
        """Seconds of plain passes of all prompts, which the processes share as a fit does, without an exchange."""
        return max(self._all("passes"))

    def gather(self, rows: int, channels: int) -> float:
        """Seconds to gather the values of a site, `rows` of each process."""
        return max(self._all(("gather", rows, channels)))

    def stop(self) -> None:
        """End the processes."""
        self._all("stop")
        for process in self._processes:
            process.join()

    def _all(self, order: object) -> list[Any]:
        for pipe in self._pipes:
            pipe.send(order)
        return [pipe.recv() for pipe in self._pipes]


def _serve(pipe: Connection, rank: int, count: int, port: int, prompts: int, sites: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo")
    model, lines = load_model(), load_prompts(prompts)
    spent: list[tuple[float, float]] = []
    _time_walks(spent)
    while True:
        order = pipe.recv()
        if order == "fit":
            begin = time.perf_counter()
            act_map = fit(model, lines.source, lines.target, sites=sites)
            whole = time.perf_counter() - begin
            values = torch.cat([part for t in act_map.transports.values() for part in (t.omega, t.beta)])
            pipe.send(Fitted(*spent.pop(), whole, hashlib.sha256(values.numpy().tobytes()).hexdigest()))
        elif order == "passes":
            pipe.send(timed(lambda: _pass(model, lines)))
        elif isinstance(order, tuple):
            pipe.send(_gather(*order[1:]))
        else:
            pipe.send(None)
            if order == "stop":
                return


def _time_walks(spent: list[tuple[float, float]]) -> None:
    """Note seconds and processor seconds of each walk."""
    original = Walk.run

    def run(self: Walk, fit_site: Callable[..., Any]) -> None:
        begin = time.perf_counter(), time.process_time()
        original(self, fit_site)
        spent.append((time.perf_counter() - begin[0], time.process_time() - begin[1]))

    Walk.run = run


def _pass(model: TransformersModel, lines: PromptSet) -> None:
    batches: dict[Side, Sequence[MicroBatch]] = {
        "source": model.batches(lines.source, BATCH),
        "target": model.batches(lines.target, BATCH),
    }
    with together() as processes, torch.inference_mode():
        for own in processes.share(batches).values():
            for batch in own:
                batch.run()


def _gather(rows: int, channels: int) -> float:
    values = [Values(torch.zeros(rows, channels), None, None, torch.float32)]
    with together() as processes:
        processes.gathered({"source": values, "target": []})  # the first opens connections
        begin = time.perf_counter()
        processes.gathered({"source": values, "target": []})
        return time.perf_counter() - begin
