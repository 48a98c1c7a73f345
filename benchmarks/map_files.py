"""How long it takes to load a map of SDXL's size, and to list a folder of 500 such maps."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from act_core import ActMap, load_map, save_map
from act_core.mapfile import list_maps
from act_core.records import Fingerprint, FitRecord
from act_core.transport import Transport
from tools.results import Cell, Column

from .lib.report import Report, below, parse
from .lib.sdxl import sdxl_norms
from .lib.timing import timed

COLUMNS = (
    Column("what"),
    Column("fastest", "ms", ".1f"),
    Column("median", "ms", ".1f"),
    Column("runs", format="d"),
)
PROMPTS = 64


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.map_files", description=__doc__)
    parser.add_argument("--maps", type=int, default=500, help="maps in the folder (%(default)s)")
    parser.add_argument("--repeats", type=int, default=40, help="timed runs of each (%(default)s)")
    args = parse(parser, arguments)

    report = Report("map_files", "Map files", args)
    with tempfile.TemporaryDirectory() as folder:
        path = save_map(sdxl_map(), Path(folder, "0.safetensors"), title="Ink")
        for number in range(1, args.maps):
            Path(folder, f"{number}.safetensors").write_bytes(path.read_bytes())
        act_map = load_map(path)
        report.text(
            f"A map with random coefficients for all {len(act_map)} norms of SDXL's UNet and {PROMPTS} + {PROMPTS} "
            f"prompts, {path.stat().st_size / 1e6:.1f} MB, checked whole, with its hash; and {args.maps} copies of it, "
            "whose headers alone are read and checked. The files are in the disk cache. The fastest run counts: "
            "other programs can only add to it."
        )
        load = repeated(lambda: load_map(path), args.repeats)
        listing = repeated(lambda: list_maps(folder), max(3, args.repeats // 4))
    rows: list[list[Cell]] = [
        [f"load a map of {len(act_map)} sites", min(load), median(load), len(load)],
        [f"list {args.maps} maps", min(listing), median(listing), len(listing)],
    ]
    report.table("times", "Time to read maps", COLUMNS, rows)
    for name, times, bound, words in (
        ("load", load, 50, "load a map of SDXL's size"),
        ("list", listing, 1000, f"list {args.maps} of them"),
    ):
        report.figure(name, Column(words, "ms", ".1f"), min(times), below(bound, "g", "ms"))
    return report.finish()


def sdxl_map() -> ActMap:
    """A map with random coefficients for the norms of SDXL."""
    generator = torch.Generator().manual_seed(0)

    def transport(channels: int) -> Transport:
        omega, beta = (torch.randn(channels, generator=generator) for _ in range(2))
        return Transport(1 + omega / 10, beta, effect=float(beta.abs().median()))

    subjects = [f"a lighthouse on a cliff at dusk, number {number}" for number in range(PROMPTS)]
    record = FitRecord(
        source_prompts=tuple(subjects),
        target_prompts=tuple(f"{subject}, black ink drawing" for subject in subjects),
        source_count=PROMPTS,
        target_count=PROMPTS,
        base={"diffusion_model": Fingerprint("UNetModel", "0" * 64, "UNetModel")},
    )
    return ActMap({site: transport(site.channels) for site in sdxl_norms()}, record)


def repeated(run: Callable[[], object], repeats: int) -> list[float]:
    """Milliseconds of each run, after one that does not count."""
    run()
    return [1e3 * timed(run) for _ in range(repeats)]


if __name__ == "__main__":
    raise SystemExit(main())
