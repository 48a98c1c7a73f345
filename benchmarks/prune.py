"""What is left of the effect of two shipped maps when they are pruned, against the size of their files."""

from __future__ import annotations

import argparse
import tempfile
import zlib
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from act_core import ActMap, load_map, save_map
from act_core.blending import Unit
from act_core.prompts import read_lines
from act_core.sites import Site
from act_core.transport import Transport
from tools.results import Cell, Column
from tools.train_demo_model.emoji import STYLES

from .lib.continuations import continuations
from .lib.intervals import interval
from .lib.judge import load_pictures
from .lib.models import DATA, ROOT, load_model
from .lib.pictures import StyleBench, shipped_concepts
from .lib.report import Report, parse
from .text_maps import measures

MAPS = ROOT / "pretrained_maps"
PICTURE_MAP, TEXT_MAP = "plain_to_ink", "cheerful"
SHARES = (0.95, 0.9, 0.8, 0.5)
UNITS: tuple[Unit, ...] = ("sites", "channels")
PICTURE_STEPS = 8
COLUMNS = (
    Column("map"),
    Column("pruned by"),
    Column("share of squared displacement", format="g"),
    Column("sites", format="d"),
    Column("channels", format="d"),
    Column("file", "kB", ".1f"),
    Column("compressed", "kB", ".1f"),
    Column("score", format=".3f", spread="interval"),
    Column("effect left", format=".0%"),
    Column("score, as many at random", format=".3f", spread="interval"),
)
KEPT = Column("effect left", format=".0%")

# The mean score of each prompt, steered by a map; unsteered without one.
Scores = Callable[[ActMap | None], np.ndarray]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prune", description=__doc__)
    parser.add_argument("--concepts", type=int, default=32, help="how many to draw (%(default)s)")
    parser.add_argument("--seeds", type=int, default=1, help="pictures of each (%(default)s)")
    parser.add_argument("--openings", type=int, default=96, help="texts to continue (%(default)s)")
    parser.add_argument("--draws", type=int, default=3, help="random maps of each size, for pictures (%(default)s)")
    parser.add_argument("--text-draws", type=int, default=1, help="the same for texts (%(default)s)")
    args = parse(parser, arguments)

    report = Report("prune", "Pruned maps", args, "diffusers", "vaderSentiment")
    report.text(
        f"Strength 1. {PICTURE_MAP}: probability of black ink, {args.concepts} held-out concepts x {args.seeds} seeds, "
        f"{PICTURE_STEPS} steps, by the judge of `styles`. text_{TEXT_MAP}: VADER, one continuation of each of "
        f"{args.openings} openings, as in `text_maps`. Intervals: 95%, bootstrap over concepts or openings. Effect "
        "left: the change of the score, as a share of the change by the whole map. At random: as many sites or "
        f"channels, mean over {args.draws} draws for pictures and {args.text_draws} for texts. Files without covers "
        "and prompts. Compressed: by zlib. A dropped channel keeps its bytes in the file, but takes none once "
        "compressed."
    )
    report.table("pruned", "Effect against file size", COLUMNS, _rows(report, args))
    return report.finish()


def _rows(report: Report, args: argparse.Namespace) -> Generator[list[Cell], None, None]:
    ink = load_map(MAPS / f"{PICTURE_MAP}.safetensors")
    yield from pruned(report, PICTURE_MAP, ink, _picture_scores(args.concepts, args.seeds), args.draws)
    text = load_map(MAPS / f"text_{TEXT_MAP}.safetensors")
    yield from pruned(report, f"text_{TEXT_MAP}", text, _text_scores(args.openings), args.text_draws)


def pruned(report: Report, name: str, act_map: ActMap, scores: Scores, draws: int) -> Generator[list[Cell], None, None]:
    """A row for each pruned map, the whole one first; the figures are those of a share of 90%."""
    before, whole = scores(None), scores(act_map)
    effect = whole.mean() - before.mean()
    yield [name, "unsteered", 0.0, 0, 0, 0.0, 0.0, interval(before), 0.0, ""]
    yield [name, "nothing", 1.0, *_size(act_map), interval(whole), 1.0, ""]
    for by in UNITS:
        for share in SHARES:
            smaller = act_map.pruned(share, by)
            found = scores(smaller)
            left = float((found.mean() - before.mean()) / effect)
            chance = np.mean([scores(at_random(act_map, smaller, by, seed)) for seed in range(draws)], axis=0)
            yield [name, by, share, *_size(smaller), interval(found), left, interval(chance)]
            if share == 0.9:
                column = replace(KEPT, name=f"{name}, 90% by {by}: {KEPT.name}")
                report.figure(f"{name}_{by}", column, left)


def at_random(act_map: ActMap, smaller: ActMap, by: Unit, seed: int) -> ActMap:
    """The map with as many sites, or channels, as a pruned one has, chosen at random."""
    generator = torch.Generator().manual_seed(seed)
    sites = list(act_map.transports)
    if by == "sites":
        chosen = {sites[int(n)] for n in torch.randperm(len(sites), generator=generator)[: len(smaller)]}
        return replace(act_map, transports={site: t for site, t in act_map.transports.items() if site in chosen})
    order = torch.randperm(sum(site.channels for site in sites), generator=generator)
    kept = torch.zeros(len(order), dtype=torch.bool)
    kept[order[: _moving(smaller)]] = True
    transports: dict[Site, Transport] = {}
    at = 0
    for site, transport in act_map.transports.items():
        own, at = kept[at : at + site.channels], at + site.channels
        omega, beta = transport.omega.where(own, 1.0), transport.beta.where(own, 0.0)
        transports[site] = replace(transport, omega=omega, beta=beta)
    return replace(act_map, transports=transports)


def _moving(act_map: ActMap) -> int:
    """How many channels a map moves."""
    return sum(int(((t.omega != 1) | (t.beta != 0)).sum()) for t in act_map.transports.values())


def _size(act_map: ActMap) -> list[Cell]:
    """Sites, channels that move, and the size of the file without its cover, as it is and compressed, in kB."""
    bare = replace(act_map, card=replace(act_map.card, cover=b""), calibration=None)
    with tempfile.TemporaryDirectory() as folder:
        data = save_map(bare, Path(folder) / "map.safetensors", keep_prompts=False).read_bytes()
    return [len(act_map), _moving(act_map), len(data) / 1000, len(zlib.compress(data, 9)) / 1000]


def _picture_scores(concepts: int, seeds: int) -> Scores:
    bench = StyleBench(concepts, seeds, load_pictures(), steps=PICTURE_STEPS, without=shipped_concepts())
    ink = next(number for number, style in enumerate(STYLES) if style.phrase == "black ink icon")
    captions = bench.captions(0, bench.concepts)

    def scores(act_map: ActMap | None) -> np.ndarray:
        drawn = bench.draw(captions) if act_map is None else bench.steered({0: act_map}, captions, 1.0)
        return drawn.styles[:, ink].view(seeds, -1).mean(0).double().numpy()

    return scores


def _text_scores(count: int) -> Scores:
    model, measure = load_model(), measures()[TEXT_MAP]
    openings = read_lines(DATA / "openings_test.txt")[:count]
    return lambda act_map: measure.score(continuations(model, openings, 1, act_map).all)


if __name__ == "__main__":
    raise SystemExit(main())
