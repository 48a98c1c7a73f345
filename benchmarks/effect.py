"""Whether steering works on prompts that are in no prompt set: mood, fluency and variety of the continuations."""

from __future__ import annotations

import argparse
import re
from collections.abc import Generator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from act_core import ActMap, fit, steer
from act_core.demo.language import moods
from act_core.models.transformers import TransformersModel
from act_core.prompts import read_lines

from .common import DATA, Check, load_model, load_prompts, print_table, print_title, report
from .ratings import MoodScorer

NEW_TOKENS = 30
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
PRESETS = ("norms", "attention", "mlp", "attention,mlp", "blocks")
RESAMPLES = 2000


class Setting(NamedTuple):
    """What a map is fitted with."""

    sites: str = "auto"
    estimator: str = "linear"
    order: str = "causal"
    support: str = "unbounded"
    prompts: int = 112

    def fit(self, model: TransformersModel) -> ActMap:
        prompts = load_prompts(self.prompts)
        settings: dict[str, Any] = self._asdict()
        del settings["prompts"]
        return fit(model, prompts.source, prompts.target, **settings)


class Continuations(NamedTuple):
    """What the model wrote at one strength: a list for each seed, in the order of the openings."""

    openings: list[str]
    by_seed: list[list[str]]

    @property
    def all(self) -> list[str]:
        return [text for texts in self.by_seed for text in texts]

    def perplexity(self, model: TransformersModel) -> float:
        """After their openings, under the model as it is now: to be asked outside of steering."""
        return model.perplexity(self.all, after=self.openings * len(self.by_seed))

    def distinct_2(self) -> float:
        """Share of the pairs of neighbouring words that differ, over all continuations."""
        pairs = [pair for text in self.all for pair in pairwise(re.findall(r"\w+(?:'\w+)?", text.lower()))]
        return len(set(pairs)) / len(pairs)


def continued(
    model: TransformersModel, act_map: ActMap | None, strength: float, openings: list[str], seeds: int
) -> Continuations:
    """Continuations of all openings with every seed, steered if there is a map."""

    def write() -> Continuations:
        texts = [model.generate_all(openings, max_new_tokens=NEW_TOKENS, seed=seed) for seed in range(seeds)]
        return Continuations(openings, texts)

    if act_map is None:
        return write()
    with steer(model.module, act_map, strength) as steering:
        written = write()
        steering.check()
    return written


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.effect", description=__doc__)
    parser.add_argument("--dev", action="store_true", help="the table of what was tried, on openings_dev.txt")
    parser.add_argument("--seeds", type=int, help="continuations of each opening (4; with --dev 1)")
    parser.add_argument("--openings", type=int, help="only the first openings")
    parser.add_argument(
        "--prompts", type=int, default=112, help="prompts a side that the map is fitted on (%(default)s)"
    )
    parser.add_argument("--ratings", type=int, help="train the second scorer on fewer snippets")
    parser.add_argument(
        "--presets", nargs="+", default=list(PRESETS), metavar="SITES", help="with --dev: sites to try (%(default)s)"
    )
    parser.add_argument(
        "--promising",
        nargs="*",
        default=["attention", "norms"],
        metavar="SITES",
        help="with --dev: sites to try every other setting on (%(default)s)",
    )
    args = parser.parse_args(arguments)
    if args.dev:
        return development(args)
    return test(args)


def test(args: argparse.Namespace) -> int:
    """The default settings on the openings that nothing was chosen on."""
    print_title("Effect of steering, default settings", "vaderSentiment", "scikit-learn")
    seeds = args.seeds or 4
    openings = read_lines(DATA / "openings_test.txt")[: args.openings]
    model = load_model()
    scorer = MoodScorer.train(args.ratings)
    print(
        f"Second scorer: ridge regression on sentence embeddings, trained on {scorer.trained} snippets that people "
        f"rated; correlation with the ratings of {scorer.tested} others: {scorer.correlation:.2f}."
    )
    act_map = Setting(prompts=args.prompts).fit(model)
    print(
        f"SmolLM2-135M, gloomy to cheerful, {args.prompts} + {args.prompts} prompts, {len(act_map)} sites (auto). "
        f"{len(openings)} openings x {seeds} seeds = {len(openings) * seeds} continuations of {NEW_TOKENS} tokens at "
        "each strength. VADER from -1 to 1, ratings from -4 to 4; perplexity under the unsteered model."
    )

    scores: dict[str, list[np.ndarray]] = {"VADER": [], "ratings": []}  # of [seeds, openings], by strength
    fluency: list[float] = []
    variety: list[float] = []

    def rows() -> Generator[tuple[object, ...], None, None]:
        for strength in STRENGTHS:
            written = continued(model, act_map if strength else None, strength, openings, seeds)
            for name, score in (("VADER", moods), ("ratings", scorer.score)):
                scores[name].append(score(written.all).reshape(seeds, len(openings)))
            fluency.append(written.perplexity(model))
            variety.append(written.distinct_2())
            figures = (scores["VADER"][-1].mean(), scores["ratings"][-1].mean(), fluency[-1], variety[-1])
            sample = " ".join((openings[0] + written.by_seed[0][0]).split())
            yield f"{strength:g}", *(f"{f:.2f}" for f in figures), sample.replace("|", "/")

    print_table(("strength", "VADER", "ratings", "perplexity", "distinct-2", "the first continuation"), rows())
    print(f"\nIntervals: 95%, bootstrap over the {len(openings)} openings ({RESAMPLES} resamples).")
    checks: list[Check] = []
    for name, by_strength in scores.items():
        grid = np.stack(by_strength)
        change = grid[-1].mean(0) - grid[0].mean(0)
        low, high = bootstrap_mean(change)
        measured = f"{change.mean():+.2f} [{low:+.2f}, {high:+.2f}]"
        checks.append(Check(f"{name}: change from strength 0 to 1", measured, "interval above 0", low > 0))
        rho, low, high = trend(grid)
        measured = f"{rho:+.2f} [{low:+.2f}, {high:+.2f}]"
        checks.append(Check(f"{name}: Spearman with the strength", measured, "interval above 0", low > 0))
    ratio, distinct = fluency[-1] / fluency[0], variety[-1] / variety[0]
    checks.append(Check("perplexity at strength 1 / at 0", f"{ratio:.2f}", "<= 1.5", ratio <= 1.5))
    checks.append(Check("distinct-2 at strength 1 / at 0", f"{distinct:.2f}", ">= 0.8", distinct >= 0.8))
    return report(checks)


