"""``act-steering compare``"""

from __future__ import annotations

import argparse
from pathlib import Path

from .arguments import Commands, add_command, check_writable


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "compare",
        _run,
        "Show which sites two maps share, and the angle and the sizes of their displacements there.",
        "gloomy.safetensors night.safetensors --chart gloomy_night.png",
    )
    parser.add_argument("first", type=Path, help="a map, a .safetensors file")
    parser.add_argument("second", type=Path, help="another map of the same model")
    parser.add_argument("--chart", type=Path, help="also save the comparison as a picture, a .png file")


def _run(args: argparse.Namespace) -> None:
    chart: Path | None = args.chart
    if chart:
        check_writable(chart, "chart", ".png")
    from ..comparison import compare
    from ..mapfile import load_map

    found = compare(load_map(args.first), load_map(args.second))
    print(found)
    if chart:
        from ..map_charts import comparison_chart
        from ..plots import save_chart

        save_chart(comparison_chart(found), chart)
        print(f"Saved {chart}.")
