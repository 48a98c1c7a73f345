"""The page that shows what the demonstration found."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

from .chapter import Chapter

_STYLE = """
:root { color-scheme: light dark }
body { font: 17px/1.6 system-ui, sans-serif; max-width: 62rem; margin: 3rem auto; padding: 0 1.5rem }
h1 { font-size: 2.2rem; line-height: 1.2; margin-bottom: 0 }
h2 { margin-top: 4rem; border-top: 1px solid #8886; padding-top: 1.5rem }
figure { margin: 1.5rem 0 }
img { max-width: 100%; background: #fff; border-radius: 6px }
figcaption, .reading, .map { color: #888; font-size: .9rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
td, th { padding: .25rem 1.5rem .25rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid #8883 }
"""


def write_page(folder: Path, chapters: Sequence[Chapter]) -> Path:
    """Write ``index.html``, which shows the chapters with pictures and maps of the same folder.

    Args:
        folder: where the page goes.
        chapters: in order.

    Returns:
        The page.
    """
    page = folder / "index.html"
    page.write_text(
        f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>ACT Steering: the demonstration</title>
<style>{_STYLE}</style>
<h1>ACT Steering</h1>
<p>Small maps that steer a model, fitted on your machine a moment ago. No weight of a model has changed.</p>
{"".join(map(_section, chapters))}</html>
""",
        encoding="utf-8",
    )
    return page


def _section(chapter: Chapter) -> str:
    head = "".join(f"<th>{html.escape(name)}" for name in chapter.columns)
    rows = "\n".join("<tr>" + "".join(f"<td>{html.escape(cell)}" for cell in row) for row in chapter.rows)
    name = html.escape(chapter.map_file.name)
    fitted = html.escape(chapter.fitted.removeprefix(chapter.map_file.name))
    return f"""<h2>{html.escape(chapter.title)}</h2>
<p>{html.escape(chapter.story)}</p>
{"".join(_figure(*picture) for picture in chapter.pictures)}<table>
<tr>{head}
{rows}
</table>
<p class="reading">{html.escape(chapter.reading)}</p>
<p class="map"><a href="{name}" download>{name}</a>{fitted}</p>
"""


def _figure(name: str, description: str) -> str:
    words = html.escape(description)
    return f'<figure><img src="{html.escape(name)}" alt="{words}"><figcaption>{words}</figcaption></figure>\n'
