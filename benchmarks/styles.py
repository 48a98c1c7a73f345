"""Whether steering turns one style of the demo model into another, and keeps what the picture shows."""

from __future__ import annotations

import argparse
import random
import re
import time
from collections.abc import Iterable, Sequence
from itertools import permutations
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from PIL.Image import fromarray
from scipy import stats
from torch import Tensor

from act_core import ActMap, fit
from act_core.models.diffusers import Branch, DiffusersModel
from act_core.plots import grid
from act_core.settings import Support
from tools.train_demo_model.captions import caption
from tools.train_demo_model.emoji import STYLES, Emoji

from .common import ROOT, Check, Ratio, alternate, print_table, print_title, report
from .demo_model import BATCH, GUIDANCE
from .judge import TOOL, Judge, as_tensor, emoji, judge_of, studied, through_autoencoder
from .per_step import PerStep
from .rerun import fit_by_rerunning

_COMPONENTS = ("both", "model", "text")
# Pairs that the settings are chosen on: easy, hard, and both ways.
DEV_PAIRS = ((0, 4), (4, 1), (3, 2), (1, 0))
RESAMPLES = 1000
FIT_BATCH = 64
# What is removed: words in the names of many emoji, which look alike.
WORDS = ("face", "heart", "button")
NEAREST = 5
SHOWN = 4


class Setting(NamedTuple):
    """What a map is fitted with and how it is used."""

    sites: str = "auto"
    components: str = "both"
    estimator: str = "linear"
    order: str = "causal"
    moved: str = "source"
    prompts: int = 128
    branch: Branch = "positive"
    steps: int = 1

    @property
    def changed(self) -> str:
        """In words, what differs from the default."""
        changes = (
            f"{field} {value}" if field in ("moved", "prompts", "branch", "steps") else value
            for field, value in self._asdict().items()
            if value != self._field_defaults[field]
        )
        return ", ".join(changes) or "default"


class Drawn(NamedTuple):
    """Pictures ``[seeds x prompts, ...]``, and what the judge says: probabilities of the styles, and features."""

    images: Tensor
    told: Tensor
    features: Tensor


class Bench:
    """The model, the judge, and the pictures that were drawn already."""

    def __init__(self, concepts: Sequence[int], pictures: Emoji, seeds: int) -> None:
        self.pictures = pictures
        self.concepts = concepts
        self.seeds = seeds
        self.judge: Judge = judge_of(TOOL / "work" / "judge.pt", pictures)
        pipeline = DiffusersModel.from_pretrained(ROOT / "demo_model").pipeline
        self.models = {components: PerStep(pipeline, components=components) for components in _COMPONENTS}
        self.model = self.models["both"]
        # Concepts that nothing is judged on: maps are fitted on these.
        self.own = [c for c in range(len(pictures.names)) if studied(c) and pictures.seen[:, c].all()]
        self._prompted: dict[int, Drawn] = {}

    def sides(self, a: int, b: int, prompts: int) -> tuple[list[str], list[str]]:
        """The same concepts in either style."""
        chosen = random.Random(0).sample(self.own, prompts)
        return self.captions(a, chosen), self.captions(b, chosen)

    def captions(self, style: int, concepts: Iterable[int]) -> list[str]:
        return [caption(self.pictures.names[concept], (), style) for concept in concepts]

    def fit(self, a: int, b: int, setting: Setting) -> dict[int, ActMap]:
        """The map from style `a` to style `b`, by the number of the step: only the first one, unless told otherwise."""
        values: dict[str, Any] = setting._asdict()
        settings = {name: values[name] for name in ("sites", "estimator", "order", "moved", "steps")}
        sides = self.sides(a, b, setting.prompts)
        return self.models[setting.components].fit_each(*sides, batch_size=FIT_BATCH, **settings)

    def draw(self, texts: Sequence[str]) -> Drawn:
        """Every prompt with every seed."""
        images: list[Any] = []
        for seed in range(self.seeds):
            for at in range(0, len(texts), BATCH):
                images += self.model.generate(texts[at : at + BATCH], guidance=GUIDANCE, seed=1000 * seed + at)
        tensor = as_tensor(images)
        return Drawn(tensor, *self.judge.ask(tensor))

    def prompted(self, style: int) -> Drawn:
        """The concepts in a style, drawn once."""
        if style not in self._prompted:
            self._prompted[style] = self.draw(self.captions(style, self.concepts))
        return self._prompted[style]

    def real(self, style: int) -> float:
        """What the judge says of the real emoji of the concepts, encoded and decoded as drawn ones are."""
        told, _ = self.judge.ask(through_autoencoder(self.pictures.images[style, list(self.concepts)]))
        return float(told[:, style].mean())

    def steered(
        self, maps: dict[int, ActMap], texts: Sequence[str], strength: float, branch: Branch = "positive"
    ) -> Drawn:
        """As `draw`, with the map of a step, or with those of several."""
        with self.model.steer_each(maps, strength, branch):
            return self.draw(texts)

    def content(self, features: Tensor, b: int) -> Tensor:
        """How much of the content is kept, for each picture: 1 as in the prompted picture, 0 as in a random one."""
        return kept(features, self.prompted(b).features)


