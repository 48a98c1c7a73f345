"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import time
from collections.abc import Callable
from pathlib import Path

_PART = re.compile(r"\.[0-9a-f]{16}\.part")
# No save takes as long; a part that is older was left by a process that was killed.
_ABANDONED_SECONDS = 3600


def write_whole(path: Path, data: bytes, check: Callable[[Path], object] | None = None) -> None:
    """Replace a file, such that its name stands for the old content or for all of the new at any time.

    The data goes to a hidden file beside it, which takes its name once it is on the disk. Hidden files that killed
    processes have left in this folder are removed.

    Args:
        path: the file; a link stays a link, and what it points to is replaced.
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
        # A temporary file of the standard library could only be read by its owner.
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
    with contextlib.suppress(OSError):  # of others, in a folder that several share
        for file in folder.glob(".*.part"):
            if _PART.fullmatch(file.name) and now - file.stat().st_mtime > _ABANDONED_SECONDS:
                file.unlink(missing_ok=True)
