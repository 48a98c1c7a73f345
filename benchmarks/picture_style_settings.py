"""The settings tried to choose the defaults of a refinement, on concepts that `picture_styles` does not use."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any

import numpy as np

from act_core.settings import RefineSettings
from tools.results import Cell, Column

from .lib.judge import load_pictures
from .lib.learned_styles import content_kept, learned
from .lib.pictures import StyleBench, style_pair
from .lib.report import Report, parse

# As in `style_settings`: easy, hard, and in both directions.
PAIRS = ((0, 4), (4, 1), (3, 2), (1, 0))
STRENGTHS = (0.5, 1.0)
PICTURES = 32
COLUMNS = (
    Column("setting"),
    Column("sites", format="d"),
    *(Column(f"of prompting, at {strength:g}", format=".2f") for strength in STRENGTHS),
    *(Column(f"content at {strength:g}", format=".2f") for strength in STRENGTHS),
    Column("steps", format=".0f"),
    Column("fit", "s", ".1f"),
)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.picture_style_settings", description=__doc__)
    parser.add_argument("--concepts", type=int, default=16, help="how many to draw (%(default)s)")
    parser.add_argument("--seeds", type=int, default=1, help="pictures of each (%(default)s)")
    parser.add_argument("--first", type=int, help="only the first settings")
    args = parse(parser, arguments)

    report = Report("picture_style_settings", "Settings tried for a style from pictures", args, "diffusers")
    bench = StyleBench(args.concepts, args.seeds, load_pictures(), last=True)
    pairs = "; ".join(style_pair(source, target) for source, target in PAIRS)
    report.text(
        f"{PICTURES} pictures unless noted; {len(bench.concepts)} concepts x {bench.seeds} seeds, means over the pairs "
        f"{pairs}. Of prompting: probability of the target style, of what prompting for it gives. Content: likeness to "
        f"the unsteered picture; prompting for the style keeps {_prompting(bench):.2f}."
    )
    settings = list(settings_to_try())[: args.first]
    report.table("settings", "Settings", COLUMNS, (measured(bench, *setting) for setting in settings))
    return report.finish()


def settings_to_try() -> Iterable[tuple[str, int, bool, RefineSettings]]:
    """Description, pictures, whether they have captions, and settings: one change at a time."""
    default: dict[str, Any] = {}
    changes: tuple[dict[str, Any], ...] = (
        default,
        *({"sites": sites} for sites in ("attention", "mlp", "norms", "blocks", "attention,mlp", "all")),
        *({"rate": rate} for rate in (0.005, 0.01, 0.05)),
        *({"steps": steps} for steps in (30, 120, 240)),
        {"steps": 240, "held_back": 0.0},
        {"held_back": 0.0},
        {"batch_size": 8},
        {"batch_size": 32},
    )
    for changed in changes:
        words = ", ".join(f"{name} {value}" for name, value in changed.items())
        yield words or "default", PICTURES, True, RefineSettings(**changed)
    yield "no captions", PICTURES, False, RefineSettings()
    for count in (4, 12, 128):
        yield f"{count} pictures", count, True, RefineSettings()
    yield "12 pictures, no captions", 12, False, RefineSettings()


def measured(bench: StyleBench, words: str, count: int, captions: bool, settings: RefineSettings) -> list[Cell]:
    """A row of the table."""
    style: list[list[float]] = [[] for _ in STRENGTHS]
    content: list[list[float]] = [[] for _ in STRENGTHS]
    steps: list[float] = []
    seconds: list[float] = []
    sites = 0
    for source, target in PAIRS:
        act_map, taken = learned(bench, target, count, settings, captions=captions)
        sites = len(act_map)
        seconds.append(taken)
        steps.append(float(act_map.record.notes[-1].split()[2]))
        prompted = float(bench.prompted(target).styles[:, target].mean())
        for number, strength in enumerate(STRENGTHS):
            drawn = bench.steered({0: act_map}, bench.captions(source, bench.concepts), strength)
            style[number].append(float(drawn.styles[:, target].mean()) / prompted)
            content[number].append(float(content_kept(bench, drawn, source).mean()))
    means = [float(np.mean(values)) for values in (*style, *content, steps, seconds)]
    return [words, sites, *means]


def _prompting(bench: StyleBench) -> float:
    return float(np.mean([float(content_kept(bench, bench.prompted(b), a).mean()) for a, b in PAIRS]))


if __name__ == "__main__":
    raise SystemExit(main())
