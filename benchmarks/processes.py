"""How much faster two processes fit than one, and what a fit would cost on more processes and samples."""

from __future__ import annotations

import argparse
import math
from statistics import median

import torch

from act_core.discovery import discover
from act_core.fitting.memory import MemoryMeter
from act_core.transport import fit_transport
from tools.results import Cell, Column

from .lib.models import load_model, load_prompts
from .lib.ranks import BATCH, Fitted, Ranks
from .lib.report import Report, at_most, parse
from .lib.timing import timed

SITES = "norms"
TIMES = (
    Column("processes"),
    Column("fastest walk", "s", ".2f"),
    Column("median walk", "s", ".2f"),
    Column("processor time of a process", "s", ".2f"),
    Column("fastest fit", "s", ".2f"),
    Column("fastest plain passes", "s", ".2f"),
    Column("runs", format="d"),
)
UNITS = (Column("unit"), Column("cost", format=".3g"), Column("of"))
COSTS = (
    Column("samples", format=",d"),
    Column("processes", format="d"),
    Column("passes of each", format=",d"),
    Column("gathered by each", "GB", ",.3f"),
    Column("parked by each", "GB", ",.1f"),
    Column("running", "s", ",.0f"),
    Column("gathering", "s", ",.1f"),
    Column("fitting", "s", ",.1f"),
    Column("parking", "s", ",.0f"),
    Column("all", "s", ",.0f"),
)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.processes", description=__doc__)
    parser.add_argument("--prompts", type=int, default=64, help="prompts of each side (%(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="fits of each number of processes (%(default)s)")
    args = parse(parser, arguments)
    torch.set_num_threads(1)

    report = Report("processes", "Several processes", args)
    report.text(
        f"SmolLM2-135M, float32, {args.prompts} + {args.prompts} prompts in batches of {BATCH}, 60 norms, causal. Each "
        "process has one thread and its own model; one process and two take turns, after a fit of each that does not "
        "count. The walk is the fit without fingerprint and dry run. Other programs can only add to the time, so the "
        "fastest run counts; the processor time of the busier process hardly depends on them. Plain passes of the same "
        "prompts, divided among the processes in the same way, exchange nothing: they show how much two processes "
        "that run side by side slow each other down on this machine."
    )
    single, double = Ranks(1, args.prompts, SITES), Ranks(2, args.prompts, SITES)
    runs: dict[int, list[list[Fitted]]] = {1: [], 2: []}
    passes: dict[int, list[float]] = {1: [], 2: []}
    for number in range(args.repeats + 1):
        for count, ranks in ((1, single), (2, double)):
            found, plain = ranks.fit(), ranks.passes()
            if number:
                runs[count].append(found)
                passes[count].append(plain)
    few, many = 64, 16384
    latency = min(double.gather(1, 1) for _ in range(20))
    per_byte = (min(double.gather(many, 576) for _ in range(3)) - latency) / (2 * many * 576 * 4)
    single.stop()
    double.stop()

    report.table(
        "times", "Time of a fit", TIMES, [_times(count, found, passes[count]) for count, found in runs.items()]
    )
    plain = min(passes[2]) / min(passes[1])
    report.figure("passes", Column("the same of plain passes, which exchange nothing", format=".2f"), plain)
    one, two = (min(_slowest(found, "walk") for found in runs[count]) for count in (1, 2))
    report.figure("walk", Column("walk of two processes / of one", format=".2f"), two / one, at_most(0.6))
    one, two = (min(_slowest(found, "busy") for found in runs[count]) for count in (1, 2))
    report.figure("busy", Column("processor time of each of two / of one", format=".2f"), two / one, at_most(0.6))
    maps = {fitted.map_sha256 for found in runs.values() for ranks in found for fitted in ranks}
    report.figure("maps", Column("different maps", format="d"), len(maps), at_most(1))

    waiting, channels = _activations()
    fits = {count: _fit_seconds(count, channels[0]) for count in (few, many)}
    per_compared = fits[many] / (many * math.log2(many) * channels[0])
    costs = _Costs(one / (2 * args.prompts), latency, per_byte, per_compared, waiting, _copy_seconds(), channels)
    report.text(
        "The costs are predicted, not measured: from the unit costs, for an exact fit whose device holds one "
        "micro-batch of each process at a time, all on machines and connections like this one. A pass is that of a "
        "micro-batch."
    )
    report.table("units", "Unit costs", UNITS, costs.rows())
    cases = [(samples, count) for samples in (128, 10_000, 1_000_000) for count in (1, 2, 8, 64)]
    report.table("costs", "Predicted cost", COSTS, [costs.of(*case) for case in cases])
    return report.finish()


def _slowest(found: list[Fitted], what: str) -> float:
    return max(getattr(fitted, what) for fitted in found)


def _times(count: int, runs: list[list[Fitted]], passes: list[float]) -> list[Cell]:
    walks = [_slowest(found, "walk") for found in runs]
    busy, whole = (min(_slowest(found, what) for found in runs) for what in ("busy", "whole"))
    return [f"{count} of one thread", min(walks), median(walks), busy, whole, min(passes), len(runs)]


def _activations() -> tuple[int, list[int]]:
    """Bytes of a sample that waits at a site, and the channels of each site."""
    model, lines = load_model(), load_prompts(BATCH)
    batch = model.batches(lines.source, BATCH)[0]
    with torch.inference_mode(), MemoryMeter() as meter:
        found = discover(model.components, SITES, batch.run, batch.rows, meter.sample)
    return meter.held // batch.rows, [site.channels for site in found]


def _fit_seconds(rows: int, channels: int) -> float:
    """Seconds to fit a site on `rows` samples, half of them on each side."""
    source, target = torch.randn(2, rows // 2, channels, generator=torch.Generator().manual_seed(0))
    return min(timed(lambda: fit_transport(source, target)) for _ in range(3))


def _copy_seconds() -> float:
    """Seconds to copy a byte of main memory, as parking does."""
    block = torch.ones(1 << 26)
    return min(timed(block.clone) for _ in range(5)) / (4 << 26)


class _Costs:
    """Predicts the cost of an exact fit, with one micro-batch of each process on the device at a time.

    Every process runs its share of the samples once, receives the values of the others at each site, and fits every
    site. All micro-batches but one are parked, which moves their activations out and back at each site.
    """

    def __init__(
        self,
        sample: float,
        latency: float,
        per_byte: float,
        per_compared: float,
        waiting: int,
        copy: float,
        channels: list[int],
    ) -> None:
        self._sample, self._latency, self._per_byte, self._per_compared = sample, latency, per_byte, per_compared
        self._waiting, self._copy, self._channels = waiting, copy, channels

    def rows(self) -> list[list[Cell]]:
        return [
            ["pass of a sample", 1e3 * self._sample, "ms of processor time"],
            ["gathering a site, without its values", 1e3 * self._latency, "ms, between two processes"],
            ["gathering values", 1 / self._per_byte / 1e9, "GB/s, between two processes of this machine"],
            ["fitting a site", 1e9 * self._per_compared, "ns for n samples: times n log2(n) channels"],
            ["activations of a sample that waits", self._waiting / 1e6, "MB"],
            ["copying to main memory", 1 / self._copy / 1e9, "GB/s"],
        ]

    def of(self, samples: int, count: int) -> list[Cell]:
        share, sites = -(-samples // count), len(self._channels)
        batches = -(-share // BATCH)
        gathered = 4 * (samples - share) * sum(self._channels)
        parked = 2 * sites * self._waiting * max(0, share - BATCH)
        # Each message of the meeting at a site goes to every other process.
        gathering = self._latency * sites * (count - 1) + gathered * self._per_byte
        fitting = self._per_compared * samples * math.log2(samples) * sum(self._channels)
        seconds = [self._sample * share, gathering, fitting, self._copy * parked]
        return [samples, count, batches, gathered / 1e9, parked / 1e9, *seconds, sum(seconds)]


if __name__ == "__main__":
    raise SystemExit(main())
