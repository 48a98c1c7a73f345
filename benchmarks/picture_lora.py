"""A map that is refined on pictures, against a LoRA that is trained on the same pictures."""

from __future__ import annotations

import argparse
import time
from collections.abc import Generator, Sequence
from statistics import fmean

import torch

from act_core.image_files import Picture
from act_core.models.diffusers import DiffusersModel
from act_core.models.picture_loss import PictureModel
from tools.results import Cell, Column

from .lib.judge import load_pictures
from .lib.learned_styles import content_kept, examples, refined
from .lib.models import ROOT
from .lib.pictures import Judged, StyleBench, draw, style_pair
from .lib.report import Report, at_least, parse
from .lib.slider import RANK, with_lora

PAIRS = ((0, 4), (4, 1), (3, 2), (1, 0))
PICTURES, BATCH, STEPS = 32, 16, 8
# Multiples of the time of a refinement.
TIMES = (1, 10)
RATES = (3e-4, 1e-3, 3e-3)
COLUMNS = (
    Column("styles"),
    Column("fit", "s", ".1f"),
    Column("map / prompted", format=".2f"),
    *(Column(f"LoRA, {times} x the time / prompted", format=".2f") for times in TIMES),
    Column("content, map", format=".2f"),
    *(Column(f"content, LoRA, {times} x the time", format=".2f") for times in TIMES),
)
AHEAD = [
    Column(f"style, map less LoRA with {times} x the time, of prompting, mean over pairs", format=".2f")
    for times in TIMES
]
CONTENTS = [Column(f"content, map less LoRA with {times} x the time, mean over pairs", format=".2f") for times in TIMES]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.picture_lora", description=__doc__)
    parser.add_argument("--concepts", type=int, default=24, help="how many to draw (%(default)s)")
    parser.add_argument("--seeds", type=int, default=2, help="pictures of each (%(default)s)")
    args = parse(parser, arguments)

    report = Report("picture_lora", "A style from pictures, against a LoRA", args, "diffusers", "peft")
    pictures = load_pictures()
    bench = StyleBench(args.concepts, args.seeds, pictures, steps=STEPS)
    rates = best_rates(StyleBench(16, 1, pictures, last=True, steps=STEPS))
    chosen = " and ".join(f"{rate:g} for {times} x the time" for times, rate in rates.items())
    report.text(
        f"{PICTURES} pictures whose captions name the source style; {len(bench.concepts)} held-out concepts x "
        f"{bench.seeds} seeds, {STEPS} denoising steps, strength 1. The LoRA has rank {RANK}, on the attention of the "
        f"diffusion model and of the text encoder, and is trained by Adam with batches of {BATCH} on the same loss as "
        f"the map; its learning rate, {chosen}, is the best of {', '.join(f'{one:g}' for one in RATES)} on other "
        "concepts of the first pair. Shares of what prompting for the style gives. Content: 1 if a picture shows what "
        "the unsteered one does, 0 if another concept."
    )

    def rows() -> Generator[list[Cell], None, None]:
        for source, target in PAIRS:
            own = examples(bench, bench.pictures.images[target], PICTURES, named=source)
            fitted = refined(bench, own)
            texts = bench.captions(source, bench.concepts)
            with bench.model.steer(fitted.act_map):
                drawn = [bench.draw(texts)]
            drawn += [trained(bench, own, texts, fitted.seconds, rate, [times])[times] for times, rate in rates.items()]
            prompted = float(bench.prompted(target).styles[:, target].mean())
            styles = [float(one.styles[:, target].mean()) / prompted for one in drawn]
            contents = [float(content_kept(one, bench.prompted(source)).mean()) for one in drawn]
            yield [style_pair(source, target), fitted.seconds, *styles, *contents]

    table = report.table("pairs", "Map and LoRA", COLUMNS, rows())
    columns = [[float(cell) for row in table.rows if isinstance(cell := row[at], float)] for at in range(2, 8)]
    means = [fmean(column) for column in columns]
    for number, times in enumerate(TIMES):
        ahead = at_least(0, why="ahead at the same time" if times == 1 else "level or ahead")
        report.figure(f"style_{times}", AHEAD[number], means[0] - means[1 + number], ahead)
        report.figure(f"content_{times}", CONTENTS[number], means[3] - means[4 + number])
    return report.finish()


def best_rates(bench: StyleBench) -> dict[int, float]:
    """For each multiple of the time of a refinement, the learning rate that comes closest to the first pair's style."""
    source, target = PAIRS[0]
    own = examples(bench, bench.pictures.images[target], PICTURES, named=source)
    seconds = refined(bench, own).seconds
    texts = bench.captions(source, bench.concepts)
    found = {rate: trained(bench, own, texts, seconds, rate, TIMES) for rate in RATES}
    return {times: max(RATES, key=lambda rate: float(found[rate][times].styles[:, target].mean())) for times in TIMES}


def trained(
    bench: StyleBench,
    pictures: Sequence[Picture],
    texts: Sequence[str],
    seconds: float,
    rate: float,
    times: Sequence[int],
) -> dict[int, Judged]:
    """What a LoRA draws after each multiple of some seconds of training."""
    model = DiffusersModel.from_pretrained(ROOT / "demo_model")
    optimizer = with_lora(model, rate)
    loss_model, generator = PictureModel(model), torch.Generator().manual_seed(0)
    drawn: dict[int, Judged] = {}
    spent = 0.0
    for multiple in times:
        while spent < multiple * seconds:
            start = time.perf_counter()
            chosen = torch.randperm(len(pictures), generator=generator)[:BATCH]
            loss_model.loss([pictures[int(n)] for n in chosen], generator).backward()
            optimizer.step()
            optimizer.zero_grad()
            spent += time.perf_counter() - start
        seeds = range(bench.seeds)
        images = torch.cat([draw(model, texts, seed=1000 * seed, steps=bench.steps) for seed in seeds])
        drawn[multiple] = Judged(images, *bench.judge.ask(images))
    return drawn


if __name__ == "__main__":
    raise SystemExit(main())
