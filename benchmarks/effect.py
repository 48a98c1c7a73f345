"""Whether steering works on held-out prompts: mood, fluency and variety of the continuations."""

from __future__ import annotations

import argparse
from collections.abc import Generator
from typing import Any

import numpy as np
from scipy import stats

from act_core import fit
from act_core.demo.language import moods
from act_core.prompts import read_lines
from tools.results import Cell, Column, Estimate

from .lib.continuations import NEW_TOKENS, continuations
from .lib.intervals import RESAMPLES, interval
from .lib.models import DATA, load_model, load_prompts
from .lib.ratings import MoodScorer
from .lib.report import INTERVAL_ABOVE_0, Report, at_least, at_most, parse

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
COLUMNS = (
    Column("strength", format="g"),
    Column("VADER", format=".2f"),
    Column("ratings", format=".2f"),
    Column("perplexity", format=".2f"),
    Column("distinct-2", format=".2f"),
    Column("the first continuation"),
)
PERPLEXITY = Column("perplexity at strength 1 / at 0", format=".2f")
VARIETY = Column("distinct-2 at strength 1 / at 0", format=".2f")


def change_column(scorer: str) -> Column:
    return Column(f"{scorer}: change from strength 0 to 1", format="+.2f", spread="interval")


def trend_column(scorer: str) -> Column:
    return Column(f"{scorer}: Spearman correlation with the strength", format="+.2f", spread="interval")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.effect", description=__doc__)
    parser.add_argument("--seeds", type=int, default=4, help="continuations of each opening (%(default)s)")
    parser.add_argument("--openings", type=int, help="only the first openings")
    parser.add_argument(
        "--prompts", type=int, default=112, help="prompts per side that the map is fitted on (%(default)s)"
    )
    parser.add_argument("--ratings", type=int, help="train the second scorer on fewer snippets")
    args = parse(parser, arguments)

    report = Report("effect", "Effect of steering a language model", args, "vaderSentiment", "scikit-learn")
    openings, prompts = read_lines(DATA / "openings_test.txt")[: args.openings], load_prompts(args.prompts)
    model, scorer = load_model(), MoodScorer.train(args.ratings)
    act_map = fit(model, prompts.source, prompts.target)
    report.text(
        f"SmolLM2-135M, gloomy to cheerful, {args.prompts} + {args.prompts} prompts, {len(act_map)} sites (auto). "
        f"{len(openings)} openings x {args.seeds} seeds = {len(openings) * args.seeds} continuations of {NEW_TOKENS} "
        "tokens at each strength. VADER from -1 to 1, ratings from -4 to 4; perplexity under the unsteered model. "
        f"Intervals: 95%, bootstrap over openings, {RESAMPLES} resamples."
    )
    report.text(
        f"Ratings: ridge regression on sentence embeddings, trained on {scorer.trained} human-rated snippets; "
        f"correlation with the ratings of {scorer.tested} others: {scorer.correlation:.2f}."
    )
    scorers = {"VADER": moods, "ratings": scorer.score}
    scores: dict[str, list[np.ndarray]] = {name: [] for name in scorers}  # of [seeds, openings], by strength

    def rows() -> Generator[list[Cell], None, None]:
        for strength in STRENGTHS:
            written = continuations(model, openings, args.seeds, act_map if strength else None, strength)
            for name, score in scorers.items():
                scores[name].append(score(written.all).reshape(args.seeds, len(openings)))
            means = (float(by_strength[-1].mean()) for by_strength in scores.values())
            yield [strength, *means, written.perplexity(model), written.distinct_2(), written.example()]

    table = report.table("strengths", "Effect by strength", COLUMNS, rows())
    for name, by_strength in scores.items():
        grid = np.stack(by_strength)
        change = interval(grid[-1].mean(0) - grid[0].mean(0))
        report.figure(f"change_{name}", change_column(name), change, INTERVAL_ABOVE_0)
        report.figure(f"trend_{name}", trend_column(name), trend(grid), INTERVAL_ABOVE_0)
    first, last = table.rows[0], table.rows[-1]
    perplexity, variety = (float(str(last[at])) / float(str(first[at])) for at in (3, 4))
    report.figure("perplexity", PERPLEXITY, perplexity, at_most(1.5))
    report.figure("variety", VARIETY, variety, at_least(0.8))
    return report.finish()


def trend(grid: np.ndarray) -> Estimate:
    """Spearman's correlation of strength and score over all continuations ``[strengths, seeds, openings]``."""
    strengths = np.broadcast_to(np.array(STRENGTHS)[:, None, None], grid.shape)

    def spearman(openings: np.ndarray) -> float:
        found: Any = stats.spearmanr(strengths[..., openings].ravel(), grid[..., openings].ravel())
        return float(found.statistic)

    return interval(np.arange(grid.shape[-1]), spearman)


if __name__ == "__main__":
    raise SystemExit(main())
