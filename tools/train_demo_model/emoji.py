"""Pictures and their names: the emoji that all five sets contain, 64 x 64 pixels, on white."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

SIZE = 64
_NO_QUOTES = str.maketrans("", "", "“”")
# Shares of the concepts that are held out in all styles, and in one of the five styles.
HELD_OUT = 0.05
HELD_OUT_PAIRS = 0.10


class Style(NamedTuple):
    """One emoji set.

    Attributes:
        phrase: what captions call it.
        package: npm package that contains it.
        credit: authors and licence.
    """

    phrase: str
    package: str
    credit: str


# The first one is the default style: captions may omit its phrase, so that a plain caption has a style too.
STYLES = (
    Style("flat sticker", "@iconify-json/twemoji", "Twemoji, Twitter and contributors, CC-BY-4.0"),
    Style("glossy cartoon", "@iconify-json/noto", "Noto Emoji, Google, Apache-2.0"),
    Style("3d render", "@lobehub/fluent-emoji-3d", "Fluent Emoji 3D, Microsoft, MIT"),
    Style("simple shapes", "@iconify-json/fluent-emoji-flat", "Fluent Emoji Flat, Microsoft, MIT"),
    Style("black ink icon", "@iconify-json/fluent-emoji-high-contrast", "Fluent Emoji High Contrast, Microsoft, MIT"),
)


@dataclass(frozen=True)
class Emoji:
    """All pictures with their names.

    Attributes:
        images: uint8 ``[styles, concepts, 3, 64, 64]``.
        names: one per concept, such as ``red heart``.
        keywords: further words per concept.
        seen: bool ``[styles, concepts]``, False if a picture is held out.
    """

    images: Tensor
    names: tuple[str, ...]
    keywords: tuple[tuple[str, ...], ...]
    seen: Tensor

    @property
    def held_out(self) -> list[int]:
        """Concepts that are held out in all styles."""
        return [int(i) for i in (~self.seen.any(0)).nonzero()]

    @property
    def held_out_pairs(self) -> list[tuple[int, int]]:
        """Style and concept of each held-out picture whose concept is trained in other styles."""
        return [(int(s), int(c)) for s, c in (~self.seen & self.seen.any(0)).nonzero()]


def load_emoji(packages: Path, kept: Path) -> Emoji:
    """Read the emoji from npm packages; the drawn pictures are cached in an ``.npz`` file.

    Args:
        packages: folder ``node_modules``.
        kept: the cache, written on the first call.

    Raises:
        FileNotFoundError: a package is missing.
    """
    sets: list[_Drawings] = [_Folder(packages, s) if "3d" in s.package else _Icons(packages, s) for s in STYLES]
    known = _json(packages / "unicode-emoji-json" / "data-by-emoji.json")
    words = _json(packages / "emojilib" / "dist" / "emoji-en-US.json")
    found: dict[str, str] = {}
    for emoji, entry in known.items():
        code, slug = _code_point(emoji), entry["slug"].replace("_", "-")
        if all(drawings.finds(code, slug) for drawings in sets):
            found[emoji] = entry["name"].lower().translate(_NO_QUOTES)
    if kept.is_file():
        images = np.load(kept)["images"]
    else:
        slugs = [(_code_point(emoji), known[emoji]["slug"].replace("_", "-")) for emoji in found]
        images = np.stack([np.stack([drawings.draw(*slug) for slug in slugs]) for drawings in sets])
        np.savez_compressed(kept, images=images)
    keywords = tuple(tuple(w.replace("_", " ").lower() for w in words.get(emoji, ())[1:]) for emoji in found)
    return Emoji(torch.from_numpy(images), tuple(found.values()), keywords, _split(len(found)))


def _split(concepts: int) -> Tensor:
    """Choose which pictures to train on: bool ``[styles, concepts]``, the same in every run."""
    order = random.Random(0).sample(range(concepts), concepts)
    seen = torch.ones(len(STYLES), concepts, dtype=torch.bool)
    absent, partly = round(HELD_OUT * concepts), round(HELD_OUT_PAIRS * concepts)
    seen[:, order[:absent]] = False
    for number, concept in enumerate(order[absent : absent + partly]):
        seen[number % len(STYLES), concept] = False
    return seen


class _Icons:
    """A set of SVG drawings in one file, listed by code point and by name."""

    def __init__(self, packages: Path, style: Style) -> None:
        folder = packages / style.package
        self._set = _json(folder / "icons.json")
        self._names = {_plain(code): name for code, name in _json(folder / "chars.json").items()}

    def finds(self, code: str, slug: str) -> bool:
        return self._name(code, slug) in self._set["icons"]

    def draw(self, code: str, slug: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
        import resvg_py

        width, height = self._set.get("width", 16), self._set.get("height", 16)
        svg = (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="0 0 {width} {height}">{self._set["icons"][self._name(code, slug)]["body"]}</svg>'
        )
        # currentColor defaults to black.
        png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=SIZE, height=SIZE))
        return _on_white(Image.open(io.BytesIO(png)))

    def _name(self, code: str, slug: str) -> str:
        name = self._names.get(code, slug)
        return name if name in self._set["icons"] else slug


class _Folder:
    """A set of pictures in a folder, named by code point."""

    def __init__(self, packages: Path, style: Style) -> None:
        self._paths = {_plain(path.stem): path for path in (packages / style.package / "assets").glob("*.webp")}

    def finds(self, code: str, slug: str) -> bool:
        return code in self._paths

    def draw(self, code: str, slug: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
        return _on_white(Image.open(self._paths[code]))


_Drawings = _Icons | _Folder


def _on_white(image: Image.Image) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """``[3, 64, 64]``."""
    image = image.convert("RGBA").resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    white = Image.new("RGBA", image.size, "white")
    return np.asarray(Image.alpha_composite(white, image).convert("RGB")).transpose(2, 0, 1)


def _code_point(emoji: str) -> str:
    return _plain("-".join(f"{ord(character):x}" for character in emoji))


def _plain(code: str) -> str:
    """Drop the variation selector from a code point: some sets write it, others do not."""
    return "-".join(part for part in code.split("-") if part != "fe0f")


def _json(path: Path) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", json.loads(path.read_text(encoding="utf-8")))
