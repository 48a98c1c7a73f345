"""Style control on the demo model: maps against prompting, slider LoRAs and random maps, on held-out concepts."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Generator, Mapping, Sequence
from itertools import permutations
from statistics import fmean
from typing import NamedTuple

import numpy as np
import torch

from act_core import ActMap, fit
from act_core.fitting import fit_pictures
from act_core.models.picture_loss import PictureModel
from tools.results import Cell, Column, Estimate
from tools.train_demo_model.emoji import STYLES

from .lib.controls import all_controls, exchanged
from .lib.evidence import CLEARS_COLUMNS, Cleared, cleared
from .lib.intervals import interval
from .lib.judge import load_pictures
from .lib.learned_styles import content_kept, drawn_with, examples
from .lib.pictures import FIT_BATCH, Judged, StyleBench, draw, style_pair
from .lib.report import Report, at_least, parse
from .lib.slider import Slider
from .lib.timing import processor_time

PAIRS = tuple(permutations(range(len(STYLES)), 2))
PROMPTS, PICTURES = 128, 32
STRENGTHS = (0.5, 1.0, 1.5, 2.0)
# A slider that is trained for seconds needs a higher one.
SLIDER_STRENGTHS = (0.5, 1.0, 2.0, 4.0, 8.0)
RATES = (1e-3, 3e-3, 1e-2)
TIMES = (1, 10)
STEPS = 6
FROM_PROMPTS, FROM_PICTURES = "map from prompts", "map from pictures"
METHOD_COLUMNS = (
    Column("styles"),
    Column("method"),
    Column("fit or training", "s", ".1f"),
    Column("gradient steps"),
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


class Outcome(NamedTuple):
    """What a method drew.

    Attributes:
        style: probability of the target style.
        content: kept of the unsteered pictures.
        cleared: how the style compares with that of controls; None without any.
    """

    style: Estimate
    content: float
    cleared: Cleared | None

    @classmethod
    def of(
        cls,
        bench: StyleBench,
        drawn: Judged,
        source: int,
        target: int,
        controls: Mapping[str, np.ndarray] | None = None,
    ) -> Outcome:
        scores = drawn.styles[:, target].double().numpy()
        content = float(content_kept(drawn, bench.prompted(source)).mean())
        return cls(interval(scores), content, cleared(scores, controls) if controls else None)

    @property
    def cells(self) -> list[Cell]:
        return [self.style, self.content, *(self.cleared.cells if self.cleared else ("", ""))]


class Method(NamedTuple):
    """A way to reach a style.

    Attributes:
        name: of the method.
        seconds: of processor time that it took to fit or train.
        steps: of a training; "" for a fit.
        draw: draws texts at a strength.
        strengths: to choose from.
        maps: the map, and the controls of it by name; empty for other methods.
    """

    name: str
    seconds: float
    steps: Cell
    draw: Draw
    strengths: Sequence[float]
    maps: tuple[ActMap, dict[str, ActMap]] | None = None


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.style_control", description=__doc__)
    parser.add_argument("--concepts", type=int, default=8, help="held-out concepts to draw (%(default)s)")
    parser.add_argument("--development", type=int, default=5, help="concepts to choose strengths on (%(default)s)")
    parser.add_argument("--pairs", type=int, default=len(PAIRS), help="pairs of styles, spread over all (%(default)s)")
    args = parse(parser, arguments)

    report = Report("style_control", "Style control, against other ways to it", args, "diffusers", "peft")
    pictures = load_pictures()
    bench = StyleBench(args.concepts, 1, pictures, steps=STEPS)
    development = StyleBench(args.development, 1, pictures, last=True, steps=STEPS)
    report.text(bench.describe_judge())
    report.text(
        f"{len(bench.concepts)} held-out concepts, one seed, {STEPS} denoising steps, guidance 3. Maps of {PROMPTS} + "
        f"{PROMPTS} prompts, and of {PICTURES} pictures of the target style at five noise levels by transport. The "
        "slider LoRA has rank 8, on the attention of the diffusion model and the text encoder; it learns, for source "
        "prompts, the difference of the model's own predictions for target and source prompts. It is trained on the "
        "same prompts as the map, for the processor time of the fit and for ten times that, at least for one step; the "
        "pictures that it is trained on are drawn outside this time. As LoRAs do, it acts on both branches of "
        f"guidance, the maps on the positive one. Strengths, of {STRENGTHS} for maps and {SLIDER_STRENGTHS} for the "
        f"LoRA, and its learning rate, of {RATES}, are chosen for each pair and time on "
        f"{len(development.concepts)} other concepts, by the probability of the target style."
    )
    report.text(
        "Target style: probability by a judge that was not trained on these concepts. Content: 1 if a picture shows "
        "what the unsteered one does, 0 if another concept. Controls: 10 random maps of the same size and one of "
        "shuffled sides, at the same strength. Intervals: 95%, bootstrap over concepts. Way back: prompts of the "
        "target style, steered with the same map at -1, or with its exact inverse."
    )
    compare(report, bench, development, PAIRS[:: max(1, len(PAIRS) // args.pairs)][: args.pairs])
    return report.finish()


def compare(report: Report, bench: StyleBench, development: StyleBench, pairs: Sequence[tuple[int, int]]) -> None:
    """All methods on all pairs."""
    curves: list[list[Cell]] = []
    found: dict[str, list[Outcome]] = {}

    def rows() -> Generator[list[Cell], None, None]:
        for source, target in pairs:
            for name, style in (("unsteered", source), ("prompted", target)):
                outcome = Outcome.of(bench, bench.prompted(style), source, target)
                found.setdefault(name, []).append(outcome)
                yield [style_pair(source, target), name, 0.0, "", 0.0, *outcome.cells]
            for method, strength in methods(bench, development, source, target):
                drawn = method.draw(bench, bench.captions(source, bench.concepts), strength)
                outcome = Outcome.of(bench, drawn, source, target, controlled(bench, method, strength, source, target))
                found.setdefault(method.name, []).append(outcome)
                if method.maps is not None:
                    curves.append(curve(bench, method, source, target, {strength: drawn}))
                yield [
                    style_pair(source, target),
                    method.name,
                    method.seconds,
                    method.steps,
                    strength,
                    *outcome.cells,
                ]

    report.table("methods", "Methods", METHOD_COLUMNS, rows())
    report.table("curves", "Strength curves and the way back", CURVE_COLUMNS, curves)
    report.table("means", "Means over pairs", MEAN_COLUMNS, means(found))
    style = {name: np.array([one.style.value for one in outcomes]) for name, outcomes in found.items()}
    for times in TIMES:
        column = Column(
            f"target style, {FROM_PROMPTS} less {slider_name(times)}, mean over pairs", format="+.2f", spread="interval"
        )
        ahead = interval(style[FROM_PROMPTS] - style[slider_name(times)])
        report.figure(f"slider_{times}", column, ahead, at_least(0, why="level or ahead"))
    column = Column(f"target style, {FROM_PROMPTS} / prompted, mean over pairs", format=".2f")
    report.figure("prompted", column, style[FROM_PROMPTS].mean() / style["prompted"].mean(), at_least(0.9))


def methods(
    bench: StyleBench, development: StyleBench, source: int, target: int
) -> Generator[tuple[Method, float], None, None]:
    """Maps and sliders from one style to another, each with its best strength on the development concepts."""
    sides = bench.prompts(source, target, PROMPTS)
    act_map, seconds = processor_time(lambda: fit(bench.model, *sides, batch_size=FIT_BATCH))
    mixed = fit(bench.model, *exchanged(*sides), batch_size=FIT_BATCH)
    yield best([of_map(FROM_PROMPTS, seconds, act_map, mixed)], development, source, target)
    drawing = PictureModel(bench.model)
    shown = examples(bench, bench.pictures.images[target], PICTURES, named=source)
    found, spent = processor_time(lambda: fit_pictures(drawing, shown))
    mixed = fit_pictures(drawing, *exchanged(shown, drawing.drawn(shown, seed=0)))
    yield best([of_map(FROM_PICTURES, spent, found, mixed)], development, source, target)
    for times in TIMES:
        sliders = [Slider(*sides, rate) for rate in RATES]
        for slider in sliders:
            slider.train(times * seconds)
        yield best([of_slider(slider_name(times), slider) for slider in sliders], development, source, target)


def of_map(name: str, seconds: float, act_map: ActMap, mixed: ActMap) -> Method:
    """A map as a method."""

    def drawn(bench: StyleBench, texts: Sequence[str], strength: float) -> Judged:
        return drawn_with(bench, act_map, texts, strength)

    return Method(name, seconds, "", drawn, STRENGTHS, (act_map, all_controls(act_map, mixed)))


def of_slider(name: str, slider: Slider) -> Method:
    """A slider as a method, as it is trained now."""

    def drawn(bench: StyleBench, texts: Sequence[str], strength: float) -> Judged:
        with slider.at(strength) as model:
            images = draw(model, texts, steps=STEPS)
        return Judged(images, *bench.judge.ask(images))

    return Method(name, slider.seconds, slider.steps, drawn, SLIDER_STRENGTHS)


def slider_name(times: int) -> str:
    return f"slider LoRA, {times} x the time"


def best(candidates: Sequence[Method], development: StyleBench, source: int, target: int) -> tuple[Method, float]:
    """The method and the strength that come closest to the target style on the development concepts."""
    texts = development.captions(source, development.concepts)

    def style(candidate: tuple[Method, float]) -> float:
        method, strength = candidate
        return float(method.draw(development, texts, strength).styles[:, target].mean())

    return max(((method, strength) for method in candidates for strength in method.strengths), key=style)


def controlled(bench: StyleBench, method: Method, strength: float, source: int, target: int) -> dict[str, np.ndarray]:
    """The probability of the target style with each control of a map; none of other methods."""
    texts = bench.captions(source, bench.concepts)
    _, controls = method.maps or (None, {})
    return {
        name: drawn_with(bench, control, texts, strength).styles[:, target].double().numpy()
        for name, control in controls.items()
    }


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


def means(found: dict[str, list[Outcome]]) -> Generator[list[Cell], None, None]:
    """Rows of `MEAN_COLUMNS`."""
    for name, outcomes in found.items():
        verdicts = [one.cleared.all for one in outcomes if one.cleared is not None]
        count = f"{sum(verdicts)} of {len(verdicts)}" if verdicts else ""
        yield [name, fmean(one.style.value for one in outcomes), fmean(one.content for one in outcomes), count]


if __name__ == "__main__":
    torch.set_num_threads(1)
    raise SystemExit(main())