def kept(features: Tensor, wanted: Tensor) -> Tensor:
    """How alike each picture is to the wanted one: 1 for the same, 0 for as alike as to any of the others."""
    alike = (features * wanted).sum(1)
    others = (features @ wanted.T).mean()
    return (alike - others) / (1 - others)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.styles", description=__doc__)
    parser.add_argument("--dev", action="store_true", help="the table of what was tried, on other concepts")
    parser.add_argument("--concepts", type=int, help="how many to draw (32; with --dev 16)")
    parser.add_argument("--seeds", type=int, help="pictures of each (3; with --dev 1)")
    parser.add_argument("--sheets", type=Path, help="folder for styles.jpg and removal.jpg, pictures of what was drawn")
    args = parser.parse_args(arguments)
    pictures = emoji()
    asked = [c for c in range(len(pictures.names)) if not studied(c) and pictures.seen[:, c].all()]
    random.Random(1).shuffle(asked)
    if args.dev:
        count = args.concepts or 16
        return development(Bench(asked[-count:], pictures, args.seeds or 1))
    count = args.concepts or 32
    bench = Bench(asked[:count], pictures, args.seeds or 3)
    print_title("Steering styles, default settings", "diffusers")
    return report([*all_pairs(bench, args.sheets), *removal(bench, args.sheets), *fit_time(bench)])


def all_pairs(bench: Bench, sheets: Path | None) -> list[Check]:
    """All ordered pairs with the default settings."""
    print(
        f"Maps of 128 + 128 prompts; {len(bench.concepts)} other concepts x {bench.seeds} seeds. Probability of the "
        "target style, by a judge that has not seen these concepts; content from 0 (a random concept) to 1 (the "
        "picture that the same noise gives when the target style is prompted). 'Real' is the yardstick: the "
        "probability for real emoji of that style and these concepts, encoded and decoded as drawn ones are."
    )
    rows: list[tuple[object, ...]] = []
    shown: list[list[Tensor]] = []
    relative: list[float] = []
    absolute: list[float] = []
    contents: list[float] = []
    for a, b in permutations(range(len(STYLES)), 2):
        start = time.perf_counter()
        maps = bench.fit(a, b, Setting())
        seconds = time.perf_counter() - start
        steered = bench.steered(maps, bench.captions(a, bench.concepts), 1.0)
        wanted, before = (float(bench.prompted(style).told[:, b].mean()) for style in (b, a))
        low, high = _interval(steered.told[:, b], bench)
        absolute.append(float(steered.told[:, b].mean()))
        relative.append(absolute[-1] / wanted)
        contents.append(float(bench.content(steered.features, b).mean()))
        rows.append(
            (
                f"{STYLES[a].phrase} to {STYLES[b].phrase}",
                f"{before:.2f}",
                f"{absolute[-1]:.2f} [{low:.2f}, {high:.2f}]",
                f"{wanted:.2f}",
                f"{bench.real(b):.2f}",
                f"{relative[-1]:.2f}",
                f"{contents[-1]:.2f}",
                f"{seconds:.1f}",
            )
        )
        three = (bench.prompted(a), steered, bench.prompted(b))
        shown.append([drawn.images[n] for n in range(SHOWN) for drawn in three])
    print_table(("style", "unsteered", "strength 1", "prompted", "real", "of prompted", "content kept", "fit, s"), rows)
    if sheets:
        titles = ["unsteered", "steered", "prompted"] * SHOWN
        _save_sheet(sheets / "styles.jpg", shown, [str(row[0]) for row in rows], titles)
    middle, content = float(np.median(relative)), float(np.median(contents))
    many = sum(value >= 0.85 for value in absolute)
    worst = min(relative)
    within = sum(bench.real(b) >= 0.85 for _, b in permutations(range(len(STYLES)), 2))
    return [
        Check("of prompting, median over pairs", f"{middle:.2f}", ">= 0.9", middle >= 0.9),
        Check("pairs of at least 0.85", f"{many} (real emoji: {within})", ">= 12", many >= 12),
        Check("of prompting, worst pair", f"{worst:.2f}", ">= 0.5", worst >= 0.5),
        Check("content kept, median over pairs", f"{content:.2f}", ">= 0.75", content >= 0.75),
    ]


