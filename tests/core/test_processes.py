"""Several processes fit one map: the bytes are those of a single process, and a fault in one ends all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from ranks import FITS, command_line, fit_all, slow_at_first, start, streamed, with_difference, with_fault

from act_core.fitting.gather import owner, together

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available() and os.name == "posix"),
    reason="needs torch.distributed with gloo, and processes that can be forked",
)

ROOT = Path(__file__).parents[2]


def results(folder: Path, *ranks: int) -> list[Any]:
    return [json.loads((folder / str(rank) / f"{rank}.json").read_text("utf-8")) for rank in ranks]


def ended(processes: list[Any], seconds: float) -> None:
    """Wait for processes, and check that they end."""
    limit = time.monotonic() + seconds
    for process in processes:
        process.join(max(0, limit - time.monotonic()))
    alive = [rank for rank, process in enumerate(processes) if process.is_alive()]
    for process in processes:
        process.kill()
    assert not alive


def test_processes_save_the_bytes_of_a_single_process(tmp_path: Path) -> None:
    counts = (1, 2, 3)
    ended([process for count in counts for process in start(count, tmp_path / str(count), fit_all)], 60)
    for name in FITS:
        saved = [tmp_path / str(count) / str(rank) / f"{name}.safetensors" for count in counts for rank in range(count)]
        assert len({path.read_bytes() for path in saved}) == 1, name


@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize(
    ("fault", "original", "message"),
    [
        ("raises", "ValueError", "failed: ValueError: the model broke."),
        ("runs out of memory", "FitError", "failed: A process runs out of memory; use shorter prompts, "),
        ("is interrupted", "KeyboardInterrupt", "was interrupted."),
    ],
)
def test_error_in_one_process_is_raised_in_all(
    tmp_path: Path, fault: str, original: str, message: str, at: int
) -> None:
    processes = start(3, tmp_path / "ranks", with_fault, fault, at)
    ended(processes, 30)
    for rank, found in enumerate(results(tmp_path / "ranks", 0, 1, 2)):
        assert found["restored"]
        if rank == at:
            assert found["error"] == original
        else:
            assert found["error"] == "ProcessError"
            assert found["message"].startswith(f"Rank {at} of 3 {message}")


@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize("fault", ["is killed", "is stopped", "sleeps"])
def test_lost_process_ends_the_others(tmp_path: Path, fault: str, at: int) -> None:
    # The patience of the product for one of the faults, a shorter one for the others.
    patience = None if (fault, at) == ("is stopped", 0) else 2.0
    processes = start(3, tmp_path / "ranks", with_fault, fault, at, patience)
    others = [rank for rank in range(3) if rank != at]
    ended_within = 30
    try:
        for rank in others:
            processes[rank].join(ended_within)
    finally:
        for process in processes:
            process.kill()
    found = results(tmp_path / "ranks", *others)
    assert all(one["error"] == "ProcessError" and one["restored"] for one in found)
    assert all(one["seconds"] < ended_within for one in found)
    how = "has ended" if fault == "is killed" else "does not answer"
    assert any(one["message"].startswith(f"Rank {at} of 3 {how}") for one in found)


@pytest.mark.parametrize("what", ["prompts", "settings", "models"])
def test_processes_that_differ_are_refused(tmp_path: Path, what: str) -> None:
    processes = start(2, tmp_path / "ranks", with_difference, what)
    ended(processes, 30)
    for message in results(tmp_path / "ranks", 0, 1):
        assert message == f"The processes of this fit differ in their {what}; start all of them alike."


@pytest.mark.parametrize("at", [0, 1])
def test_processes_wait_for_a_slow_trial_run(tmp_path: Path, at: int) -> None:
    processes = start(2, tmp_path / "ranks", slow_at_first, at)
    ended(processes, 30)
    assert results(tmp_path / "ranks", 0, 1) == ["", ""]


@pytest.mark.parametrize(
    ("order", "rooms"),
    [("simultaneous", (0, 0)), ("causal", (0, 0)), ("causal", (1 << 20, 2 << 20)), ("causal", (1 << 20, 1 << 40))],
    ids=["never parked", "no room", "other rooms", "room in one"],
)
def test_processes_refuse_to_stream(tmp_path: Path, order: str, rooms: tuple[int, int]) -> None:
    processes = start(2, tmp_path / "ranks", streamed, order, rooms)
    ended(processes, 30)
    first, second = results(tmp_path / "ranks", 0, 1)
    assert first.startswith("Only a single process can stream prompts in groups; ")
    assert second.removeprefix("Rank 0 of 2 failed: ") == first


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_every_batch_has_one_owner_and_loads_differ_by_one(count: int) -> None:
    owners = [owner(position, count) for position in range(10)]
    loads = [owners.count(rank) for rank in range(count)]
    assert sum(loads) == 10
    assert max(loads) - min(loads) <= 1
    if count == 2:
        # Batches come sorted by length: the shortest and the longest go to one process.
        assert owners[:4] == [0, 1, 1, 0]


def test_single_process_gathers_what_it_is_given() -> None:
    with together() as processes:
        values = {"source": [], "target": []}
        assert processes.gathered(values) is values  # pyright: ignore[reportArgumentType]
        processes.agree(1.0, prompts="a")
        assert (processes.count, processes.rank) == (1, 0)


# --- the command line

_KILLS_ITSELF = """
import importlib, os, signal, sys
from act_core.cli import main