def bootstrap_mean(values: np.ndarray) -> tuple[float, float]:
    """Interval of the mean of paired changes, one for each opening."""
    drawn: Any = stats.bootstrap((values,), np.mean, n_resamples=RESAMPLES, rng=0)
    return drawn.confidence_interval.low, drawn.confidence_interval.high


def trend(grid: np.ndarray) -> tuple[float, float, float]:
    """Spearman of strength and score over all continuations ``[strengths, seeds, openings]``, and its interval."""
    strengths = np.broadcast_to(np.array(STRENGTHS)[:, None, None], grid.shape)

    def spearman(openings: np.ndarray) -> float:
        found: Any = stats.spearmanr(strengths[..., openings].ravel(), grid[..., openings].ravel())
        return float(found.statistic)

    everyone = np.arange(grid.shape[-1])
    drawn: Any = stats.bootstrap(
        (everyone,), spearman, n_resamples=RESAMPLES, vectorized=False, method="percentile", rng=0
    )
    return spearman(everyone), drawn.confidence_interval.low, drawn.confidence_interval.high


def development(args: argparse.Namespace) -> int:
    """What was tried to choose the default settings, on openings of its own."""
    print_title("Effect of steering, what was tried", "vaderSentiment")
    openings = read_lines(DATA / "openings_dev.txt")[: args.openings]
    seeds = args.seeds or 1
    model = load_model()
    bare = continued(model, None, 0, openings, seeds)
    mood, fluency, variety = moods(bare.all).mean(), bare.perplexity(model), bare.distinct_2()
    print(
        f"SmolLM2-135M, gloomy to cheerful, {len(openings)} openings x {seeds} seeds, {NEW_TOKENS} new tokens. "
        f"Unsteered: VADER {mood:+.2f}, perplexity {fluency:.1f}, distinct-2 {variety:.2f}; the columns give the mean "
        "VADER and the ratios of the other two, at strength 0.5 and at 1."
    )

    def rows() -> Generator[tuple[object, ...], None, None]:
        for setting in tried(args.presets, args.promising, args.prompts):
            act_map = setting.fit(model)
            figures: list[str] = []
            for strength in (0.5, 1.0):
                written = continued(model, act_map, strength, openings, seeds)
                figures.append(f"{moods(written.all).mean():+.2f}")
                figures.append(f"{written.perplexity(model) / fluency:.2f}")
                figures.append(f"{written.distinct_2() / variety:.2f}")
            yield f"{setting.sites} ({len(act_map)})", *setting[1:], *figures

    columns = ("VADER", "perplexity", "distinct-2")
    at = [f"{column} at {strength}" for strength in ("0.5", "1") for column in columns]
    print_table(("sites", "estimator", "order", "support", "prompts", *at), rows())
    return 0


def tried(presets: Sequence[str], promising: Sequence[str], most: int) -> list[Setting]:
    """Every preset; then on the promising ones each other setting, changed one at a time."""
    settings = [Setting(sites, prompts=most) for sites in presets]
    for sites in promising:
        base = Setting(sites, prompts=most)
        settings += [base._replace(estimator=estimator) for estimator in ("mean", "gaussian")]
        settings += [base._replace(order="simultaneous"), base._replace(support="observed")]
        settings += [base._replace(prompts=count) for count in (32, 64) if count < most]
    return settings


if __name__ == "__main__":
    raise SystemExit(main())
