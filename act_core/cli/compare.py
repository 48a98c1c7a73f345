"""``act-steering compare``"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

from ..errors import MapError
from ..files import write_whole
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
        if chart.suffix != ".png":
            raise MapError(f"{chart} is not a name for a chart; it must end in .png.")
        check_writable(chart)
    from ..comparison import compare
    from ..mapfile import load_map

    found = compare(load_map(args.first), load_map(args.second))
    print(found)
    if chart:
        from ..map_charts import comparison_chart

        picture = io.BytesIO()
        comparison_chart(found).save(picture, "PNG")
        write_whole(chart, picture.getvalue())
        print(f"Saved {chart}.")
