"""Steering vectors in files of torch and numpy: those of CAA, EasySteer and steering-vectors.

They are added to the output of a block, counted from 0. A file holds one vector (CAA, EasySteer), whose layer must be
given; rows of vectors, with as many layers; or a dictionary from layers to vectors, which steering-vectors calls
``layer_activations``.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from ..errors import MapFileError
from ..mapfile.format import MAX_CHANNELS
from ..maps import ActMap
from .blocks import blocks_of
from .torch_files import read_bytes, read_torch, vector_of

_MAX_LAYERS = 1000
# The header that numpy writes; others are refused, so that nothing in it is evaluated.
_NPY = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '[<|=](f[248])', 'fortran_order': False, 'shape': \(([0-9, ]{0,60})\), *\} *\n",
    re.DOTALL,
)


def read_vectors(
    path: Path, architecture: str | None, model: Path | None, layers: Sequence[int], offset: int
) -> ActMap:
    """The map of the vectors in a ``.pt`` or ``.npy`` file.

    Args:
        path: of the file.
        architecture, model: as for `act_core.interop.blocks.blocks_of`.
        layers: numbers of the blocks, if the file does not hold them.
        offset: added to the number of each layer.

    Raises:
        MapFileError: it is damaged, does not hold vectors, or does not fit the model.
        OSError: it cannot be opened.
    """
    with path.open("rb") as file:
        is_numpy = file.read(6) == b"\x93NUMPY"
    content = _read_npy(path) if is_numpy else read_torch(path)
    vectors = {number + offset: vector for number, vector in _by_layer(content, layers).items()}
    notes = [f"imported from the steering vector {path.name}"]
    notes += [f"layer numbers offset by {offset}"] if offset else []
    return blocks_of(architecture, model).mean_map(vectors, tuple(notes), path.stem)


def _by_layer(content: object, layers: Sequence[int]) -> dict[int, Tensor]:
    if isinstance(content, Mapping):
        content = _inner(cast("Mapping[object, object]", content))
    if isinstance(content, Mapping):
        if layers:
            raise MapFileError("it says which layers its vectors are for; leave out --layer.")
        numbered = {_number(key): value for key, value in cast("Mapping[object, object]", content).items()}
        if len({id(value) for value in numbered.values()}) < len(numbered):
            # Each layer gets a copy, so a small file could fill the memory.
            raise MapFileError("it has one vector for several layers; save that alone, and give --layer for each.")
        return {number: vector_of(f"the vector of layer {number}", value) for number, value in numbered.items()}
    if not layers:
        raise MapFileError("it does not say which layer its vector is for; give --layer.")
    if len(layers) > _MAX_LAYERS or len(set(layers)) < len(layers):
        raise MapFileError("the layers are given twice, or are more than any model has.")
    if isinstance(content, Tensor) and content.ndim == 2 and 1 < len(content) <= _MAX_LAYERS and content.shape[1] > 1:
        if len(layers) != len(content):
            raise MapFileError(f"it holds {len(content)} vectors for {len(layers)} layers; give --layer for each.")
        return {layer: vector_of(f"row {row}", content[row]) for row, layer in enumerate(layers)}
    return dict.fromkeys(layers, vector_of("it", content))


def _inner(content: Mapping[object, object]) -> object:
    """The vectors of a dictionary: those by layer, or the only tensor in it."""
    kind = content.get("layer_type", "decoder_block")
    if not isinstance(kind, str) or kind != "decoder_block":
        other = reprlib.repr(kind) if isinstance(kind, str) else "another kind of layer"
        raise MapFileError(f"its vectors are for {other}, and only those for decoder_block can be imported.")
    inner = content.get("layer_activations", content)
    if not isinstance(inner, Mapping) or len(cast("Mapping[object, object]", inner)) > _MAX_LAYERS:
        raise MapFileError("it is a checkpoint or another kind of file, not a steering vector.")
    items = cast("Mapping[object, object]", inner)
    tensors = [value for value in items.values() if isinstance(value, Tensor)]
    is_named = len(tensors) == 1 and not any(_is_number(key) for key in items)
    return tensors[0] if is_named else items


def _is_number(key: object) -> bool:
    return type(key) is int or (isinstance(key, str) and bool(re.fullmatch("[0-9]{1,4}", key)))


def _number(key: object) -> int:
    if not _is_number(key) or not -1 <= int(cast("str", key)) < _MAX_LAYERS * 10:
        raise MapFileError(
            f"it holds {reprlib.repr(key)} in place of the number of a layer, so it is a checkpoint or another kind of "
            "file, not a steering vector."
        )
    return int(cast("str", key))


def _read_npy(path: Path) -> Tensor:
    """An array of floating-point numbers; a header of any other kind is refused, so no pickle is ever read."""
    data = read_bytes(path)
    found = _NPY.match(data)
    if not found or len(found[0]) != 10 + int.from_bytes(data[8:10], "little"):
        raise MapFileError("it is not an array of floating-point numbers as numpy saves it; save it again as float32.")
    kind = np.dtype(f"<{found[1].decode()}")
    sizes = [part.strip() for part in found[2].decode().split(",") if part.strip()]
    if not all(size.isdecimal() for size in sizes):
        raise MapFileError("the shape of its array is damaged; save it again.")
    shape = [int(size) for size in sizes]
    count = math.prod(shape)
    if count * kind.itemsize != len(data) - len(found[0]) or not 0 < count <= MAX_CHANNELS * _MAX_LAYERS:
        raise MapFileError(f"it declares an array of shape {shape}, which is not what the file holds; save it again.")
    return torch.from_numpy(np.frombuffer(data, kind, offset=len(found[0])).astype("<f4")).reshape(shape)
