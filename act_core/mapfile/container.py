"""Safetensors files whose bytes depend on their content alone, and their ModelSpec keys: of maps, and of LoRAs."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone

import safetensors.torch
from torch import Tensor

from ..records import CARD_TEXTS, Card, Fingerprint
from .format import HASH_KEY


class Container:
    """Tensors as a file holds them. Its header is not written by the library, whose order of metadata varies.

    Attributes:
        sha256: of everything after the header, in hexadecimal.

    Example:
        >>> container = Container({"a": torch.zeros(2)})
        >>> data = container.file(container.header({"title": "calm"}))
        >>> safetensors.torch.load(data)
        {'a': tensor([0., 0.])}
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        data = safetensors.torch.save(dict(tensors))
        start = 8 + int.from_bytes(data[:8], "little")
        self._described, self._content = json.loads(data[8:start]), data[start:]
        self.sha256 = hashlib.sha256(self._content).hexdigest()

    def header(self, metadata: Mapping[str, str]) -> bytes:
        """The header of the file, with the hash of the tensors before the other metadata."""
        described = {"__metadata__": {HASH_KEY: f"0x{self.sha256}", **metadata}, **self._described}
        header = json.dumps(described, ensure_ascii=False, separators=(",", ":")).encode()
        return header + b" " * (-len(header) % 8)

    def file(self, header: bytes) -> bytes:
        """The whole file."""
        return len(header).to_bytes(8, "little") + header + self._content


def modelspec(card: Card, base: Iterable[Fingerprint], kind: str) -> dict[str, str]:
    """The ModelSpec keys that tools for model files show.

    Args:
        card: of the map.
        base: fingerprints of the components of its base model.
        kind: of the file, such as ``lora``.

    Example:
        >>> modelspec(Card(title="Calm"), [Fingerprint("unet", "")], "lora")["modelspec.architecture"]
        'unet/lora'
    """
    return {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "+".join(one.architecture for one in base) + f"/{kind}",
        "modelspec.implementation": "act-steering",
        "modelspec.date": _now().date().isoformat(),
        **{f"modelspec.{name}": str(getattr(card, name)) for name in CARD_TEXTS},
    }


def _now() -> datetime:
    """The current time, or that in SOURCE_DATE_EPOCH, for files that can be made again bit for bit."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    return datetime.fromtimestamp(int(epoch), timezone.utc) if epoch.isdecimal() else datetime.now(timezone.utc)
