"""Imports maps and steering vectors of other tools, by what their files are rather than by their names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ..errors import MapError, MapFileError
from ..mapfile.format import SUFFIX as MAP_SUFFIX
from ..mapfile.read import read_map
from ..maps import ActMap
from ..text import plain_text
from .control_vectors import read_control_vector
from .gguf_files import MAGIC
from .ml_act import SUFFIX, HookEstimator, read_hooks
from .vectors import read_vectors

_KNOWN = "a GGUF control vector, a .pt or .npy steering vector, or a folder of .statedict files"


def import_map(
    path: str | os.PathLike[str],
    *,
    architecture: str | None = None,
    model: str | os.PathLike[str] | None = None,
    layers: Sequence[int] = (),
    layer_offset: int = 0,
    estimator: HookEstimator | None = None,
) -> ActMap:
    """The map in a file or folder of another tool; its record notes say where it comes from.

    Nothing in the file is run, and it is read in bounded memory.

    Args:
        path: a GGUF control vector (repeng, EasySteer, llama.cpp), a ``.pt`` or ``.npy`` steering vector (CAA,
            EasySteer, steering-vectors), or a folder of ``.statedict`` files (apple/ml-act).
        architecture: kind of language model that the vectors are for, such as ``qwen2``; for a control vector by
            default that of its hint.
        model: folder or GGUF file of that model instead, with whose size the vectors are compared.
        layers: numbers of the blocks, counted from 0, for a file of vectors that does not hold them.
        layer_offset: added to the number of each layer; -1 for a file that counts from 1.
        estimator: ``mean`` or ``gaussian``, for hooks of apple/ml-act that do not say which of them they are.

    Raises:
        MapFileError: the file is damaged, is of another kind, or needs one of these arguments.

    Example:
        >>> import_map("nowhere.gguf")
        Traceback (most recent call last):
        ...
        act_core.errors.MapFileError: nowhere.gguf cannot be imported: No such file or directory.
    """
    path = Path(path)
    try:
        return _imported(path, architecture, Path(model) if model else None, layers, layer_offset, estimator)
    except MapError as error:
        raise MapFileError(f"{plain_text(path.name) or path} cannot be imported: {error}") from error
    except (OSError, ValueError) as error:  # a name with a null character is a ValueError
        reason = getattr(error, "strerror", None) or error
        raise MapFileError(f"{plain_text(path.name) or path} cannot be imported: {reason}.") from error


def _imported(
    path: Path,
    architecture: str | None,
    model: Path | None,
    layers: Sequence[int],
    offset: int,
    estimator: HookEstimator | None,
) -> ActMap:
    path.stat()  # raises if there is none
    if path.is_dir():
        return read_hooks(path, _hook_files(path), estimator, architecture, model)
    if not path.is_file():  # reading a device or a pipe may never end
        raise MapFileError(f"it is not a file; give {_KNOWN}.")
    with path.open("rb") as file:
        head = file.read(16)
    if head.startswith(MAGIC):
        if layers:
            raise MapFileError("a control vector says which layers it is for; leave out --layer.")
        return read_control_vector(path, architecture, model, offset)
    if path.suffix == SUFFIX:
        return read_hooks(path.parent, [path], estimator, architecture, model)
    if head.startswith((b"\x93NUMPY", b"PK\x03\x04")):
        return read_vectors(path, architecture, model, layers, offset)
    raise MapFileError(_why_unreadable(path, head))


def _hook_files(folder: Path) -> list[Path]:
    names = os.listdir(folder)
    files = [folder / name for name in names if name.endswith(SUFFIX)]
    if files:
        return files
    if not names:
        raise MapFileError("the folder is empty; give a folder of .statedict files.")
    if "adapter_config.json" in names:
        raise MapFileError("it is the folder of a LoRA, which changes weights; load it with a LoRA loader.")
    if "config.json" in names or "model_index.json" in names:
        raise MapFileError("it is the folder of a model; give a folder of .statedict files.")
    raise MapFileError("the folder holds no .statedict file; give the one that apple/ml-act wrote.")


def _why_unreadable(path: Path, head: bytes) -> str:
    """Why a file of no known format cannot be imported."""
    if head[:1] == b"\x80" and head[1:2] in b"\x00\x01\x02\x03\x04\x05":
        return "it is a pickle, which could run code; save its tensors with torch.save, or ask for another format."
    if path.suffix != MAP_SUFFIX:
        return f"it is not of a known format; give {_KNOWN}."
    try:
        read_map(path)
    except MapError as error:
        return str(error)
    return "it is an ACT map, which Load ACT Map takes as it is; copy it to the folder of maps."
