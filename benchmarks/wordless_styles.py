"""Styles that the demo model has no word for, learned from pictures."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Generator
from pathlib import Path
from statistics import median

import torch
from PIL.Image import fromarray
from torch import Tensor
from torch.nn import functional

from act_core.plots import grid
from act_core.settings import Branch
from tools.results import Cell, Column

from .lib.composition import distance, edges_kept
from .lib.controls import permuted
from .lib.judge import load_pictures
from .lib.learned_styles import drawn_with, examples, refined
from .lib.pictures import PictureSetting, StyleBench
from .lib.report import Report, at_least, at_most, parse

PICTURES = 32
STEPS = 8
STRENGTHS = (0.25, 0.5, 0.75, 1.0, 1.25)
# The least content that a strength must keep to be chosen.
LEAST = 0.5
# Guidance triples what only one branch has, and a change of all colours belongs to both.
BRANCH: Branch = "both"
# What a plain prompt draws.
SOURCE = 0
SHOWN = 4
COLUMNS = (
    Column("style"),
    Column("strength", format="g"),
    Column("distance, unsteered", format=".2f"),
    Column("distance, steered", format=".2f"),
    Column("distance, control", format=".2f"),
    Column("distance, processed", format=".2f"),
    Column("of unsteered", format=".2f"),
    Column("content", format=".2f"),
    Column("content, control", format=".2f"),
)
WORST = Column("distance to the target, of the unsteered one, worst style", format=".2f")
KEPT = Column("content kept, of that of a prompt-fitted map, worst style", format=".2f")


def sepia(x: Tensor) -> Tensor:
    """Brown tones."""
    mix = torch.tensor([[0.393, 0.769, 0.189], [0.349, 0.686, 0.168], [0.272, 0.534, 0.131]])
    return torch.einsum("oc,nchw->nohw", mix, x)


def blueprint(x: Tensor) -> Tensor:
    """White lines on blue."""
    grey = functional.pad(x.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    across = grey[..., 1:-1, 2:] - grey[..., 1:-1, :-2]
    down = grey[..., 2:, 1:-1] - grey[..., :-2, 1:-1]
    lines = (across.square() + down.square()).sqrt().clamp(max=1)
    return torch.tensor([0.1, 0.25, 0.6]).view(1, 3, 1, 1) * (1 - lines) + lines


def rotated(x: Tensor) -> Tensor:
    """Red in place of green, green of blue, blue of red."""
    return x.roll(1, 1)


def negative(x: Tensor) -> Tensor:
    """As on film."""
    return 1 - x


def mosaic(x: Tensor) -> Tensor:
    """Squares of four pixels."""
    return functional.interpolate(functional.avg_pool2d(x, 4), scale_factor=4)


STYLES: dict[str, Callable[[Tensor], Tensor]] = {
    "sepia": sepia,
    "blueprint": blueprint,
    "rotated colours": rotated,
    "negative": negative,
    "mosaic": mosaic,
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.wordless_styles", description=__doc__)
    parser.add_argument("--concepts", type=int, default=24, help="how many to draw (%(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="pictures of each (%(default)s)")
    parser.add_argument("--sheet", type=Path, help="save a picture of each style in this file")
    args = parse(parser, arguments, quick={"concepts": 16, "seeds": 1})

    report = Report("wordless_styles", "Styles without a word, on the demo model", args, "diffusers")
    report.text(
        f"Maps refined on {PICTURES} emoji, made into each style by image processing, with captions that name no "
        f"style; {args.concepts} held-out concepts x {args.seeds} seeds, {STEPS} denoising steps, both branches "
        "steered. Distance: between the means of colour and edge statistics of drawn pictures and of processed emoji "
        "of the same concepts, in standard deviations over pictures; *processed* are unsteered pictures that the same "
        "image processing was applied to. The strength is, on other concepts, the one with the smallest distance "
        f"among those that keep {LEAST:g} of the content. "
        "Control: the map with its coefficients shuffled over the channels. Content: correlation of blurred edges with "
        "those of the unsteered picture, on a scale from 0 (those of another concept) to 1; the judge of the other "
        "benchmarks does not know these styles, and finds no content even in processed pictures of some."
    )
    pictures = load_pictures()
    bench = StyleBench(args.concepts, args.seeds, pictures, steps=STEPS)
    choosing = StyleBench(16, 1, pictures, last=True, steps=STEPS)
    texts = bench.captions(None, bench.concepts)
    plain = bench.plain.images
    shown = [[plain[n] for n in range(SHOWN)]]

    def rows() -> Generator[list[Cell], None, None]:
        for name, process in STYLES.items():
            images = processed(bench.pictures.images[SOURCE], process)
            act_map = refined(bench, examples(bench, images, PICTURES, named=None)).act_map
            others = choosing.captions(None, choosing.concepts)
            wanted = images[choosing.concepts]
            tried = {s: drawn_with(choosing, act_map, others, s, BRANCH).images for s in STRENGTHS}
            of_use = [s for s in STRENGTHS if edges_kept(tried[s], choosing.plain.images) >= LEAST] or STRENGTHS[:1]
            strength = min(of_use, key=lambda s: distance(tried[s], wanted))
            drawn = drawn_with(bench, act_map, texts, strength, BRANCH).images
            control = drawn_with(bench, permuted(act_map), texts, strength, BRANCH).images
            # Pictures are drawn seed after seed.
            real = images[bench.concepts].repeat(args.seeds, 1, 1, 1)
            found = [distance(one, real) for one in (plain, drawn, control, processed(plain, process))]
            shown.append([drawn[n] for n in range(SHOWN)])
            yield [name, strength, *found, found[1] / found[0], *(edges_kept(one, plain) for one in (drawn, control))]

    table = report.table("styles", "Styles", COLUMNS, rows())
    if args.sheet:
        names = ["unsteered", *STYLES]
        sheet = [[fromarray(image.permute(1, 2, 0).numpy()) for image in row] for row in shown]
        grid(sheet, names, bench_names(bench)).save(args.sheet)
    fitted = median(
        edges_kept(drawn_with(bench, bench.fit(SOURCE, target, PictureSetting())[0], texts).images, plain)
        for target in range(1, len(bench.pictures.images))
    )
    report.figure("worst", WORST, max(float(row[6]) for row in table.rows if isinstance(row[6], float)), at_most(0.4))
    least = min(float(row[7]) for row in table.rows if isinstance(row[7], float))
    report.figure("kept", KEPT, least / fitted, at_least(0.75))
    return report.finish()


def bench_names(bench: StyleBench) -> list[str]:
    """Names of the concepts that are shown."""
    return [bench.pictures.names[concept] for concept in list(bench.concepts)[:SHOWN]]


def processed(images: Tensor, process: Callable[[Tensor], Tensor]) -> Tensor:
    """uint8 pictures ``[n, 3, height, width]`` in another style."""
    parts = [process(part.float() / 255).clamp(0, 1) for part in images.split(256)]
    return (255 * torch.cat(parts)).round().to(torch.uint8)


if __name__ == "__main__":
    raise SystemExit(main())
