"""A page that shows the maps in a folder: one HTML file with all pictures inside, which needs no server.

Titles, prompts and pictures come from strangers. Every text is escaped where it is put into the page (`_tag`), pictures
are embedded, and the page forbids browsers to run scripts or to load anything (Content Security Policy).
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from urllib.parse import quote

from .errors import MapFileError
from .files import write_whole
from .mapfile import ListedMap, list_maps
from .mapfile.header import MapHeader
from .summary import describe_calibration
from .text import plain_text, shorten

MAX_PROMPTS = 3
# Larger sweeps are left out: all pictures are inside the page.
MAX_SWEEP_BYTES = 8 << 20
SWEEP_SUFFIXES = ".sweep.png", ".sweep.jpg"

_TYPES = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg"}
_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { margin: 0 auto; max-width: 75rem; padding: 1rem; }
main { display: grid; gap: 1.5rem; grid-template-columns: repeat(auto-fill, minmax(min(22rem, 100%), 1fr)); }
article { border: 1px solid #8886; border-radius: .75rem; overflow: hidden; padding: 1rem; }
img { display: block; max-width: 100%; }
.cover { border-radius: .5rem; max-height: 16rem; }
h2, p, dd, li { overflow-wrap: anywhere; unicode-bidi: isolate; white-space: pre-line; }
dl { display: grid; gap: .25rem .75rem; grid-template-columns: auto 1fr; }
dt { opacity: .7; }
dd { margin: 0; }
ul { margin: 0; padding-left: 1.2rem; }
code { font-size: .8rem; }
"""


class _Html(str):
    """Text that is HTML already; all other text is escaped."""

    __slots__ = ()


def write_gallery(folder: str | os.PathLike[str], out: str | os.PathLike[str]) -> list[ListedMap]:
    """Write a page of all maps in a folder and its subfolders.

    A picture ``<name>.sweep.png`` or ``<name>.sweep.jpg`` beside a map is shown with it. File names are links if the
    page is written into the folder.

    Args:
        folder: has the maps.
        out: the page, an ``.html`` file, which is replaced.

    Returns:
        The maps and other files that were found; those with a problem, also one of reading the whole file or its
        sweep, are not on the page.

    Raises:
        MapFileError: this is not a folder, it has no usable map, or the page cannot be written.

    Example:
        >>> write_gallery("nowhere", "page.html")
        Traceback (most recent call last):
        ...
        act_core.errors.MapFileError: nowhere is not a folder; name the folder that has the maps.
    """
    folder, out = Path(folder), Path(out)
    if out.suffix.lower() not in (".html", ".htm"):
        raise MapFileError(f"{out.name or out} is not a name for a page; it must end in .html.")
    links = os.path.realpath(out.parent) == os.path.realpath(folder)
    found: list[ListedMap] = []
    cards: list[_Html] = []
    for listed in list_maps(folder):
        try:
            cards += [_card(listed, listed.header, folder, links)] if listed.header else []
            found.append(listed)
        except OSError as error:
            name = plain_text(Path(error.filename or listed.path).name)
            problem = f"{name} cannot be read: {error.strerror or error}."
            found.append(replace(listed, header=None, problem=problem))
    if not cards:
        raise MapFileError(f"{folder} has no usable map; name the folder that has the maps.")
    try:
        write_whole(out, _page(f"{plain_text(folder.resolve().name) or 'maps'}: ACT maps", cards).encode())
    except OSError as error:
        raise MapFileError(f"{out} could not be written: {error.strerror or error}; choose another folder.") from error
    return found


def _page(title: str, cards: Sequence[_Html]) -> str:
    style_hash = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{style_hash}'; base-uri 'none'; form-action 'none'"
    head = _tag(
        "head",
        _tag("meta", charset="utf-8"),
        _tag("meta", http_equiv="Content-Security-Policy", content=policy),
        _tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        _tag("title", title),
        _Html(f"<style>{_STYLE}</style>"),
    )
    body = _tag("body", _tag("h1", title), _tag("main", *cards))
    return f"<!DOCTYPE html>\n{_tag('html', head, body, lang='en')}\n"


