"""Style control on the demo model: maps against prompting, slider LoRAs and random maps, on held-out concepts."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Generator, Sequence
from statistics import fmean
from typing import NamedTuple

import numpy as np
import torch

from act_core import ActMap, fit
from act_core.fitting import fit_pictures
from act_core.models.picture_loss import PictureModel
from tools.results import Cell, Column

from .lib.controls import random_controls
from .lib.evidence import CLEARS_COLUMNS, cleared
from .lib.intervals import interval
from .lib.judge import TRAININGS, load_pictures
from .lib.learned_styles import content_kept, drawn_with, examples
from .lib.pictures import FIT_BATCH, Judged, StyleBench, draw, style_pair
from .lib.report import Report, at_least, parse
from .lib.slider import RATE, Slider
from .lib.timing import processor_time

PAIRS = ((0, 4), (4, 1), (3, 2), (1, 0), (2, 3))
PROMPTS, PICTURES = 128, 32
STRENGTHS = (0.5, 1.0, 1.5)
# Those of a slider that is trained for seconds are higher.
SLIDER_STRENGTHS = (1.0, 2.0, 4.0)
TIMES = (1, 10)
STEPS = 6
FROM_PROMPTS, FROM_PICTURES = "map from prompts", "map from pictures"
METHOD_COLUMNS = (
    Column("styles"),
    Column("method"),
    Column("fit or training", "s", ".1f"),
    Column("strength", format="g"),
    Column("target style", format=".2f", spread="interval"),
    Column("content", format=".2f"),
    *CLEARS_COLUMNS,
)
CURVE_COLUMNS = (
    Column("styles"),
    Column("map"),
    Column("strength 0", format=".2f"),
    *(Column(f"strength {strength:g}", format=".2f", spread="interval") for strength in STRENGTHS),
    Column("way back: source style at 0", format=".2f"),
    Column("at -1", format=".2f", spread="interval"),
    Column("inverse map at 1", format=".2f"),
)
MEAN_COLUMNS = (
    Column("method"),
    Column("target style, mean over pairs", format=".2f"),
    Column("content, mean over pairs", format=".2f"),
    Column("pairs that clear all controls"),
)
Draw = Callable[[StyleBench, Sequence[str], float], Judged]


class Method(NamedTuple):
    """A way to reach a style.

    Attributes:
        name: of the method.
        seconds: of processor time that it took to fit or train.
        draw: draws texts at a strength.
        strengths: to choose from.
        maps: the map, and the controls of it by name; empty for other methods.
    """

    name: str
    seconds: float
    draw: Draw
    strengths: Sequence[float]
    maps: tuple[ActMap, dict[str, ActMap]] | None = None


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.style_control", description=__doc__)
    parser.add_argument("--concepts", type=int, default=8, help="held-out concepts to draw (%(default)s)")
    parser.add_argument("--development", type=int, default=5, help="concepts to choose strengths on (%(default)s)")
    parser.add_argument("--pairs", type=int, default=len(PAIRS), help="pairs of styles (%(default)s)")
    parser.add_argument("--judge", choices=TRAININGS, default="full", help="how it was trained (%(default)s)")
    args = parse(parser, arguments, quick={"judge": "short"})

    report = Report("style_control", "Style control, against other ways to it", args, "diffusers", "peft")
    pictures = load_pictures()
    bench = StyleBench(args.concepts, 1, pictures, steps=STEPS, judge=args.judge)
    development = StyleBench(args.development, 1, pictures, last=True, steps=STEPS, judge=args.judge)
    report.text(bench.describe_judge())
    report.text(
        f"{len(bench.concepts)} held-out concepts, one seed, {STEPS} denoising steps, guidance 3. Maps of {PROMPTS} + "
        f"{PROMPTS} prompts, and of {PICTURES} pictures of the target style at five noise levels by transport. The "
        "slider LoRA has rank 8, on the attention of the diffusion model and the text encoder; it learns, for source "
        "prompts, the difference of the model's own predictions for target and source prompts. It is trained for "
        "the processor time of the fit from prompts and for ten times that, at least for one step; the pictures that "
        f"it is trained on are drawn outside this time. Its learning rate is the best one of `picture_lora`, {RATE:g}. "
        f"Strengths are chosen on {len(development.concepts)} other concepts, by the probability of the target style."
    )
    report.text(
        "Target style: probability by a judge that was not trained on these concepts. Content: 1 if a picture shows "
        "what the unsteered one does, 0 if another concept. Controls: 10 random maps of the same size and one of "
        "shuffled sides, at the same strength. Intervals: 95%, bootstrap over concepts. Way back: prompts of the "
        "target style, steered with the same map at -1, or with its exact inverse."
    )
    compare(report, bench, development, PAIRS[: args.pairs])
    return report.finish()


def compare(report: Report, bench: StyleBench, development: StyleBench, pairs: Sequence[tuple[int, int]]) -> None:
    """All methods on all pairs."""
    curves: list[list[Cell]] = []
    collected: dict[str, list[tuple[float, float, str]]] = {}

    def rows() -> Generator[list[Cell], None, None]:
        for source, target in pairs:
            for row in references(bench, source, target):
                collected.setdefault(str(row[1]), []).append((_value(row[4]), _value(row[5]), ""))
                yield row
            for method in methods(bench, source, target):
                strength = best_strength(method, development, source, target)
                row, drawn = measured(bench, method, strength, source, target)
                collected.setdefault(method.name, []).append((_value(row[4]), _value(row[5]), str(row[7])))
                if method.maps is not None:
                    curves.append(curve(bench, method, source, target, {strength: drawn}))
                yield row

    report.table("methods", "Methods", METHOD_COLUMNS, rows())
    report.table("curves", "Strength curves and the way back", CURVE_COLUMNS, curves)
    report.table("means", "Means over pairs", MEAN_COLUMNS, means(collected))
    style = {name: fmean(one[0] for one in found) for name, found in collected.items()}
    for times in TIMES:
        column = Column(f"target style, {FROM_PROMPTS} less {slider_name(times)}, mean over pairs", format="+.2f")
        report.figure(f"slider_{times}", column, style[FROM_PROMPTS] - style[slider_name(times)], at_least(0))
    column = Column(f"target style, {FROM_PROMPTS} / prompted, mean over pairs", format=".2f")
    report.figure("prompted", column, style[FROM_PROMPTS] / style["prompted"], at_least(0.9))


def references(bench: StyleBench, source: int, target: int) -> Generator[list[Cell], None, None]:
    """Rows of the unsteered pictures, and of those whose prompts name the target style."""
    for name, style in (("unsteered", source), ("prompted", target)):
        drawn = bench.prompted(style)
        content = float(content_kept(drawn, bench.prompted(source)).mean())
        yield [style_pair(source, target), name, 0.0, 0.0, bench.interval(drawn.styles[:, target]), content, "", ""]


def methods(bench: StyleBench, source: int, target: int) -> Generator[Method, None, None]:
    """Maps and sliders from one style to another; a slider is trained on when the next one is asked for."""
    sides = bench.prompts(source, target, PROMPTS)
    act_map, seconds = processor_time(lambda: fit(bench.model, *sides, batch_size=FIT_BATCH))
    shuffled = [left[::2] + right[1::2] for left, right in (sides, sides[::-1])]
    mixed = fit(bench.model, shuffled[0], shuffled[1], batch_size=FIT_BATCH)
    controls = {**random_controls(act_map), "shuffled sides": mixed}
    yield of_map(FROM_PROMPTS, seconds, act_map, controls)
    drawing = PictureModel(bench.model)
    shown = examples(bench, bench.pictures.images[target], PICTURES, named=source)
    found, spent = processor_time(lambda: fit_pictures(drawing, shown))
    yield of_map(FROM_PICTURES, spent, found, random_controls(found))
    slider = Slider(*sides)
    for times in TIMES:
        slider.train(times * seconds)
        yield of_slider(slider_name(times), slider)


def of_map(name: str, seconds: float, act_map: ActMap, controls: dict[str, ActMap]) -> Method:
    """A map as a method."""

    def drawn(bench: StyleBench, texts: Sequence[str], strength: float) -> Judged:
        return drawn_with(bench, act_map, texts, strength)

    return Method(name, seconds, drawn, STRENGTHS, (act_map, controls))


def of_slider(name: str, slider: Slider) -> Method:
    """A slider as a method, as it is trained now."""

    def drawn(bench: StyleBench, texts: Sequence[str], strength: float) -> Judged:
        with slider.at(strength) as model:
            images = draw(model, texts, steps=STEPS)
        return Judged(images, *bench.judge.ask(images))

    return Method(name, slider.seconds, drawn, SLIDER_STRENGTHS)


def slider_name(times: int) -> str:
    return f"slider LoRA, {times} x the time"


def best_strength(method: Method, development: StyleBench, source: int, target: int) -> float:
    """The strength that comes closest to the target style on the development concepts."""
    texts = development.captions(source, development.concepts)
    found = {
        strength: float(method.draw(development, texts, strength).styles[:, target].mean())
        for strength in method.strengths
    }
    return max(found, key=lambda strength: found[strength])


def measured(bench: StyleBench, method: Method, strength: float, source: int, target: int) -> tuple[list[Cell], Judged]:
    """A row of `METHOD_COLUMNS`, and what was drawn for it."""
    texts = bench.captions(source, bench.concepts)
    drawn = method.draw(bench, texts, strength)
    scores = drawn.styles[:, target].double().numpy()
    content = float(content_kept(drawn, bench.prompted(source)).mean())
    controls: dict[str, np.ndarray] = {}
    if method.maps is not None:
        for name, control in method.maps[1].items():
            controls[name] = drawn_with(bench, control, texts, strength).styles[:, target].double().numpy()
    cells = cleared(scores, controls).cells if controls else ["", ""]
    return [style_pair(source, target), method.name, method.seconds, strength, interval(scores), content, *cells], drawn


def curve(bench: StyleBench, method: Method, source: int, target: int, known: dict[float, Judged]) -> list[Cell]:
    """A row of `CURVE_COLUMNS`."""
    assert method.maps is not None
    forth, back = (bench.captions(style, bench.concepts) for style in (source, target))
    drawn = [known.get(strength) or method.draw(bench, forth, strength) for strength in STRENGTHS]
    returned = method.draw(bench, back, -1.0)
    inverse = drawn_with(bench, method.maps[0].inverse(), back)
    return [
        style_pair(source, target),
        method.name,
        float(bench.prompted(source).styles[:, target].mean()),
        *(bench.interval(one.styles[:, target]) for one in drawn),
        float(bench.prompted(target).styles[:, source].mean()),
        bench.interval(returned.styles[:, source]),
        float(inverse.styles[:, source].mean()),
    ]


def means(collected: dict[str, list[tuple[float, float, str]]]) -> Generator[list[Cell], None, None]:
    """Rows of `MEAN_COLUMNS`."""
    for name, found in collected.items():
        verdicts = [verdict for _, _, verdict in found if verdict]
        count = f"{verdicts.count('yes')} of {len(verdicts)}" if verdicts else ""
        yield [name, fmean(one[0] for one in found), fmean(one[1] for one in found), count]


def _value(cell: Cell) -> float:
    return float(cell[0] if isinstance(cell, tuple) else cell)


if __name__ == "__main__":
    torch.set_num_threads(1)
    raise SystemExit(main())
