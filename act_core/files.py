"""Atomic file writes."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

_PART = re.compile(r"\.[0-9a-f]{16}\.part")
# Longer than a save is silent: an older temporary file was left behind by a killed process.
_ABANDONED_SECONDS = 60

Check = Callable[[Path], object]


def write_whole(path: Path, data: bytes, check: Check | None = None) -> None:
    """Replace a file atomically: at any time it holds either all of the old content or all of the new.

    The data is written to a file without a name, or where the system has no such files, to a hidden one in the same
    folder. The file gets its name once it is on disk; one without a name is hidden for the instant before. Hidden files
    that killed processes left in this folder are removed.

    Args:
        path: the file; if it is a symbolic link, its target is replaced.
        data: all of the new content.
        check: called with a path of the new file; if it raises, the old content stays.

    Raises:
        OSError: the folder cannot be written, or the disk is full.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_whole(Path(folder, "a.txt"), b"whole")
        ...     [file.name for file in Path(folder).iterdir()]
        ['a.txt']
    """
    path = Path(os.path.realpath(path))  # Path.resolve raises for links in a loop; such a link is replaced
    part = path.with_name(f".{secrets.token_hex(8)}.part")
    unnamed = _open_unnamed(path.parent)
    try:
        if unnamed is None:
            with part.open("xb") as file:
                _write(file, data)
            if check is not None:
                check(part)
            part.replace(path)
        else:
            with unnamed as file:
                _write(file, data)
                link = Path(f"/proc/self/fd/{file.fileno()}")
                if check is not None:
                    check(link)
                # A folder is named, though it plays no part, since Python follows the link only then.
                os.link(link, part, src_dir_fd=file.fileno())
                part.replace(path)  # at once: a process that is killed before it leaves a hidden file
    finally:
        part.unlink(missing_ok=True)
    _remove_abandoned(path.parent)


def _open_unnamed(folder: Path) -> BinaryIO | None:
    """A new file that vanishes unless it is given a name; None where there is no such thing."""
    if not hasattr(os, "O_TMPFILE") or not Path("/proc/self/fd").is_dir():
        return None
    try:
        # Files made by `tempfile` can be read only by their owner.
        return os.fdopen(os.open(folder, os.O_TMPFILE | os.O_WRONLY, 0o666), "wb")
    except OSError:  # of another kind of file system; what else is wrong, the next attempt reports
        return None


def _write(file: BinaryIO, data: bytes) -> None:
    file.write(data)
    file.flush()
    os.fsync(file.fileno())


def _remove_abandoned(folder: Path) -> None:
    now = time.time()
    with contextlib.suppress(OSError):  # files of other users in a shared folder
        for file in folder.glob(".*.part"):
            if _PART.fullmatch(file.name) and now - file.stat().st_mtime > _ABANDONED_SECONDS:
                file.unlink(missing_ok=True)
