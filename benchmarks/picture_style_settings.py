"""The settings tried to choose the defaults of a fit from pictures, on concepts that `picture_styles` does not use."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median
from typing import Any

from act_core.image_files import Picture
from act_core.models.picture_loss import PictureModel
from act_core.naming import WORDS
from act_core.settings import Components, RefineSettings
from tools.results import Cell, Column
from tools.train_demo_model.emoji import STYLES

from .lib.judge import load_pictures
from .lib.learned_styles import Learned, content_kept, drawn_with, examples, refined, transported
from .lib.pictures import Judged, StyleBench, style_pair
from .lib.report import Report, parse

# Easy, hard, and in both directions, as in `style_settings`; the first is prompted without a style, too.
PAIRS = ((0, 4), (4, 1), (3, 2), (1, 0))
STRENGTHS = (0.5, 1.0)
TRANSPORT_STRENGTHS = (1.0, 2.0)
PICTURES = 32
STEPS = 8
COLUMNS = (
    Column("setting"),
    Column("sites", format="d"),
    *(Column(f"of prompting, at {strength:g}", format=".2f") for strength in STRENGTHS),
    Column("worst pair, at 1", format=".2f"),
    *(Column(f"content at {strength:g}", format=".2f") for strength in STRENGTHS),
    Column("steps", format=".0f"),
)


MOVED_COLUMNS = (
    Column("setting"),
    Column("sites", format="d"),
    *(Column(f"of prompting, at {strength:g}", format=".2f") for strength in TRANSPORT_STRENGTHS),
    Column(f"worst pair, at {TRANSPORT_STRENGTHS[-1]:g}", format=".2f"),
    *(Column(f"content at {strength:g}", format=".2f") for strength in TRANSPORT_STRENGTHS),
)

UNCAPTIONED = 12
NAMED_COLUMNS = (
    Column("captions"),
    Column("of prompting", format=".2f"),
    Column("worst style", format=".2f"),
    Column("content", format=".2f"),
)


@dataclass(frozen=True)
class Setting:
    """What is fitted, and how.

    Attributes:
        words: describes it.
        count: pictures.
        captions: ``source`` if captions name the style that is prompted, ``plain`` if they name none, else empty.
        fit: fits a map on pictures.
    """

    words: str
    count: int
    captions: str
    fit: Callable[[StyleBench, Any], Learned]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.picture_style_settings", description=__doc__)
    parser.add_argument("--concepts", type=int, default=16, help="how many to draw (%(default)s)")
    parser.add_argument("--seeds", type=int, default=1, help="pictures of each (%(default)s)")
    parser.add_argument("--first", type=int, help="only the first settings")
    args = parse(parser, arguments)

    report = Report("picture_style_settings", "Settings tried for a style from pictures", args, "diffusers")
    bench = StyleBench(args.concepts, args.seeds, load_pictures(), last=True, steps=STEPS)
    pairs = "; ".join(style_pair(source, target) for source, target in PAIRS)
    prompting = fmean(float(content_kept(bench.prompted(b), bench.prompted(a)).mean()) for a, b in PAIRS)
    report.text(
        f"{PICTURES} pictures whose captions name the source style, unless noted; {len(bench.concepts)} concepts x "
        f"{bench.seeds} seeds, {STEPS} denoising steps, medians over the pairs {pairs}. Of prompting: probability of "
        "the target style, as a share of what prompting for it gives. Content: 1 if a picture shows what the unsteered "
        f"one does, 0 if another concept; prompting for the style keeps {prompting:.2f}."
    )
    rows = (measured(bench, setting) for setting in list(refinements())[: args.first])
    report.table("settings", "Refinements", COLUMNS, rows)
    rows = (measured(bench, setting, TRANSPORT_STRENGTHS)[:-1] for setting in list(transports())[: args.first])
    report.table("transports", "Transports", MOVED_COLUMNS, rows)
    report.text(
        f"Captions: refined maps of {UNCAPTIONED} pictures, prompts without a style, medians over the other styles; "
        "prompting for them keeps "
        f"{median(content_of(bench, bench.prompted(target)) for target in range(1, len(STYLES))):.2f} of the content."
    )
    report.table("captions", "Captions", NAMED_COLUMNS, captions_tried(bench))
    return report.finish()


def captions_tried(bench: StyleBench) -> Iterator[list[Cell]]:
    """Captions that someone wrote, none, and those that the model finds."""
    model = PictureModel(bench.model)
    ways: dict[str, Callable[[int], list[Picture]]] = {
        "written": lambda target: examples(bench, bench.pictures.images[target], UNCAPTIONED, named=None),
        "empty": lambda target: _uncaptioned(bench, target),
        "the likeliest word": lambda target: [
            replace(picture, others=()) for picture in model.named(_uncaptioned(bench, target))
        ],
        f"the likeliest {WORDS} words": lambda target: model.named(_uncaptioned(bench, target)),
    }
    texts = bench.captions(None, bench.concepts)
    for words, pictures in ways.items():
        shares: list[float] = []
        contents: list[float] = []
        for target in range(1, len(STYLES)):
            drawn = drawn_with(bench, refined(bench, pictures(target)).act_map, texts)
            prompted = float(bench.prompted(target).styles[:, target].mean())
            shares.append(float(drawn.styles[:, target].mean()) / prompted)
            contents.append(content_of(bench, drawn))
        yield [words, median(shares), min(shares), median(contents)]


def _uncaptioned(bench: StyleBench, target: int) -> list[Picture]:
    return examples(bench, bench.pictures.images[target], UNCAPTIONED, named=None, captions=False)


def content_of(bench: StyleBench, drawn: Judged) -> float:
    """Content kept of pictures of prompts without a style."""
    return float(content_kept(drawn, bench.plain).mean())


def refinements() -> Iterator[Setting]:
    """One change at a time."""
    yield _refinement()
    for sites in ("norms", "attention", "all"):
        yield _refinement(sites=sites)
    yield _refinement(components="model")
    for rate in (0.02, 0.1):
        yield _refinement(rate=rate)
    for steps in (40, 160):
        yield _refinement(steps=steps)
    yield _refinement(held_back=0.2)
    for count in (4, 12, 128):
        yield _refinement(count=count)
    yield _refinement(captions="plain")
    yield _refinement(captions="", count=12)


def transports() -> Iterator[Setting]:
    """One change at a time."""
    yield _transport()
    yield _transport(levels=(0.7,))
    yield _transport(levels=(0.98, 0.9, 0.8, 0.65, 0.5, 0.35, 0.2))
    for estimator in ("mean", "gaussian"):
        yield _transport(estimator=estimator)
    yield _transport(order="simultaneous")
    yield _transport(moved="both")
    for sites in ("norms", "all"):
        yield _transport(sites=sites)
    yield _transport(count=128)
    yield _transport(captions="plain")
    yield _transport(captions="", count=12)


def _refinement(
    count: int = PICTURES, captions: str = "source", components: Components = "both", **changes: Any
) -> Setting:
    words = [*_words(count, captions, changes), *["diffusion model alone"] * (components == "model")]
    settings = RefineSettings(**changes)
    return Setting(
        ", ".join(words) or "default",
        count,
        captions,
        lambda bench, pictures: refined(bench, pictures, settings, components=components),
    )


def _transport(count: int = PICTURES, captions: str = "source", **changes: Any) -> Setting:
    words = ", ".join(_words(count, captions, changes)) or "default"
    return Setting(words, count, captions, lambda bench, pictures: transported(bench, pictures, **changes))


def _words(count: int, captions: str, changes: dict[str, Any]) -> list[str]:
    """What differs from the defaults."""
    words = [f"{name.replace('_', ' ')} {_value(value)}" for name, value in changes.items()]
    words += [f"{count} pictures"] * (count != PICTURES)
    return words + [f"{captions or 'no'} captions"] * (captions != "source")


def _value(value: object) -> str:
    return " ".join(f"{part:g}" for part in value) if isinstance(value, tuple) else str(value)


def measured(bench: StyleBench, setting: Setting, strengths: Sequence[float] = STRENGTHS) -> list[Cell]:
    """A row of the table."""
    style: list[list[float]] = [[] for _ in strengths]
    content: list[list[float]] = [[] for _ in strengths]
    fits: list[Learned] = []
    for source, target in PAIRS:
        named = source if setting.captions == "source" else None
        images = bench.pictures.images[target]
        pictures = examples(bench, images, setting.count, named=named, captions=bool(setting.captions))
        fits.append(setting.fit(bench, pictures))
        prompted = float(bench.prompted(target).styles[:, target].mean())
        for number, strength in enumerate(strengths):
            drawn = drawn_with(bench, fits[-1].act_map, bench.captions(source, bench.concepts), strength)
            style[number].append(float(drawn.styles[:, target].mean()) / prompted)
            content[number].append(float(content_kept(drawn, bench.prompted(source)).mean()))
    shares, contents = ([median(values) for values in part] for part in (style, content))
    steps = fmean(fit.steps for fit in fits)
    return [setting.words, len(fits[0].act_map), *shares, min(style[-1]), *contents, steps]


if __name__ == "__main__":
    raise SystemExit(main())
