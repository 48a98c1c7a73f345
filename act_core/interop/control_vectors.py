"""Control vectors in GGUF files, as repeng, EasySteer and llama.cpp write and read them.

The tensor ``direction.N`` is added to the output of block N, counted from 0: repeng and EasySteer write it so, and
llama.cpp, whose loader puts ``direction.N`` at index N - 1 of a list that begins with block 1, applies it so. It
refuses ``direction.0``, because that list has no place for block 0; EasySteer writes it nevertheless. Files of some
scripts count from 1, which nothing in them shows: import those with an offset of -1.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ..components import DIFFUSION_MODEL
from ..errors import MapFileError, MapMismatchError
from ..files import write_whole
from ..mapfile.format import MAX_CHANNELS
from ..maps import ActMap
from ..sites import Site
from ..text import plain_text, shorten
from .blocks import blocks_of, is_language_model, known_kind, number_of
from .gguf_files import Gguf, packed, read_header, read_vector

ARCHITECTURE = "controlvector"
SUFFIX = ".gguf"
_HINT, _COUNT, _METHOD = (f"{ARCHITECTURE}.{key}" for key in ("model_hint", "layer_count", "method"))
_NAME = re.compile(r"direction\.(0|[1-9][0-9]{0,3})")


def read_control_vector(path: Path, architecture: str | None, model: Path | None, offset: int) -> ActMap:
    """The map of a control vector.

    Args:
        path: of the file.
        architecture, model: as for `act_core.interop.blocks.blocks_of`; by default the file's own hint.
        offset: added to the number of each layer.

    Raises:
        MapFileError: it is damaged, is not a control vector, or does not fit the model.
        OSError: it cannot be opened.
    """
    header = read_header(path)
    if (kind := header.text("general.architecture")) != ARCHITECTURE:
        is_model = f"a model ({shorten(plain_text(kind), 40)})" if kind else "another kind of GGUF file"
        raise MapFileError(f"it is {is_model}, not a control vector; give the file of a control vector.")
    hint = shorten(plain_text(header.text(_HINT)), 60)
    notes = [f"imported from the GGUF control vector {path.name}"]
    notes += [f"model hint {hint}"] if hint else []
    notes += [f"method {shorten(plain_text(method), 60)}"] if (method := header.text(_METHOD)) else []
    notes += [f"layer numbers offset by {offset}"] if offset else []
    blocks = blocks_of(architecture, model, hint)
    return blocks.mean_map(_directions(path, header, offset), tuple(notes), path.stem)


def _directions(path: Path, header: Gguf, offset: int) -> dict[int, Tensor]:
    """Vectors by number of the block."""
    vectors: dict[int, Tensor] = {}
    for name, tensor in header.tensors.items():
        found = _NAME.fullmatch(name)
        if not found:
            raise MapFileError(f"it has the tensor {shorten(plain_text(name), 60)!r}, which is not a direction.")
        if not 0 < math.prod(tensor.shape) <= MAX_CHANNELS:
            raise MapFileError(f"{name} has shape {list(tensor.shape)}, not that of a vector.")
        vectors[int(found[1]) + offset] = read_vector(path, tensor)
    return vectors


def export_control_vector(act_map: ActMap, path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Write a map that adds a vector to the output of blocks as a GGUF control vector.

    Args:
        act_map: its slopes are 1, as those of estimator ``mean`` are; its sites are outputs of blocks (preset
            ``blocks``) of one language model, without observed or gated support or noise levels.
        path: of the file, which ends in ``.gguf``.

    Returns:
        What was left out, a sentence each: llama.cpp cannot steer block 0.

    Raises:
        MapMismatchError: the map is not of that kind.
        MapFileError: the file cannot be written.

    Example:
        >>> import tempfile
        >>> site = Site("language_model", "model.layers.3", None, "tokens", 2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     export_control_vector(ActMap({site: Transport(torch.ones(2), torch.ones(2))}), f"{folder}/calm.gguf")
        ()
    """
    path = Path(path)
    if path.suffix != SUFFIX:
        raise MapFileError(f"{path.name} is not a name for a control vector; it must end in {SUFFIX}.")
    vectors = _vectors(act_map)
    notes: list[str] = []
    if (first := vectors.pop(0, None)) is not None:
        total = sum(float(vector.double().square().sum()) for vector in (first, *vectors.values()))
        share = float(first.double().square().sum()) / total if total else 0.0
        notes.append(
            f"Block 0 is left out, because llama.cpp cannot steer it; it has {share:.0%} of the squared shift."
        )
    if not vectors:
        raise MapMismatchError(f"{act_map.called} steers block 0 alone, which a control vector cannot hold.")
    values = {"general.architecture": ARCHITECTURE, _HINT: _hint(act_map), _COUNT: len(vectors)}
    data = packed(values, {f"direction.{number}": vectors[number] for number in sorted(vectors)})
    try:
        write_whole(path, data)
    except OSError as error:
        raise MapFileError(f"{path} could not be written: {error.strerror or error}; choose another folder.") from error
    return tuple(notes)


def _vectors(act_map: ActMap) -> dict[int, Tensor]:
    vectors: dict[int, Tensor] = {}
    component, *others = act_map.components
    if others:
        raise MapMismatchError(
            f"{act_map.called} steers {' and '.join(act_map.components)}; restrict it to one of them."
        )
    base = act_map.record.base.get(component)
    if component == DIFFUSION_MODEL or (base is not None and not is_language_model(base)):
        model = shorten(base.architecture, 40) if base else component
        raise MapMismatchError(
            f"{act_map.called} steers {model}, which is not a language model; only maps of language models can be "
            "control vectors."
        )
    for site, transport in act_map.transports.items():
        number = number_of(site)
        if reason := _why_left_out(number, act_map, site, vectors):
            raise MapMismatchError(
                f"{act_map.called} is not a control vector: {reason}. Fit it with estimator mean and sites blocks."
            )
        assert number is not None
        vectors[number] = transport.beta
    if len({len(vector) for vector in vectors.values()}) > 1:
        raise MapMismatchError(f"{act_map.called} has blocks of different sizes, which a control vector cannot hold.")
    return vectors


def _why_left_out(number: int | None, act_map: ActMap, site: Site, vectors: Mapping[int, Tensor]) -> str:
    """Why a site cannot be in a control vector; empty if it can."""
    transport = act_map.transports[site]
    if number is None or number in vectors:
        return f"its site {site.key} is not the output of a block"
    if not transport.is_affine or transport.bins:
        return f"at {site.key} it depends on {transport.conditions[0] if transport.conditions else 'the noise level'}"
    if not bool((transport.omega == 1).all()):
        return f"at {site.key} it also scales"
    return ""


def _hint(act_map: ActMap) -> str:
    base = act_map.record.base.get(act_map.components[0])
    if base is None:
        return ""
    return known_kind(base.model_class) or base.architecture
