"""Whether steering turns one style of the demo model into another, and keeps what the picture shows."""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterable, Sequence
from itertools import permutations
from typing import Any, NamedTuple

import numpy as np
from scipy import stats
from torch import Tensor

from act_core import ActMap, fit
from act_core.models.diffusers import Branch, DiffusersModel
from tools.train_demo_model.captions import caption
from tools.train_demo_model.emoji import STYLES, Emoji

from .common import ROOT, Check, print_table, print_title, report
from .demo_model import BATCH, GUIDANCE
from .judge import TOOL, Judge, as_tensor, emoji, judge_of, studied

# Pairs that the settings are chosen on: easy, hard, and both ways.
DEV_PAIRS = ((0, 4), (4, 1), (3, 2), (1, 0))
RESAMPLES = 1000


class Setting(NamedTuple):
    """What a map is fitted with and how it is used."""

    sites: str = "auto"
    components: str = "both"
    estimator: str = "linear"
    order: str = "causal"
    moved: str = "source"
    prompts: int = 128
    branch: Branch = "positive"

    @property
    def changed(self) -> str:
        """In words, what differs from the default."""
        changes = (v for f, v in self._asdict().items() if v != self._field_defaults[f])
        return ", ".join(map(str, changes)) or "default"


class Bench:
    """The model, the judge, and the pictures that were drawn already."""

    def __init__(self, concepts: Sequence[int], pictures: Emoji, seeds: int) -> None:
        self.pictures = pictures
        self.concepts = concepts
        self.seeds = seeds
        self.judge: Judge = judge_of(TOOL / "work" / "judge.pt", pictures)
        self.models = {c: DiffusersModel.from_pretrained(ROOT / "demo_model", components=c) for c in _COMPONENTS}
        self.model = self.models["both"]
        self._prompted: dict[int, tuple[Tensor, Tensor]] = {}

    def fit(self, a: int, b: int, setting: Setting) -> ActMap:
        """The map from style `a` to style `b`, on concepts that nothing is judged on."""
        own = [c for c in range(len(self.pictures.names)) if studied(c) and self.pictures.seen[:, c].all()]
        chosen = random.Random(0).sample(own, setting.prompts)
        sides = ([caption(self.pictures.names[c], (), style) for c in chosen] for style in (a, b))
        values: dict[str, Any] = setting._asdict()
        settings = {name: values[name] for name in ("sites", "estimator", "order", "moved")}
        return fit(self.models[setting.components], *sides, batch_size=64, **settings)

    def draw(self, style: int) -> tuple[Tensor, Tensor]:
        """Probabilities of the styles and features, ``[concepts x seeds, ...]``, prompting for a style."""
        texts = [caption(self.pictures.names[c], (), style) for c in self.concepts]
        images: list[Any] = []
        for seed in range(self.seeds):
            for at in range(0, len(texts), BATCH):
                images += self.model.generate(texts[at : at + BATCH], guidance=GUIDANCE, seed=1000 * seed + at)
        return self.judge.ask(as_tensor(images))

    def prompted(self, style: int) -> tuple[Tensor, Tensor]:
        """As `draw`, once for each style."""
        if style not in self._prompted:
            self._prompted[style] = self.draw(style)
        return self._prompted[style]

    def steered(self, act_map: ActMap, a: int, strength: float, branch: Branch) -> tuple[Tensor, Tensor]:
        """As `draw`, with a map on it."""
        with self.model.steer(act_map, strength, branch) as steering:
            drawn = self.draw(a)
            steering.check()
        return drawn

    def content(self, features: Tensor, b: int) -> Tensor:
        """How much of the content is kept, for each picture: 1 as in the prompted picture, 0 as in a random one."""
        _, wanted = self.prompted(b)
        alike = (features * wanted).sum(1)
        others = (features @ wanted.T).mean()
        return (alike - others) / (1 - others)


