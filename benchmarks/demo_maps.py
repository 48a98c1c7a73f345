"""What the shipped maps of the demo model do, on held-out concepts."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Generator

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from act_core import ActMap, load_map
from tools.fit_demo_maps import DEMO_MAPS, DemoMap
from tools.make_picture_sets import STYLES as PICTURE_STYLES
from tools.results import Cell, Column, Estimate
from tools.train_demo_model.emoji import STYLES

from .lib.composition import distance_between, edges_kept, statistics
from .lib.controls import permuted
from .lib.intervals import interval
from .lib.judge import as_tensor, load_pictures
from .lib.learned_styles import drawn_with
from .lib.pictures import Judged, StyleBench, kept, shipped_concepts
from .lib.removals import Removal
from .lib.report import Report, parse

MAX_ASKING = 16
# What a plain prompt draws.
SOURCE = 0
COLUMNS = (
    Column("map"),
    Column("measure"),
    Column("strength", format="g"),
    Column("pictures", format="d"),
    Column("with the map", format=".2f", spread="interval"),
    Column("without", format=".2f"),
    Column("control", format=".2f"),
    Column("content kept", format=".2f"),
)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo_maps", description=__doc__)
    parser.add_argument("--concepts", type=int, default=24, help="how many to draw (%(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="pictures of each (%(default)s)")
    args = parse(parser, arguments, quick={"concepts": 8, "seeds": 1})

    report = Report("demo_maps", "Maps of the demo model", args, "diffusers")
    report.text(
        f"{args.concepts} held-out concepts x {args.seeds} seeds, prompted without a style, at the highest strength "
        "that each map recommends; intervals: 95%, bootstrap over concepts. Control: the map with its coefficients "
        "shuffled over the channels. Styles: probability of the style, by a judge that was not trained on these "
        "concepts; content kept is 1 for the picture that the same noise gives when the style is prompted, 0 for "
        f"another concept. Removals: share of pictures, of at most {MAX_ASKING} held-out prompts that ask for the "
        "thing, that still show it, as in `removal`; content kept is that of prompts that do not ask for it. From "
        "pictures: distance of colours and edges to those of real emoji in the style, as a share of the unsteered "
        "distance, as in `wordless_styles`; content kept by edges."
    )
    pictures = load_pictures()
    bench = StyleBench(args.concepts, args.seeds, pictures, without=shipped_concepts())
    once = StyleBench(args.concepts, 1, pictures, without=shipped_concepts())

    def rows() -> Generator[list[Cell], None, None]:
        for demo_map in DEMO_MAPS:
            act_map = load_map(demo_map.file)
            if demo_map.picture_set:
                yield from_pictures(bench, demo_map, act_map)
            elif demo_map.thing:
                yield removal(once, demo_map, act_map)
            else:
                yield style(bench, demo_map, act_map)

    report.table("maps", "Maps of the demo model", COLUMNS, rows())
    return report.finish()


def style(bench: StyleBench, demo_map: DemoMap, act_map: ActMap) -> list[Cell]:
    """The probability of the style that a map draws in."""
    target = next(number for number, one in enumerate(STYLES) if one.phrase == demo_map.style)
    texts = bench.captions(None, bench.concepts)
    drawn, control = (
        drawn_with(bench, one, texts, demo_map.strength, demo_map.branch) for one in (act_map, permuted(act_map))
    )
    before, shuffled = (float(one.styles[:, target].mean()) for one in (bench.plain, control))
    found = bench.interval(drawn.styles[:, target])
    content = bench.content(drawn.features, target)
    measure = f"probability of the style '{demo_map.style}'"
    return [demo_map.name, measure, demo_map.strength, len(drawn.images), found, before, shuffled, content]


def removal(bench: StyleBench, demo_map: DemoMap, act_map: ActMap) -> list[Cell]:
    """The share of pictures that still show what a map removes."""
    case = Removal.of(demo_map.thing, bench, MAX_ASKING)
    real = torch.stack([bench.judge.ask(images)[1] for images in bench.pictures.images])

    def drawn(texts: list[str], one: ActMap | None) -> Judged:
        return bench.draw(texts) if one is None else drawn_with(bench, one, texts, demo_map.strength, demo_map.branch)

    before, after, control = (case.shown(drawn(case.asking, one), real) for one in (None, act_map, permuted(act_map)))
    spared = kept(drawn(case.others, act_map).features, drawn(case.others, None).features)
    measure = f"share of pictures that still show a {demo_map.thing}"
    compared = [bench.interval(after), float(before.mean()), float(control.mean()), float(spared.mean())]
    return [demo_map.name, measure, demo_map.strength, len(after), *compared]


def from_pictures(bench: StyleBench, demo_map: DemoMap, act_map: ActMap) -> list[Cell]:
    """The distance of what a map draws to real emoji in its style, of the unsteered distance."""
    process: Callable[[Image.Image], Image.Image] = PICTURE_STYLES[demo_map.picture_set]
    emoji = bench.pictures.images[SOURCE][list(bench.concepts)]
    wanted = as_tensor([process(Image.fromarray(one.permute(1, 2, 0).numpy())) for one in emoji])
    texts = bench.captions(None, bench.concepts)
    plain = bench.plain.images
    drawn, control = (
        drawn_with(bench, one, texts, demo_map.strength, demo_map.branch).images for one in (act_map, permuted(act_map))
    )
    order = np.arange(len(bench.concepts))

    # Pictures are drawn seed after seed.
    real, bare, *moved = (statistics(images) for images in (wanted, plain, drawn, control))

    def share(chosen: np.ndarray, which: int = 0) -> float:
        def of(values: Tensor) -> Tensor:
            return values.view(bench.seeds, len(order), -1)[:, chosen].flatten(0, 1)

        asked = real[chosen].repeat(bench.seeds, 1)
        return distance_between(of(moved[which]), asked) / distance_between(of(bare), asked)

    found: Estimate = interval(order, share)
    measure = "distance to the pictures, of the unsteered distance"
    compared = [found, 1.0, share(order, 1), edges_kept(drawn, plain)]
    return [demo_map.name, measure, demo_map.strength, len(drawn), *compared]


if __name__ == "__main__":
    raise SystemExit(main())
