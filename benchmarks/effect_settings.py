"""The settings tried to choose the defaults for language models, on openings that `effect` does not use."""

from __future__ import annotations

import argparse
from collections.abc import Generator, Sequence
from typing import Any, NamedTuple

from act_core import ActMap, fit
from act_core.demo.language import moods
from act_core.models.transformers import TransformersModel
from act_core.prompts import read_lines
from tools.results import Cell, Column

from .lib.continuations import NEW_TOKENS, continuations
from .lib.models import DATA, load_model, load_prompts
from .lib.report import Report, parse

PRESETS = ("norms", "attention", "mlp", "attention,mlp", "blocks")
STRENGTHS = (0.5, 1.0)
COLUMNS = (
    *(Column(name) for name in ("sites", "estimator", "order", "support")),
    Column("prompts", format="d"),
    *(
        Column(f"{name} at {strength:g}", format=form)
        for strength in STRENGTHS
        for name, form in (("VADER", "+.2f"), ("perplexity", ".2f"), ("distinct-2", ".2f"))
    ),
)


class TextSetting(NamedTuple):
    """The settings that a map is fitted with."""

    sites: str
    estimator: str = "linear"
    order: str = "causal"
    support: str = "unbounded"
    prompts: int = 112

    def fit(self, model: TransformersModel) -> ActMap:
        """The map from gloomy to cheerful."""
        prompts = load_prompts(self.prompts)
        settings: dict[str, Any] = self._asdict()
        del settings["prompts"]
        return fit(model, prompts.source, prompts.target, **settings)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.effect_settings", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1, help="continuations of each opening (%(default)s)")
    parser.add_argument("--openings", type=int, default=32, help="only the first openings (%(default)s)")
    parser.add_argument("--prompts", type=int, default=112, help="prompts per side (%(default)s)")
    parser.add_argument("--presets", nargs="+", default=list(PRESETS), metavar="SITES", help="sites to try")
    parser.add_argument(
        "--promising",
        nargs="*",
        default=["attention", "norms"],
        metavar="SITES",
        help="sites to try every other setting on (%(default)s)",
    )
    args = parse(parser, arguments)

    report = Report("effect_settings", "Settings tried for language models", args, "vaderSentiment")
    openings = read_lines(DATA / "openings_dev.txt")[: args.openings]
    model = load_model()
    bare = continuations(model, openings, args.seeds)
    perplexity, variety = bare.perplexity(model), bare.distinct_2()
    report.text(
        f"SmolLM2-135M, gloomy to cheerful, {len(openings)} openings x {args.seeds} seeds, {NEW_TOKENS} new tokens. "
        f"Unsteered: VADER {moods(bare.all).mean():+.2f}, perplexity {perplexity:.1f}, distinct-2 {variety:.2f}. The "
        "columns give the mean VADER, and the other two as multiples of the unsteered ones."
    )

    def rows() -> Generator[list[Cell], None, None]:
        for setting in settings_to_try(args.presets, args.promising, args.prompts):
            act_map = setting.fit(model)
            cells: list[Cell] = [f"{setting.sites} ({len(act_map)})", *setting[1:]]
            for strength in STRENGTHS:
                written = continuations(model, openings, args.seeds, act_map, strength)
                cells.append(float(moods(written.all).mean()))
                cells += [written.perplexity(model) / perplexity, written.distinct_2() / variety]
            yield cells

    report.table("settings", "Settings", COLUMNS, rows())
    return report.finish()


def settings_to_try(presets: Sequence[str], promising: Sequence[str], prompts: int) -> list[TextSetting]:
    """Every preset; then, for the promising ones, every other setting, one change at a time."""
    settings = [TextSetting(sites, prompts=prompts) for sites in presets]
    for sites in promising:
        base = TextSetting(sites, prompts=prompts)
        settings += [base._replace(estimator=estimator) for estimator in ("mean", "gaussian")]
        settings += [base._replace(order="simultaneous"), base._replace(support="observed")]
        settings += [base._replace(prompts=count) for count in (32, 64) if count < prompts]
    return settings


if __name__ == "__main__":
    raise SystemExit(main())
