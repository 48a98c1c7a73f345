"""Fair timing: the sides alternate, so that all run under the same conditions."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from statistics import median
from typing import TypeVar

from tools.results import Estimate

Result = TypeVar("Result")
Clock = Callable[[], float]


def timed(run: Callable[[], object], clock: Clock = time.perf_counter) -> float:
    """Seconds that `run` takes."""
    start = clock()
    run()
    return clock() - start


def processor_time(run: Callable[[], Result]) -> tuple[Result, float]:
    """What `run` returns, and the seconds of processor time that it takes, which other programs hardly change."""
    start = time.process_time()
    result = run()
    return result, time.process_time() - start


def alternate(
    sides: Mapping[str, Callable[[], object]], repeats: int, clock: Clock = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each side, `repeats` times; the side that starts alternates."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats):
        for name in list(sides) if turn % 2 == 0 else list(sides)[::-1]:
            times[name].append(timed(sides[name], clock))
    return times


def ratio(slow: Sequence[float], fast: Sequence[float]) -> Estimate:
    """How many times as long one side takes: the ratio of the medians, with the minimum and maximum of single turns."""
    turns = [a / b for a, b in zip(slow, fast, strict=True)]
    return Estimate(median(slow) / median(fast), min(turns), max(turns))


def added(bare: Sequence[float], steered: Sequence[float]) -> Estimate:
    """Relative overhead of the second side: median over pairs, with the interquartile range."""
    extra = sorted(b / a - 1 for a, b in zip(bare, steered, strict=True))
    quarter = len(extra) // 4
    return Estimate(median(extra), extra[quarter], extra[-1 - quarter])


@contextmanager
def without_garbage_collection() -> Generator[None, None, None]:
    """Inside the block the collector does not interrupt what is timed."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
