"""Pictures to fit a map from: a folder of image files, and captions beside them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .errors import FitError
from .text import is_blank

_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture with a caption.

    Attributes:
        image: in RGB.
        caption: what it shows, without its style; may be empty.
        others: captions that are likely, too; each step of a refinement draws one of all.

    Example:
        >>> Picture(Image.new("RGB", (2, 2))).caption
        ''
    """

    image: Image.Image
    caption: str = ""
    others: tuple[str, ...] = ()


def read_pictures(folder: str | os.PathLike[str], *, captions: bool = False) -> list[Picture]:
    """The pictures in a folder, in the order of their names.

    Pictures are turned as their camera noted, transparent ones are put on white, and of animations the first frame is
    used.

    Args:
        folder: holds image files; other files, hidden ones and subfolders are ignored.
        captions: whether to read a text file beside each picture, ``cat.txt`` beside ``cat.png``.

    Raises:
        FitError: the folder or a file cannot be read, it holds no pictures, or a caption is missing.

    Example:
        >>> read_pictures("nowhere")
        Traceback (most recent call last):
        ...
        act_core.errors.FitError: nowhere is not a folder; give a folder of pictures.
    """
    return [Picture(_read(path), _caption(path) if captions else "") for path in _files(Path(folder).expanduser())]


def has_captions(folder: str | os.PathLike[str]) -> bool:
    """Whether any picture in a folder has a text file beside it.

    Raises:
        FitError: as `read_pictures`.

    Example:
        >>> has_captions("nowhere")
        Traceback (most recent call last):
        ...
        act_core.errors.FitError: nowhere is not a folder; give a folder of pictures.
    """
    return any(path.with_suffix(".txt").is_file() for path in _files(Path(folder).expanduser()))


def is_picture(path: Path) -> bool:
    """Whether a path is a file that is a picture by its name.

    Hidden files are not: macOS writes ``._cat.png`` beside ``cat.png`` on disks of other systems.

    Example:
        >>> is_picture(Path("nowhere.png"))
        False
    """
    return path.suffix.lower() in _SUFFIXES and not path.name.startswith(".") and path.is_file()


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise FitError(f"{folder} is not a folder; give a folder of pictures.")
    try:
        paths = sorted(path for path in folder.iterdir() if is_picture(path))
    except OSError as error:
        raise FitError(f"{folder} cannot be read: {error.strerror or error}.") from error
    if not paths:
        raise FitError(f"{folder} holds no pictures; put some there, as PNG, JPEG or WebP files.")
    return paths


def _read(path: Path) -> Image.Image:
    try:
        opened: Any = Image.open(path)
        with opened:
            return as_rgb(ImageOps.exif_transpose(opened))
    except Image.DecompressionBombError as error:
        raise FitError(f"{path.name} is too large to be opened safely; make it smaller.") from error
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError) as error:
        raise FitError(f"{path.name} is not a picture that can be read; remove it, or save it again.") from error


def as_rgb(image: Image.Image) -> Image.Image:
    """An image in RGB: 16-bit values are scaled to 8 bits, and transparent pixels are put on white.

    Example:
        >>> as_rgb(Image.new("LA", (1, 1), (0, 0))).getpixel((0, 0))
        (255, 255, 255)
    """
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, dtype=np.float64)
        # Pillow would clip them.
        top = 1.0 if image.mode == "F" else 65535.0
        image = Image.fromarray((values / top * 255).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(background, image)
    return image.convert("RGB")


def _caption(path: Path) -> str:
    beside = path.with_suffix(".txt")
    try:
        text = " ".join(beside.read_text(encoding="utf-8-sig").split())
    except FileNotFoundError:
        raise FitError(f"{path.name} has no caption; write one into {beside.name}, or leave captions out.") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise FitError(f"{beside.name} cannot be read: {reason}.") from error
    if is_blank(text):
        raise FitError(f"{beside.name} is empty; write a caption there, or leave captions out.")
    return text


def as_values(image: Image.Image, width: int, height: int) -> Any:
    """An image resized and cropped around its centre, as float32 ``[3, height, width]`` from -1 to 1.

    Example:
        >>> as_values(Image.new("RGB", (30, 10), "white"), 4, 2).shape
        (3, 2, 4)
    """
    fitted = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    values: Any = np.asarray(fitted, dtype=np.float32)
    return values.transpose(2, 0, 1) / 127.5 - 1


def check_pictures(pictures: list[Picture]) -> None:
    """Refuse pictures from which no style can be learned.

    Raises:
        FitError: fewer than two, or all the same.

    Example:
        >>> check_pictures([Picture(Image.new("RGB", (2, 2)))] * 2)
        Traceback (most recent call last):
        ...
        act_core.errors.FitError: All pictures are the same; give at least two different ones.
    """
    if len(pictures) < 2:
        count = "is 1 picture" if pictures else "are no pictures"
        raise FitError(f"There {count}; a style needs at least two, and a dozen or more work better.")
    if same_pictures(pictures[:1] * (len(pictures) - 1), pictures[1:]):
        raise FitError("All pictures are the same; give at least two different ones.")


def same_pictures(some: Sequence[Picture], others: Sequence[Picture]) -> bool:
    """Whether two lists hold the same pictures in the same order, whatever their captions.

    Example:
        >>> white = Picture(Image.new("RGB", (2, 2), "white"))
        >>> same_pictures([white], [Picture(Image.new("RGB", (2, 2)))])
        False
    """
    return len(some) == len(others) and all(
        one.image.size == other.image.size and one.image.tobytes() == other.image.tobytes()
        for one, other in zip(some, others, strict=True)
    )