def removal(bench: Bench, sheets: Path | None) -> list[Check]:
    """Prompts that ask for something, steered to where prompts lie that do not."""
    print(
        "\n### Removal\n\nSource: prompts whose name has the word, in any style; target: prompts of other names. "
        f"A picture shows it when most of the {NEAREST} nearest real emoji of its style, by the judge's features, have "
        "the word in their names. In the last column prompts that do not ask for it: 1 as unsteered, 0 a random one."
    )
    real = torch.stack([bench.judge.ask(images)[1] for images in bench.pictures.images])
    rows: list[tuple[object, ...]] = []
    shown: list[list[Tensor]] = []
    ratios: dict[str, float] = {}
    others = bench.draw(bench.captions(0, bench.concepts)).features
    for word in WORDS:
        has = torch.tensor([bool(re.search(rf"\b{word}s?\b", name)) for name in bench.pictures.names])
        sides = [[c for c in bench.own if bool(has[c]) == side] for side in (True, False)]
        asking = [c for c in range(len(has)) if has[c] and not studied(c)][: len(bench.concepts)]
        styles = [number % len(STYLES) for number in range(len(asking))]
        texts = [bench.captions(style, [c])[0] for style, c in zip(styles, asking, strict=True)]

        def shows(drawn: Drawn, styles: list[int] = styles, has: Tensor = has) -> Tensor:
            alike = torch.einsum("nf,ncf->nc", drawn.features, real[styles * bench.seeds])
            return (has[alike.topk(NEAREST).indices].float().mean(1) > 0.5).float()

        unsteered = bench.draw(texts)
        before = shows(unsteered)
        for support in get_args(Support):
            chance = random.Random(0)
            source, target = (
                [bench.captions(chance.randrange(len(STYLES)), [chance.choice(side)])[0] for _ in range(128)]
                for side in sides
            )
            maps = {0: fit(bench.model, source, target, support=support, batch_size=FIT_BATCH)}
            drawn = [bench.steered(maps, texts, strength) for strength in (0.5, 1.0)]
            shares = [before, *map(shows, drawn)]
            spared = kept(bench.steered(maps, bench.captions(0, bench.concepts), 1.0).features, others).mean()
            told = [f"{values.mean():.0%} {_percents(_interval(values, bench))}" for values in shares]
            rows.append((word, len(texts), support, *told, f"{spared:.2f}"))
            ratios[f"{word}, {support}"] = float(shares[-1].mean() / before.mean().clamp_min(1e-9))
            shown.append([images.images[n] for n in range(2 * SHOWN) for images in (unsteered, drawn[-1])])
    print_table(("word", "prompts", "support", "unsteered", "strength 0.5", "strength 1", "others kept"), rows)
    if sheets:
        titles = ["unsteered", "steered"] * 2 * SHOWN
        _save_sheet(sheets / "removal.jpg", shown, [f"{word}, {support}" for word, _, support, *_ in rows], titles)
    best = min(ratios, key=ratios.__getitem__)
    return [Check(f"share left by removal ({best})", f"{ratios[best]:.2f}", "< 1/3", ratios[best] < 1 / 3)]