_COMPONENTS = ("both", "model", "text")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.styles", description=__doc__)
    parser.add_argument("--dev", action="store_true", help="the table of what was tried, on other concepts")
    parser.add_argument("--concepts", type=int, help="how many to draw (32; with --dev 16)")
    parser.add_argument("--seeds", type=int, help="pictures of each (3; with --dev 1)")
    args = parser.parse_args(arguments)
    pictures = emoji()
    asked = [c for c in range(len(pictures.names)) if not studied(c) and pictures.seen[:, c].all()]
    random.Random(1).shuffle(asked)
    if args.dev:
        count = args.concepts or 16
        return development(Bench(asked[-count:], pictures, args.seeds or 1))
    count = args.concepts or 32
    return test(Bench(asked[:count], pictures, args.seeds or 3))


def test(bench: Bench) -> int:
    """All ordered pairs with the default settings."""
    print_title("Steering styles, default settings", "diffusers")
    print(
        f"Maps of 128 + 128 prompts; {len(bench.concepts)} other concepts x {bench.seeds} seeds. Probability of the "
        "target style, by a judge that has not seen these concepts; content from 0 (a random concept) to 1 (the "
        "picture that the same noise gives when the target style is prompted)."
    )
    rows: list[tuple[object, ...]] = []
    relative: list[float] = []
    absolute: list[float] = []
    kept: list[float] = []
    for a, b in permutations(range(len(STYLES)), 2):
        start = time.perf_counter()
        act_map = bench.fit(a, b, Setting())
        seconds = time.perf_counter() - start
        told, features = bench.steered(act_map, a, 1.0, "positive")
        wanted, before = (float(bench.prompted(style)[0][:, b].mean()) for style in (b, a))
        content = bench.content(features, b)
        low, high = _interval(told[:, b], bench)
        absolute.append(float(told[:, b].mean()))
        relative.append(absolute[-1] / wanted)
        kept.append(float(content.mean()))
        rows.append(
            (
                f"{STYLES[a].phrase} to {STYLES[b].phrase}",
                f"{before:.2f}",
                f"{absolute[-1]:.2f} [{low:.2f}, {high:.2f}]",
                f"{wanted:.2f}",
                f"{relative[-1]:.2f}",
                f"{kept[-1]:.2f}",
                f"{seconds:.1f}",
            )
        )
    print_table(("style", "unsteered", "strength 1", "prompted", "of prompted", "content kept", "fit, s"), rows)
    middle, content = float(np.median(relative)), float(np.median(kept))
    many = sum(value >= 0.85 for value in absolute)
    worst = min(relative)
    return report(
        [
            Check("of prompting, median over pairs", f"{middle:.2f}", ">= 0.9", middle >= 0.9),
            Check("pairs of at least 0.85", str(many), ">= 12", many >= 12),
            Check("of prompting, worst pair", f"{worst:.2f}", ">= 0.5", worst >= 0.5),
            Check("content kept, median over pairs", f"{content:.2f}", ">= 0.75", content >= 0.75),
        ]
    )


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
        act_map = bench.fit(a, b, setting)
        seconds += (time.perf_counter() - start) / len(DEV_PAIRS)
        sites = len(act_map)
        for number, strength in enumerate(strengths):
            told, features = bench.steered(act_map, a, strength, setting.branch)
            probability[number].append(float(told[:, b].mean()))
            content[number].append(float(bench.content(features, b).mean()))
    means = [f"{np.mean(values):.2f}" for values in (*probability, *content)]
    return setting.changed, int(sites), *means, f"{seconds:.1f}"


def _interval(values: Tensor, bench: Bench) -> tuple[float, float]:
    """95% bootstrap interval of a mean over concepts, whose seeds belong together."""
    by_concept = values.view(bench.seeds, len(bench.concepts)).mean(0).numpy()
    result = stats.bootstrap((by_concept,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=0)
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


if __name__ == "__main__":
    raise SystemExit(main())
