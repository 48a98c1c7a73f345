"""How many prompts a map needs: its effect with few and with many prompts a side."""

from __future__ import annotations

import argparse
from collections.abc import Generator, Sequence
from dataclasses import replace

import numpy as np

from act_core.demo.language import moods
from act_core.prompts import load_prompt_set, read_lines
from tools.results import Cell, Column

from .lib.continuations import NEW_TOKENS
from .lib.evidence import CLEARS_COLUMNS, cleared
from .lib.intervals import RESAMPLES, interval
from .lib.models import DATA, PROMPT_SET, ROOT, load_model, stop
from .lib.report import Report, parse
from .lib.ways import MAX_PERPLEXITY, STRENGTHS, UNSTEERED, Way, at_strengths, best, controls_of, fitted

COUNTS = (4, 16, 64, 184)
COLUMNS = (
    Column("prompts"),
    Column("strength", format="g"),
    Column("VADER: change", format="+.3f", spread="interval"),
    *(replace(own, name=f"VADER: {own.name}") for own in CLEARS_COLUMNS),
    Column("perplexity", format=".2f"),
)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prompt_counts", description=__doc__)
    parser.add_argument("--dev", type=int, default=8, help="openings to choose strengths on (%(default)s)")
    parser.add_argument("--openings", type=int, default=24, help="openings to report (%(default)s)")
    parser.add_argument("--counts", nargs="+", type=int, default=list(COUNTS), help="prompts per side (%(default)s)")
    args = parse(parser, arguments)

    report = Report("prompt_counts", "Effect by number of prompts", args, "vaderSentiment")
    language(report, args)
    return report.finish()


def language(report: Report, args: argparse.Namespace) -> None:
    """Gloomy to cheerful, with SmolLM2."""
    gloomy, cheerful = mixed(*moody_prompts())
    if max(args.counts) > len(gloomy):
        stop(f"There are {len(gloomy)} prompts per side, not {max(args.counts)}; ask for fewer.")
    report.text(
        "Texts: SmolLM2-135M-Instruct, gloomy to cheerful, linear, causal. The prompt sets contain "
        f"{len(gloomy)} prompts per side, so there is no row beyond; the first rows use the first prompts of one "
        f"random order. VADER score (from -1 to 1) of {NEW_TOKENS} tokens after each of {args.openings} held-out "
        "openings, 1 seed; change from unsteered texts, paired by opening. Strengths are chosen on "
        f"{args.dev} other openings, of "
        f"{STRENGTHS}, where the perplexity is at most {MAX_PERPLEXITY} times that without steering (otherwise the "
        "lowest). Controls: ten random maps of the same size and a map fitted on shuffled sides, at the same strength. "
        f"Intervals: 95%, bootstrap over openings, {RESAMPLES} resamples."
    )
    report.table("language", "Mood of texts", COLUMNS, language_rows(args, gloomy, cheerful))


def language_rows(
    args: argparse.Namespace, gloomy: Sequence[str], cheerful: Sequence[str]
) -> Generator[list[Cell], None, None]:
    """A row for each number of prompts."""
    model = load_model()
    dev = read_lines(DATA / "openings_dev.txt")[: args.dev]
    test = read_lines(DATA / "openings_test.txt")[: args.openings]
    unsteered = Way(UNSTEERED)
    dev_perplexity = unsteered.write(model, dev, NEW_TOKENS).perplexity(model)
    before = unsteered.write(model, test, NEW_TOKENS)

    def on_dev(way: Way) -> tuple[float, float]:
        written = way.write(model, dev, NEW_TOKENS)
        return float(moods(written.all).mean()), written.perplexity(model) / dev_perplexity

    for count in args.counts:
        sides = gloomy[:count], cheerful[:count]
        way = best(at_strengths(fitted(model, "linear", *sides, {})), on_dev)
        written = way.write(model, test, NEW_TOKENS)
        change = moods(written.all) - moods(before.all)
        controls = {
            name: moods(control.write(model, test, NEW_TOKENS).all) - moods(before.all)
            for name, control in controls_of(model, way, *sides).items()
        }
        perplexity = written.perplexity(model) / before.perplexity(model)
        yield [f"{count} + {count}", way.strength, interval(change), *cleared(change, controls).cells, perplexity]


def moody_prompts() -> tuple[list[str], list[str]]:
    """All gloomy and all cheerful prompts of the prompt sets."""
    pairs = load_prompt_set(PROMPT_SET)
    gloomy = load_prompt_set(ROOT / "prompt_sets" / "neutral_to_gloomy.txt").target
    cheerful = load_prompt_set(ROOT / "prompt_sets" / "neutral_to_cheerful.txt").target
    return [*pairs.source, *gloomy], [*pairs.target, *cheerful]


def mixed(*sides: list[str]) -> list[list[str]]:
    """Both sides in a random order."""
    generator = np.random.default_rng(0)
    return [[side[at] for at in generator.permutation(len(side))] for side in sides]


if __name__ == "__main__":
    raise SystemExit(main())
