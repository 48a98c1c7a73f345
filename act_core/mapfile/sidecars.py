"""Files beside a map, for tools that show models but do not read its header."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from ..errors import MapFileError
from ..files import write_whole
from .read import load_map


def write_sidecars(path: str | os.PathLike[str], *, overwrite: bool = False) -> list[Path]:
    """Write the cover of a map as ``<name>.jpg``, and ``<name>.metadata.json`` as ComfyUI-Lora-Manager reads it.

    A map without a cover gets no picture.

    Args:
        path: of the map.
        overwrite: replace files of these names, which may have tags and notes of the user.

    Returns:
        What was written.

    Raises:
        MapFileError: the map cannot be read, or the files exist or cannot be written.

    Example:
        >>> write_sidecars("nowhere.safetensors")
        Traceback (most recent call last):
        ...
        act_core.errors.MapFileError: nowhere.safetensors cannot be read: No such file or directory.
    """
    path = Path(path)
    act_map = load_map(path)
    card = act_map.card
    data = path.read_bytes()
    ends = card.strength_range
    usage: dict[str, float] = {}
    if ends is not None:
        low, high = sorted(ends)
        # Managers insert the map at this strength.
        usage = {"strength_min": low, "strength_max": high, "strength": max(low, min(1.0, high))}
    metadata: dict[str, Any] = {
        "file_name": path.stem,
        "model_name": card.title or path.stem,
        # Not the whole path, which would show others the folders of this computer; the manager fills it in.
        "file_path": path.name,
        "size": len(data),
        "modified": path.stat().st_mtime,
        "sha256": hashlib.sha256(data).hexdigest(),
        "base_model": act_map.record.model or "Unknown",
        "preview_url": "",
        "notes": "\n".join(text for text in (card.usage_hint, *map(str, act_map.evidence)) if text),
        "from_civitai": False,
        "tags": [tag.strip() for tag in card.tags.split(",") if tag.strip()],
        "modelDescription": card.description,
        "usage_tips": json.dumps(usage),
    }
    files = {path.with_name(f"{path.stem}.metadata.json"): json.dumps(metadata, indent=2).encode()}
    if card.cover:
        files[path.with_name(f"{path.stem}.jpg")] = card.cover
    for file in files:
        if file.exists() and not overwrite:
            raise MapFileError(f"{file} already exists; move it away, or allow it to be overwritten.")
    for file, content in files.items():
        try:
            write_whole(file, content)
        except OSError as error:
            raise MapFileError(f"{file} could not be written: {error.strerror or error}.") from error
    return list(files)
