"""How good the demo model is: styles, concepts, and seconds per picture."""

from __future__ import annotations

import argparse
import random
from collections.abc import Generator, Sequence
from functools import partial
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

from act_core.models.diffusers import DiffusersModel
from tools.results import Cell, Column
from tools.train_demo_model.autoencoder import psnr
from tools.train_demo_model.captions import caption
from tools.train_demo_model.emoji import STYLES, Emoji

from .lib.judge import Judge, is_training_concept, load_judge, load_pictures, through_autoencoder
from .lib.models import ROOT
from .lib.pictures import GUIDANCE, draw
from .lib.report import Report, at_least, below, parse
from .lib.timing import timed

TOP = 0.05
COLUMNS = (
    Column("concepts"),
    Column("pictures", format="d"),
    Column("style right", format=".1%"),
    Column("style right, real emoji", format=".1%"),
    Column("style right, real emoji, not encoded", format=".1%"),
    Column(f"concept in the top {TOP:.0%}", format=".0%"),
)
FEWER_STEPS = (4, 8, 12, 20)
STEP_COLUMNS = (
    Column("steps", format="d"),
    Column("style right, trained", format=".1%"),
    Column("style right, in other styles", format=".1%"),
    Column(f"concept in the top {TOP:.0%}, in other styles", format=".0%"),
    Column("16 pictures", "s", ".2f"),
)
STYLE_TRAINED = Column("style, trained", format=".1%")
STYLE_PAIRS = Column("style, trained in other styles", format=".1%")
STYLE_AUTOENCODER = Column("style, real emoji through the autoencoder", format=".1%")
CONCEPT_PAIRS = Column("concept, trained in other styles", format=".0%")
CONCEPT_HELD_OUT = Column("concept, held out", format=".0%")
AUTOENCODER = Column("autoencoder, held-out pictures", "dB", ".1f")
ONE_PICTURE = Column("one picture, 20 steps", "s", ".2f")
MANY_PICTURES = Column("16 pictures, 20 steps", "s", ".2f")
JUDGE_STYLES = Column("judge: style of real emoji right", format=".1%")
JUDGE_CONCEPTS = Column(f"judge: concept of real emoji in the top {TOP:.0%}", format=".0%")


class Case(NamedTuple):
    """A style and a concept, by number."""

    style: int
    concept: int


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo_model", description=__doc__)
    parser.add_argument("--concepts", type=int, default=100, help="trained concepts to draw (%(default)s)")
    parser.add_argument("--model", default=ROOT / "demo_model", help="model folder (the one in this repository)")
    args = parse(parser, arguments)

    report = Report("demo_model", "The demo model", args, "diffusers")
    pictures = load_pictures()
    judge = load_judge()
    model = DiffusersModel.from_pretrained(args.model)
    real = torch.stack([judge.ask(images)[1] for images in pictures.images])
    describe_judge(report, judge, pictures, real)
    cases = chosen_cases(pictures, args.concepts)

    def rows() -> Generator[list[Cell], None, None]:
        for name, drawn in cases.items():
            images = draw(model, [caption(pictures.names[concept], (), style) for style, concept in drawn])
            originals = torch.stack([pictures.images[case] for case in drawn])
            shares = [style_right(judge, drawn, shown) for shown in (images, through_autoencoder(originals), originals)]
            yield [name, len(drawn), *shares, share_found(judge, real, drawn, images)]

    table = report.table("styles_and_concepts", "Styles and concepts", COLUMNS, rows())
    trained, pairs, held_out = (row[2:] for row in table.rows)
    report.figure("style_trained", STYLE_TRAINED, trained[0], at_least(0.94, ".0%"))
    report.figure("style_autoencoder", STYLE_AUTOENCODER, trained[1], at_least(0.95, ".0%"))
    report.figure("style_pairs", STYLE_PAIRS, pairs[0], at_least(0.92, ".0%"))
    report.figure("concept_pairs", CONCEPT_PAIRS, pairs[3], at_least(0.92, ".0%"))
    report.figure("concept_held_out", CONCEPT_HELD_OUT, held_out[3], at_least(0.45, ".0%"))
    unseen = pictures.images[:, pictures.held_out].flatten(0, 1)
    report.figure("autoencoder", AUTOENCODER, psnr(model.pipeline.vae, unseen), at_least(29, ".0f", unit="dB"))
    texts = [caption(pictures.names[concept], (), style) for style, concept in cases["trained"][:16]]
    model.generate(texts[:1], guidance=GUIDANCE)
    one = median(timed(lambda: model.generate(texts[:1], guidance=GUIDANCE)) for _ in range(5))
    many = median(timed(lambda: model.generate(texts, guidance=GUIDANCE)) for _ in range(3))
    report.figure("one_picture", ONE_PICTURE, one, below(1, unit="s"))
    report.figure("many_pictures", MANY_PICTURES, many, below(4, unit="s"))
    fewer_steps(report, model, judge, pictures, real, cases)
    return report.finish()