if os.environ["RANK"] == sys.argv.pop(1):
    fit = importlib.import_module("act_core.fitting.fit")
    fit.fit_transport = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
sys.exit(main())
"""


def torchrun(*command: object) -> subprocess.CompletedProcess[str]:
    """Run a command in two processes."""
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *map(str, command)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=120,
        check=False,
    )


def messages(run: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in run.stderr.splitlines() if line.startswith("act-steering: ")]


def test_fit_under_torchrun_writes_and_prints_once(
    tmp_path: Path, tiny: Path, prompt_set: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A map records the libraries that were imported; the command does not import this one for a language model.
    monkeypatch.delitem(sys.modules, "diffusers", raising=False)
    arguments = ["fit", "--model", tiny, "--prompts", prompt_set, "--batch-size", "1", "--support", "observed"]
    single, several = tmp_path / "single.safetensors", tmp_path / "several.safetensors"
    assert run(*arguments, "--out", single)[0] == 0
    done = torchrun("-m", "act_core", *arguments, "--out", several)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Saved ") == done.stdout.count("Loading ") == 1
    assert several.read_bytes() == single.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [several.name, single.name]


def test_killed_process_under_torchrun_ends_all_with_one_message(tmp_path: Path, tiny: Path, prompt_set: Path) -> None:
    script, out = tmp_path / "script.py", tmp_path / "maps"
    script.write_text(_KILLS_ITSELF, "utf-8")
    out.mkdir()
    # The first one, which would have printed the message.
    done = torchrun(script, 0, "fit", "--model", tiny, "--prompts", prompt_set, "--out", out / "map.safetensors")
    assert done.returncode != 0
    assert len(messages(done)) == 1, done.stderr
    assert "has ended" in messages(done)[0]
    assert not list(out.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fit", "--out", "map.safetensors"], "Name a prompt set"),
        (["fit", "--prompts"], "expected one argument"),
        (["inspect", "map.safetensors"], "Only 'fit' runs in several processes"),
        (["fit", "--target-images", "folder", "--out", "map.safetensors"], "Pictures are fitted in a single process"),
        (["fit", "--prompts", "a.txt", "--out", "map.safetensors", "--device", "cuda:1"], "leave out the number"),
    ],
)
def test_wrong_arguments_in_several_processes_are_refused_once(
    tmp_path: Path, arguments: list[str], words: str
) -> None:
    # The store that torchrun would hold.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # pyright: ignore[reportPrivateImportUsage]
    processes = start(2, tmp_path / "ranks", command_line, store.port, arguments)
    ended(processes, 30)
    assert [process.exitcode for process in processes] == [2, 2]
    printed = "".join((tmp_path / "ranks" / f"{rank}.txt").read_text("utf-8") for rank in range(2))
    assert len(printed.splitlines()) == 1, printed
    assert words in printed
