"""Atomic file writes."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import time
from collections.abc import Callable
from pathlib import Path

_PART = re.compile(r"\.[0-9a-f]{16}\.part")
# Longer than any save takes: an older temporary file was left behind by a killed process.
_ABANDONED_SECONDS = 3600


def write_whole(path: Path, data: bytes, check: Callable[[Path], object] | None = None) -> None:
    """Replace a file atomically: at any time it holds either all of the old content or all of the new.

    The data is written to a hidden file next to it, which is renamed once it is on disk. Hidden files that killed
    processes left in this folder are removed.

    Args:
        path: the file; if it is a symbolic link, its target is replaced.
        data: all of the new content.
        check: called with the path of the hidden file; if it raises, the old content stays.

    Raises:
        OSError: the folder cannot be written, or the disk is full.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_whole(Path(folder, "a.txt"), b"whole")
        ...     [file.name for file in Path(folder).iterdir()]
        ['a.txt']
    """
    path = path.resolve()
    part = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        # Files made by `tempfile` can be read only by their owner.
        with part.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if check is not None:
            check(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    _remove_abandoned(path.parent)


def _remove_abandoned(folder: Path) -> None:
    now = time.time()
    with contextlib.suppress(OSError):  # files of other users in a shared folder
        for file in folder.glob(".*.part"):
            if _PART.fullmatch(file.name) and now - file.stat().st_mtime > _ABANDONED_SECONDS:
                file.unlink(missing_ok=True)
