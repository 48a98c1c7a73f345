"""The blocks of language models, which steering vectors name by number alone."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from ..architectures import ARCHITECTURES, Architecture
from ..components import LANGUAGE_MODEL
from ..errors import MapFileError
from ..mapfile.format import MAX_CHANNELS
from ..maps import ActMap
from ..records import Card, Fingerprint, FitRecord
from ..sites import Site
from ..text import plain_text, shorten
from ..transport import Transport
from . import gguf_files

_MAX_CONFIG_BYTES = 1 << 20
# What other tools call these kinds: llama.cpp, repeng, EasySteer.
_OTHER_NAMES = {
    "qwen": "qwen2",
    "qwen2.5": "qwen2",
    "qwen2moe": "qwen2_moe",
    "qwen3moe": "qwen3_moe",
    "gptneox": "gpt_neox",
    "gemma3": "gemma3_text",
    "deepseek2": "deepseek_v2",
    "gpt-oss": "gpt_oss",
    "llama2": "llama",
    "llama3": "llama",
}
_NUMBERED = re.compile(r"(?:.+\.)?(?:layers|h|blocks)\.(0|[1-9][0-9]{0,3})")


@dataclass(frozen=True)
class Blocks:
    """The blocks of one kind of language model.

    Attributes:
        kind: ``model_type`` of its configuration in transformers.
        width: channels of a block's output; None if not known.
        count: how many blocks; None if not known.
    """

    kind: str
    width: int | None = None
    count: int | None = None

    def mean_map(self, vectors: Mapping[int, Tensor], notes: tuple[str, ...], title: str) -> ActMap:
        """The map that adds a vector to the output of each of these blocks: slopes 1, the vector as offset.

        Args:
            vectors: float32 ``[channels]`` by number of the block, counted from 0.
            notes: where they come from.
            title: of the map.

        Raises:
            MapFileError: they do not fit the model.

        Example:
            >>> Blocks("llama").mean_map({3: torch.ones(2)}, (), "happy")["language_model/model.layers.3"].beta
            tensor([1., 1.])
        """
        if not vectors:
            raise MapFileError("it holds no vector.")
        widths = {len(vector) for vector in vectors.values()}
        if len(widths) > 1:
            raise MapFileError(f"its vectors have different sizes ({', '.join(map(str, sorted(widths)[:4]))}).")
        width, highest = widths.pop(), max(vectors)
        if not 0 < width <= MAX_CHANNELS or min(vectors) < 0:
            raise MapFileError(f"it has vectors of {width} channels for block {min(vectors)}, which no model has.")
        if self.width not in (None, width):
            raise MapFileError(f"its vectors have {width} channels, but the model has {self.width}; it is for another.")
        if self.count is not None and highest >= self.count:
            raise MapFileError(
                f"it has a vector for block {highest}, but the blocks of the model end with {self.count - 1}; it is "
                "for another model, or counts from 1 (--layer-offset -1)."
            )
        if not all(bool(vector.isfinite().all()) for vector in vectors.values()):
            raise MapFileError("its vectors have values that are not finite.")
        name = _record_of(self.kind).block
        sites = {n: Site(LANGUAGE_MODEL, name.format(n), None, "tokens", width) for n in sorted(vectors)}
        transports = {site: Transport(torch.ones(width), vectors[n].clone()) for n, site in sites.items()}
        record = FitRecord(
            estimator="mean",
            order="simultaneous",
            base={LANGUAGE_MODEL: Fingerprint(self.kind, "")},
            notes=tuple(plain_text(note) for note in notes),
        )
        return ActMap(transports, record, Card(title=plain_text(title)))


def blocks_of(architecture: str | None, model: Path | None, hint: str = "") -> Blocks:
    """The blocks of the model that vectors are for.

    Args:
        architecture: kind of the model, such as ``qwen2``.
        model: its folder or GGUF file, of which only the description is read.
        hint: kind that the file of the vectors names, which applies if nothing else is given.

    Raises:
        MapFileError: none of them is given, or the kind is not known.

    Example:
        >>> blocks_of("Qwen2.5", None).kind
        'qwen2'
    """
    found = _described(model) if model is not None else Blocks(_known(architecture or hint))
    if architecture and _known(architecture) != found.kind:
        raise MapFileError(f"--architecture is {architecture}, but {model} is {found.kind}; give one of the two.")
    _record_of(found.kind)
    return found


def number_of(site: Site) -> int | None:
    """The number of the block whose output a site is; None for any other site.

    Example:
        >>> number_of(Site("language_model", "model.layers.3", None, "tokens", 2))
        3
    """
    found = _NUMBERED.fullmatch(site.name)
    is_output = site.layout == "tokens" and site.output in (None, 0) and site.segment is None
    return int(found[1]) if found and is_output else None


def is_language_model(base: Fingerprint) -> bool:
    """Whether a map was fitted on a causal language model, also one of a family without a record.

    Example:
        >>> [is_language_model(Fingerprint(name, "")) for name in ("llama", "WanModel", "unheard_of")]
        [True, False, True]
    """
    known = [architecture for architecture in ARCHITECTURES if base.architecture in architecture.kinds]
    return not known or any(architecture.block for architecture in known)


def known_kind(text: str) -> str:
    """The kind of model that a text names, in any spelling; empty if none.

    Example:
        >>> known_kind("Qwen2ForCausalLM"), known_kind("GPTNeoX"), known_kind("toy")
        ('qwen2', 'gpt_neox', '')
    """
    plain = text.strip().lower().removesuffix("forcausallm").removesuffix("lmheadmodel")
    kinds = {kind: kind for architecture in _language() for kind in architecture.kinds}
    spelled = {**{kind.replace("_", ""): kind for kind in kinds}, **kinds, **_OTHER_NAMES}
    return spelled.get(plain, "")


def _known(text: str) -> str:
    if not text:
        raise MapFileError(
            "it does not say which model it is for; give --architecture, such as qwen2, or --model with its folder."
        )
    kind = known_kind(text)
    if not kind:
        kinds = ", ".join(architecture.name for architecture in _language())
        raise MapFileError(
            f"the kind of model {shorten(plain_text(text), 40)!r} is not known; give --architecture, such as {kinds}."
        )
    return kind


def _language() -> list[Architecture]:
    return [architecture for architecture in ARCHITECTURES if architecture.block]


def _record_of(kind: str) -> Architecture:
    found = [architecture for architecture in _language() if kind in architecture.kinds]
    if not found:
        raise MapFileError(
            f"the names of the blocks of a {kind} model are not known, so no vector can be placed there."
        )
    return found[0]


def _described(model: Path) -> Blocks:
    """What the configuration of a model says, or the header of its GGUF file."""
    try:
        if model.suffix == ".gguf":
            header = gguf_files.read_header(model)
            kind = header.text("general.architecture")
            width, count = (header.number(f"{kind}.{key}") for key in ("embedding_length", "block_count"))
            return Blocks(_known(kind), width, count)
        config = model / "config.json"
        if config.stat().st_size > _MAX_CONFIG_BYTES:
            raise MapFileError(f"{config} is too large to be the configuration of a model.")
        values: Any = json.loads(config.read_bytes())
        values = values.get("text_config", values)
        sizes = [
            next((size for key in keys if type(size := values.get(key)) is int), None)
            for keys in (("hidden_size", "n_embd"), ("num_hidden_layers", "n_layer"))
        ]
        return Blocks(_known(str(cast("object", values.get("model_type", "")))), *sizes)
    except OSError as error:
        raise MapFileError(
            f"{model} cannot be read ({error.strerror or error}); give a model folder or file."
        ) from error
    except (AttributeError, RecursionError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise MapFileError(f"{model} is not a model folder whose configuration can be read.") from error