def fit_time(bench: Bench) -> list[Check]:
    """The fit of all sites, and the same map by a pass for each site."""
    maps: dict[str, ActMap] = {}
    sides = bench.sides(0, 4, 128)

    def lockstep() -> None:
        maps["lockstep"] = fit(bench.model, *sides, sites="all", batch_size=FIT_BATCH)

    def rerunning() -> None:
        maps["re-running"] = fit_by_rerunning(bench.model, *sides, "all", batch_size=FIT_BATCH)

    times = alternate({"lockstep": lockstep, "re-running": rerunning}, 3)
    sites, seconds = len(maps["lockstep"]), median(times["lockstep"])
    print(f"\n### Fit of all {sites} sites, 128 + 128 prompts")
    print_table(("fit", "median s", "turns"), [(name, f"{median(t):.2f}", len(t)) for name, t in times.items()])
    ratio, goal = Ratio.of(times["re-running"], times["lockstep"]), 0.4 * sites
    difference = max(maps["lockstep"].difference(maps["re-running"]).values())
    return [
        Check("fit of all sites", f"{seconds:.2f} s", "< 3 s", seconds < 3),
        Check("times as fast as re-running", str(ratio), f">= {goal:g} (0.4 x sites)", ratio.value >= goal),
        Check("largest relative difference of a coefficient", f"{difference:.1e}", "<= 1e-6", difference <= 1e-6),
    ]


def development(bench: Bench) -> int:
    """What was tried to choose the defaults."""
    print_title("Steering styles, what was tried", "diffusers")
    pairs = "; ".join(f"{STYLES[a].phrase} to {STYLES[b].phrase}" for a, b in DEV_PAIRS)
    print(f"{len(bench.concepts)} concepts x {bench.seeds} seeds, means over the pairs {pairs}.")
    print_table(
        ("setting", "sites", "probability at 0.5", "at 1", "at 1.5", "content at 0.5", "at 1", "at 1.5", "fit, s"),
        (_tried(bench, setting) for setting in _settings()),
    )
    return 0


def _settings() -> Iterable[Setting]:
    for sites in ("norms", "attention", "mlp", "blocks", "attention,mlp", "all"):
        for components in _COMPONENTS:
            yield Setting(sites, components)
    yield Setting("output", "text")
    yield Setting("output,attention")
    yield Setting("output,attention,mlp")
    changed: tuple[dict[str, Any], ...] = (
        {"estimator": "mean"},
        {"estimator": "gaussian"},
        {"order": "simultaneous"},
        {"moved": "both"},
        {"branch": "both"},
        {"branch": "negative"},
        *({"prompts": count} for count in (8, 32, 512)),
        {"steps": 4},
    )
    for changes in changed:
        yield Setting(**changes)


def _tried(bench: Bench, setting: Setting) -> tuple[object, ...]:
    strengths = (0.5, 1.0, 1.5)
    probability: list[list[float]] = [[] for _ in strengths]
    content: list[list[float]] = [[] for _ in strengths]
    seconds = sites = 0.0
    for a, b in DEV_PAIRS:
        start = time.perf_counter()
        maps = bench.fit(a, b, setting)
        seconds += (time.perf_counter() - start) / len(DEV_PAIRS)
        sites = len(maps[0])
        for number, strength in enumerate(strengths):
            drawn = bench.steered(maps, bench.captions(a, bench.concepts), strength, setting.branch)
            probability[number].append(float(drawn.told[:, b].mean()))
            content[number].append(float(bench.content(drawn.features, b).mean()))
    means = [f"{np.mean(values):.2f}" for values in (*probability, *content)]
    return setting.changed, int(sites), *means, f"{seconds:.1f}"


def _percents(ends: tuple[float, float]) -> str:
    return "[{:.0%}, {:.0%}]".format(*ends)


def _save_sheet(path: Path, rows: Sequence[Sequence[Tensor]], names: Sequence[str], titles: Sequence[str]) -> None:
    images = [[fromarray(image.permute(1, 2, 0).numpy()) for image in row] for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    grid(images, names, titles).save(path, quality=85, optimize=True)


def _interval(values: Tensor, bench: Bench) -> tuple[float, float]:
    """95% bootstrap interval of a mean over concepts, whose seeds belong together."""
    by_concept = values.view(bench.seeds, -1).mean(0).numpy()
    result = stats.bootstrap((by_concept,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=0)
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


if __name__ == "__main__":
    raise SystemExit(main())
