"""Processes that fit one map together, for `test_processes`: forked from a server that has imported torch already."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from helpers import MIXED_SITES, TensorModel, mixed, prompts

from act_core import ActMap, fit, save_map
from act_core.cli import main
from act_core.fitting import gather
from act_core.interception import submodules

# Settings, prompts of each side, and dtype. Batches of 2.
FITS: dict[str, tuple[dict[str, Any], int, int, torch.dtype]] = {
    **{
        f"{estimator} {order} {support}": ({"estimator": estimator, "order": order, "support": support}, 7, 6, dtype)
        for estimator in ("linear", "mean", "gaussian")
        for order in ("causal", "simultaneous")
        for support, dtype in (("unbounded", torch.float32), ("observed", torch.bfloat16), ("gated", torch.float32))
    },
    "pooled": ({"support": "observed", "interval": "pooled"}, 7, 6, torch.float32),
    "both moved": ({"moved": "both"}, 5, 9, torch.float32),
    "ranks without a side": ({"support": "observed"}, 2, 7, torch.bfloat16),
    "ranks without a batch": ({"batch_size": 32, "support": "observed"}, 2, 3, torch.float32),
}


def fitted(name: str) -> ActMap:
    """The map of one of `FITS`."""
    settings, sources, targets, dtype = FITS[name]
    sides = prompts("source", sources), prompts("target", targets)
    changes: dict[str, Any] = {"sites": MIXED_SITES, "batch_size": 2, **settings}
    return fit(mixed(dtype), *sides, **changes)


def fit_all(folder: Path, _rank: int) -> None:
    """Save the map of each of `FITS`."""
    for name in FITS:
        save_map(fitted(name), folder / f"{name}.safetensors")


class Faulty:
    """A fault of one rank while it runs its second batch after the dry run."""

    def __init__(self, model: TensorModel, fault: Callable[[], object]) -> None:
        self._runs, self._fault = 0, fault
        model.on_run = self

    def __call__(self, _prompts: Sequence[str]) -> None:
        self._runs += 1
        if self._runs == 3:
            self._fault()


def _raise(error: BaseException) -> None:
    raise error


FAULTS: dict[str, Callable[[], object]] = {
    "raises": lambda: _raise(ValueError("the model broke\nin many lines")),
    "runs out of memory": lambda: _raise(torch.cuda.OutOfMemoryError("CUDA out of memory")),
    "is interrupted": lambda: _raise(KeyboardInterrupt()),
    "is killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "is stopped": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "sleeps": lambda: time.sleep(600),
}


def with_fault(folder: Path, rank: int, fault: str, at: int, patience: float | None = None) -> None:
    """Fit while rank `at` has a fault; save how the fit ended."""
    if patience is not None:
        gather.PATIENCE = patience
    model = mixed()
    if rank == at:
        Faulty(model, FAULTS[fault])
    began = time.monotonic()
    try:
        fit(model, prompts("source", 8), prompts("target", 8), sites=MIXED_SITES, batch_size=2)
    except BaseException as error:  # noqa: BLE001
        outcome = {
            "error": type(error).__name__,
            "message": str(error),
            "seconds": time.monotonic() - began,
            "restored": not any("forward" in part.__dict__ for part in submodules(model.module).values()),
        }
        (folder / f"{rank}.json").write_text(json.dumps(outcome), "utf-8")


def with_difference(folder: Path, rank: int, what: str) -> None:
    """Fit with something that only rank 1 has; save the error."""
    other = rank == 1
    model = mixed()
    if what == "models" and other:
        next(p for p in model.module.parameters() if p.ndim == 1).data += 1
    sides = prompts("source", 5 if what == "prompts" and other else 4), prompts("target", 4)
    sites = "toy/conv" if what == "settings" and other else MIXED_SITES
    try:
        fit(model, *sides, sites=sites)
    except Exception as error:  # noqa: BLE001
        (folder / f"{rank}.json").write_text(json.dumps(str(error)), "utf-8")


def slow_at_first(folder: Path, rank: int, at: int) -> None:
    """Fit where the trial run of one rank takes longer than the others wait at a site; save the error, if any."""
    gather.PATIENCE = 0.5
    model = mixed()
    runs = iter((2.0,))
    if rank == at:
        model.on_run = lambda _: time.sleep(next(runs, 0.0))
    error = ""
    try:
        fit(model, prompts("source", 4), prompts("target", 4), sites=MIXED_SITES)
    except Exception as caught:  # noqa: BLE001
        error = str(caught)
    (folder / f"{rank}.json").write_text(json.dumps(error), "utf-8")


def streamed(folder: Path, rank: int, order: str, rooms: Sequence[int]) -> None:
    """Fit with a budget that takes groups, where each rank has other room to park; save the error.

    A simultaneous fit is never parked.
    """
    settings: dict[str, Any] = {"sites": MIXED_SITES, "memory_budget": 74 << 20, "order": order}
    vars(sys.modules["act_core.fitting.fit"])["room_to_park"] = lambda _: rooms[rank]
    try:
        fit(mixed(), prompts("source", 400), prompts("target", 400), **settings)
    except Exception as error:  # noqa: BLE001
        (folder / f"{rank}.json").write_text(json.dumps(str(error)), "utf-8")


def command_line(folder: Path, rank: int, port: int, arguments: list[str]) -> None:
    """Run a command as under torchrun."""
    dist.barrier()  # a process that is still connecting would fail
    dist.destroy_process_group()
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    os.chdir(folder)
    sys.exit(main(arguments))


def start(count: int, folder: Path, task: Callable[..., None], *arguments: object) -> list[Any]:
    """Start a task in several processes of one thread; each is called with a folder of its own, and its rank."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ranks"])
    folder.mkdir(parents=True)
    processes = [
        context.Process(target=_run, args=(folder, rank, count, task, arguments), daemon=True) for rank in range(count)
    ]
    with pytest.MonkeyPatch.context() as patch:
        # Where the server finds this module and the library; Python before 3.13 does not pass `sys.path` on.
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        for process in processes:
            process.start()
    return processes


def _run(folder: Path, rank: int, count: int, task: Callable[..., None], arguments: Sequence[object]) -> None:
    torch.set_num_threads(1)
    sys.stderr = (folder / f"{rank}.txt").open("w")
    store = (folder / "rendezvous").as_uri()
    dist.init_process_group("gloo", store, timedelta(seconds=60), world_size=count, rank=rank)
    own = folder / str(rank)
    own.mkdir()
    task(own, rank, *arguments)
    sys.stderr.flush()
    os._exit(0)
