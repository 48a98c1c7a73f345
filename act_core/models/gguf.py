"""GGUF files: unpacked once into a model folder in the user's cache, from which they load in a second."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import tempfile
from pathlib import Path
from typing import Any, cast

import transformers

from ..errors import MapError, first_line
from .kinds import LOCAL_ONLY, check_loadable

logger = logging.getLogger(__name__)

# Bytes at each end of a file that, with its size, identify it.
# Of a file of any size, this much is read to tell it from others: so many pieces, from its beginning to its end.
_PIECES, _PIECE = 256, 1 << 16


def unpacked(gguf: Path) -> Path:
    """The model folder that a GGUF file was dequantised into; the first call makes it.

    Raises:
        MapError: a package is missing, the file is damaged, or it holds something other than a causal language model.
    """
    if importlib.util.find_spec("gguf") is None or importlib.util.find_spec("accelerate") is None:
        raise MapError(f"Reading {gguf.name} requires two packages; run 'pip install gguf accelerate'.")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "act-steering"
    folder = cache / f"{gguf.stem}-{content_id(gguf)}"
    if folder.is_dir():
        return folder
    size = gguf.stat().st_size / 1e6
    # A warning, since most programs hide `info`, and the user should know what takes so long.
    logger.warning("Unpacking %s (%.0f MB) into %s. This happens once and may take a minute.", gguf.name, size, folder)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as part:
            whole = Path(part) / "model"
            _dequantise(gguf, whole)
            whole.rename(folder)
    except Exception as error:
        if folder.is_dir():  # another process was faster
            return folder
        raise MapError(f"{gguf.name} could not be unpacked into {cache}: {first_line(error)}") from error
    return folder


def _dequantise(gguf: Path, folder: Path) -> None:
    file: dict[str, Any] = {"gguf_file": gguf.name, **LOCAL_ONLY}
    check_loadable(gguf.name, transformers.AutoConfig.from_pretrained(gguf.parent, **file))
    # transformers 5 keeps the weights quantised unless a setting is given that transformers 4 does not have.
    config = getattr(transformers, "GgufConfig", None)
    dense = {"quantization_config": config(dequantize=True)} if config else {}
    module = transformers.AutoModelForCausalLM.from_pretrained(gguf.parent, **dense, **file)
    tokenizer = cast("Any", transformers.AutoTokenizer.from_pretrained)(gguf.parent, **file)
    module.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def content_id(file: Path) -> str:
    """A short id for the content of a file, from its size and pieces of all of it; it does not depend on the path.

    Finetunes may differ in some layers alone.
    """
    size = file.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with file.open("rb") as content:
        for number in range(_PIECES):
            content.seek(max(0, size - _PIECE) * number // (_PIECES - 1))
            digest.update(content.read(_PIECE))
    return digest.hexdigest()[:12]
