"""What the benchmarks share: the model, the prompts, fair timing, and the tables they print."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, NoReturn

import torch

from act_core.prompts import PromptSet, load_prompt_set

if TYPE_CHECKING:
    from act_core.models.transformers import TransformersModel

ROOT = Path(__file__).parent.parent
DATA = Path(__file__).parent / "data"
HOW_TO_INSTALL = "run 'pip install --no-deps -c constraints.txt -r benchmarks/requirements.txt'"
PROMPT_SET = ROOT / "prompt_sets" / "gloomy_to_cheerful.txt"


def load_model(dtype: torch.dtype = torch.float32) -> TransformersModel:
    """SmolLM2-135M-Instruct."""
    from act_core.models.transformers import TransformersModel

    return TransformersModel.default(dtype=dtype)


def load_prompts(count: int | None = None) -> PromptSet:
    """The first `count` prompts of either side of the shipped set; all of them by default."""
    prompts = load_prompt_set(PROMPT_SET)
    available = min(len(prompts.source), len(prompts.target))
    if count is not None and count > available:
        stop(f"The prompt set has {available} prompts a side, not {count}; ask for fewer.")
    return PromptSet(prompts.source_name, prompts.target_name, prompts.source[:count], prompts.target[:count])


def stop(sentence: str) -> NoReturn:
    """End with exit status 2 and one sentence."""
    print(sentence, file=sys.stderr)
    raise SystemExit(2)


def timed(run: Callable[[], object]) -> float:
    """Seconds that `run` takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def alternate(sides: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each side, run by turns and with the first turn alternating, so that both see the same machine."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats):
        for name in list(sides) if turn % 2 == 0 else list(sides)[::-1]:
            times[name].append(timed(sides[name]))
    return times


@dataclass(frozen=True)
class Ratio:
    """How many times as long one side took: of the medians, and the least and greatest of the single turns."""

    value: float
    least: float
    greatest: float

    @classmethod
    def of(cls, slow: Sequence[float], fast: Sequence[float]) -> Ratio:
        turns = [a / b for a, b in zip(slow, fast, strict=True)]
        return cls(median(slow) / median(fast), min(turns), max(turns))

    def __str__(self) -> str:
        return f"{self.value:.1f} ({self.least:.1f} to {self.greatest:.1f})"


@dataclass(frozen=True)
class Check:
    """One figure and the target it was stated with."""

    what: str
    measured: str
    target: str
    passed: bool


def report(checks: Iterable[Check]) -> int:
    """Print the checks; returns the exit status, 1 if one falls short."""
    checks = list(checks)
    rows = [(c.what, c.measured, c.target, "PASS" if c.passed else "FALLS SHORT") for c in checks]
    print_table(("target", "measured", "stated", ""), rows)
    return 0 if all(check.passed for check in checks) else 1


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A Markdown table, each row as soon as it is there; the first column is text and the others are figures."""
    print("\n| " + " | ".join(columns) + " |")
    print("|---" + "|---:" * (len(columns) - 1) + "|", flush=True)
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |", flush=True)


def print_title(title: str, *packages: str) -> None:
    """What is measured, on what: a heading, the versions and the machine."""
    logging.getLogger("act_core").setLevel(logging.ERROR)
    names = ("act-steering", "torch", "transformers", *packages)
    try:
        versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    except importlib.metadata.PackageNotFoundError as error:
        stop(f"This benchmark needs {error.name}; {HOW_TO_INSTALL}.")
    kernels = os.environ.get("ONEDNN_MAX_CPU_ISA")
    print(f"## {title}\n")
    print(
        f"{cpu_name()}, {torch.get_num_threads()} threads; Python {platform.python_version()}, {versions}"
        + (f", ONEDNN_MAX_CPU_ISA={kernels}." if kernels else ".")
    )
    sys.stdout.flush()


def cpu_name() -> str:
    """What the processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()