def _card(listed: ListedMap, header: MapHeader, folder: Path, links: bool) -> _Html:
    card, path = header.card, listed.path
    title = card.title or plain_text(path.stem)
    name: str = listed.name
    if links:
        # The name may have bytes that are not text. The dot keeps one with a colon from being read as an address.
        address = quote(os.fsencode(path.relative_to(folder).as_posix()))
        name = _tag("a", listed.name, download=plain_text(path.name), href=f"./{address}")
    prompts = [_tag("li", text, dir="auto") for text in _prompts(header)]
    evidence = [_tag("li", str(found), dir="auto") for found in header.evidence]
    rows: dict[str, str] = {
        "model": header.record.model,
        "strength": listed.strengths,
        "calibration": describe_calibration(header.calibration) if header.calibration else "",
        "measured": _tag("ul", *evidence) if evidence else "",
        "prompts": _tag("ul", *prompts) if prompts else "",
        "use": card.usage_hint,
        "tags": card.tags,
        "author": card.author,
        "license": card.license,
        "file": name,
        "size": f"{listed.size / 1e6:.2f} MB",
        "SHA-256": _tag("code", _sha256(path)),
    }
    terms = [_Html(_tag("dt", term) + _tag("dd", text, dir="auto")) for term, text in rows.items() if text]
    return _tag(
        "article",
        _tag("h2", title, dir="auto"),
        *([_picture(card.cover, f"Cover of {title}", "cover")] if card.cover else []),
        *([_tag("p", card.description, dir="auto")] if card.description else []),
        *_sweep(path, folder, title),
        _tag("dl", *terms),
    )


def _prompts(header: MapHeader) -> Iterator[str]:
    """The first prompts of a map, if its file keeps any."""
    record = header.record
    if record.fitted_by == "refinement":
        yield from (shorten(caption, 120) for caption in record.target_prompts[:MAX_PROMPTS] if caption)
        return
    for source, target in zip(record.source_prompts[:MAX_PROMPTS], record.target_prompts[:MAX_PROMPTS], strict=False):
        if source or target:  # pictures may have no captions
            yield f"{shorten(source, 120)} → {shorten(target, 120)}"


def _sweep(path: Path, folder: Path, title: str) -> Iterator[_Html]:
    """The sweep picture beside a map, unless it is a link out of the folder, too large, or not a picture."""
    for suffix in SWEEP_SUFFIXES:
        beside = path.with_name(path.stem + suffix)
        if not beside.is_file() or not beside.resolve().is_relative_to(folder.resolve()):
            continue
        with beside.open("rb") as file:
            data = file.read(MAX_SWEEP_BYTES + 1)
        if len(data) <= MAX_SWEEP_BYTES and _type(data):
            yield _picture(data, f"{title} at several strengths", "sweep")
            return


def _picture(data: bytes, description: str, kind: str) -> _Html:
    address = f"data:{_type(data) or 'image/jpeg'};base64,{base64.b64encode(data).decode()}"
    return _tag("img", class_=kind, src=address, alt=description)


def _type(data: bytes) -> str:
    return next((name for start, name in _TYPES.items() if data.startswith(start)), "")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _tag(tag: str, /, *parts: str, **attributes: str) -> _Html:
    """An element with escaped content and attributes; ``class_`` is class, and ``http_equiv`` http-equiv."""
    names = {key: key.rstrip("_").replace("_", "-") for key in attributes}
    opening = "".join(f' {names[key]}="{escape(value)}"' for key, value in attributes.items())
    if tag in ("img", "meta"):
        return _Html(f"<{tag}{opening}>")
    inside = "".join(part if isinstance(part, _Html) else escape(part, quote=False) for part in parts)
    return _Html(f"<{tag}{opening}>{inside}</{tag}>")
