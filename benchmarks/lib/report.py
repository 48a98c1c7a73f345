"""What a benchmark prints and saves: the machine, tables, and figures with their targets."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import logging
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tools.results import Cell, Column, Estimate, Figure, Result, Table, describe, head, line, rounded, short

from .models import HOW_TO_INSTALL, ROOT, stop

_ENVIRONMENT = ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "OMP_NUM_THREADS")


def parse(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None, quick: Mapping[str, Any] | None = None
) -> argparse.Namespace:
    """Parse the arguments of a benchmark, including those that all benchmarks share.

    Args:
        parser: with the benchmark's own arguments.
        arguments: command-line arguments; those of this process if None.
        quick: the defaults that ``--quick`` selects; None to leave out the option.
    """
    parser.add_argument("--no-save", action="store_true", help="print the results without saving them")
    if quick is not None:
        changes = ", ".join(f"--{name.replace('_', '-')} {value}" for name, value in quick.items())
        parser.add_argument("--quick", action="store_true", help=f"fewer repeats: {changes}")
    given = sys.argv[1:] if arguments is None else list(arguments)
    args = parser.parse_args(given)
    if quick is not None and args.quick:
        parser.set_defaults(**quick)
        args = parser.parse_args(given)
    args.command = command_line(str(parser.prog), given)
    return args


def command_line(program: str, arguments: Sequence[str]) -> str:
    """The command that was run, with paths reduced to their last part."""
    named = [Path(argument).name if os.sep in argument else argument for argument in arguments]
    return shlex.join([*program.split(), *named])


@dataclass(frozen=True)
class Target:
    """The target of a figure.

    Attributes:
        words: the target as printed.
        is_met: of the value and its ends; the three are equal for a plain number.
    """

    words: str
    is_met: Callable[[Estimate], bool]


def at_least(bound: float, form: str = "g", unit: str = "", why: str = "") -> Target:
    """A value that should be `bound` or more."""
    return Target(_words(">=", bound, form, unit) + (f" ({why})" if why else ""), lambda found: found.value >= bound)


def at_most(bound: float, form: str = "g", unit: str = "") -> Target:
    """A value that should be `bound` or less."""
    return Target(_words("<=", bound, form, unit), lambda found: found.value <= bound)


def below(bound: float, form: str = "g", unit: str = "") -> Target:
    """A value that should be less than `bound`."""
    return Target(_words("<", bound, form, unit), lambda found: found.value < bound)


def _words(relation: str, bound: float, form: str, unit: str) -> str:
    return f"{relation} {short(bound, form)} {unit}".rstrip()


INTERVAL_ABOVE_0 = Target("interval above 0", lambda found: found.low > 0)


class Report:
    """Prints the results of a benchmark as they come, and saves them at the end.

    Args:
        name: name of the command, and of the file in ``benchmarks/results``.
        title: heading.
        args: from `parse`.
        packages: packages whose versions are recorded in addition to torch and transformers. All must be installed.
    """

    def __init__(self, name: str, title: str, args: argparse.Namespace, *packages: str) -> None:
        logging.getLogger("act_core").setLevel(logging.ERROR)
        self._save = not args.no_save
        date = datetime.datetime.now(tz=datetime.timezone.utc).date().isoformat()
        self.result = Result(name, title, date, args.command, _commit(), machine(packages))
        print(f"## {title}\n\n{describe(self.result.machine)}.", flush=True)

    def text(self, sentences: str) -> None:
        """Describe what is measured."""
        self.result.setup.append(sentences)
        print(f"\n{sentences}", flush=True)

    def table(self, name: str, title: str, columns: Sequence[Column], rows: Iterable[Sequence[Cell]]) -> Table:
        """Print a table, each row as soon as it is available."""
        print(f"\n### {title}\n\n" + "\n".join(head(columns)), flush=True)
        kept: list[list[Cell]] = []
        for row in rows:
            kept.append([rounded(cell) for cell in row])
            print(line(columns, kept[-1]), flush=True)
        table = self.result.tables[name] = Table(columns, kept)
        return table

    def figure(self, name: str, column: Column, value: Cell, target: Target | None = None) -> None:
        """Record a figure; those with a target are printed at the end."""
        words, met = "", None
        if target is not None:
            number = value if isinstance(value, Estimate) else Estimate(*(3 * [float(value)]))
            words, met = target.words, target.is_met(number)
        self.result.figures[name] = Figure(column, rounded(value), words, met)

    def finish(self) -> int:
        """Print the targets and save the result; the exit status, 1 if a target is not met."""
        if any(figure.target for figure in self.result.figures.values()):
            print(f"\n### Targets\n\n{self.result.targets().markdown()}")
        if self._save:
            saved = self.result.save().relative_to(ROOT)
            print(f"\nSaved as {saved}; 'python -m tools.make_tables' copies the tables into the documents.")
        return 1 if any(figure.met is False for figure in self.result.figures.values()) else 0


def machine(packages: Sequence[str] = ()) -> dict[str, Any]:
    """The machine: processor and libraries, but nothing that identifies the computer."""
    libraries: dict[str, str] = {}
    for name in ("act-steering", "torch", "transformers", *packages):
        try:
            libraries[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            if name in packages:
                stop(f"This benchmark needs {name}; {HOW_TO_INSTALL}.")
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "libraries": libraries,
        "environment": {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
    }


def cpu_name() -> str:
    """The model name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (own.partition(":")[2].strip() for own in lines if own.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def _commit() -> str:
    """Abbreviated hash of the code, with a plus sign if files differ from it; empty outside a checkout."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--exclude=*", "--abbrev=7"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return found.stdout.strip()