def fewer_steps(
    report: Report, model: DiffusersModel, judge: Judge, pictures: Emoji, real: Tensor, cases: dict[str, list[Case]]
) -> None:
    """Whether fewer denoising steps draw as well."""

    texts = {
        name: [caption(pictures.names[concept], (), style) for style, concept in cases[name]]
        for name in ("trained", "trained, in other styles")
    }

    def rows() -> Generator[list[Cell], None, None]:
        for steps in FEWER_STEPS:
            drawn = {name: draw(model, own, steps=steps) for name, own in texts.items()}
            right = [style_right(judge, cases[name], images) for name, images in drawn.items()]
            pairs = "trained, in other styles"
            found = share_found(judge, real, cases[pairs], drawn[pairs])
            run = partial(model.generate, texts["trained"][:16], guidance=GUIDANCE, steps=steps)
            yield [steps, *right, found, median(timed(run) for _ in range(3))]

    report.table("steps", "Fewer steps", STEP_COLUMNS, rows())


def describe_judge(report: Report, judge: Judge, pictures: Emoji, real: Tensor) -> None:
    """How good the judge itself is, on real emoji of held-out concepts."""
    others = [concept for concept in range(len(pictures.names)) if not is_training_concept(concept)]
    labels = torch.arange(len(STYLES)).repeat_interleave(len(others))
    styles, _ = judge.ask(pictures.images[:, others].flatten(0, 1))
    right = float((styles.argmax(1) == labels).float().mean())
    count = len(STYLES)
    next_style = [Case((style + 1) % count, concept) for style in range(count) for concept in others]
    found = share_found(judge, real, next_style, pictures.images[:, others].flatten(0, 1))
    report.figure("judge_styles", JUDGE_STYLES, right)
    report.figure("judge_concepts", JUDGE_CONCEPTS, found)
    report.text(
        f"The judge was trained on the real emoji of {len(pictures.names) - len(others)} concepts and judges only the "
        f"{len(others)} others. It recognises the style of {right:.1%} of their real emoji, and for {found:.0%} of "
        f"them the emoji of that concept in another style is among the {TOP:.0%} most similar. Real emoji are "
        "the yardstick: the same concepts and styles, encoded and decoded as generated pictures are."
    )


def chosen_cases(pictures: Emoji, concepts: int) -> dict[str, list[Case]]:
    """The pictures to draw: trained concepts in all styles, held-out pairs of style and concept, held-out concepts."""
    styles = range(len(STYLES))
    others = [concept for concept in range(len(pictures.names)) if not is_training_concept(concept)]
    complete = [concept for concept in others if pictures.seen[:, concept].all()]
    sample = random.Random(0).sample(complete, concepts)
    return {
        "trained": [Case(style, concept) for concept in sample for style in styles],
        "trained, in other styles": [Case(s, c) for s, c in pictures.held_out_pairs if c in others],
        "held out": [Case(style, concept) for concept in pictures.held_out if concept in others for style in styles],
    }


def style_right(judge: Judge, cases: Sequence[Case], images: Tensor) -> float:
    """Share of pictures whose style the judge recognises."""
    styles = torch.tensor([case.style for case in cases])
    return float((judge.ask(images)[0].argmax(1) == styles).float().mean())


def share_found(judge: Judge, real: Tensor, cases: Sequence[Case], images: Tensor) -> float:
    """Share of pictures for which the real emoji of that style and concept is among the 5% most similar.

    Args:
        judge: its features are compared.
        real: features of all emoji, ``[styles, concepts, features]``.
        cases, images: style and concept of each picture, and the pictures.
    """
    styles, concepts = torch.tensor(cases).T
    _, features = judge.ask(images)
    similarity = torch.stack([real[style] @ own for style, own in zip(styles, features, strict=True)])
    ranks = (similarity > similarity.gather(1, concepts[:, None])).sum(1)
    return float((ranks < TOP * real.shape[1]).float().mean())


if __name__ == "__main__":
    raise SystemExit(main())
