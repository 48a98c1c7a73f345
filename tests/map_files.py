"""Helpers that inspect and damage map files."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Generator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor

from act_core import ActMap, MapError, load_map, save_map
from act_core.transport import Transport

# Strings that must not appear in a message for users.
JARGON = ("Traceback", "Error(", "Exception", "object at 0x", 'File "', "torch.Size", "<class")


def bare(transport: Transport) -> Transport:
    return replace(transport, statistics=None)


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())


def header_bytes(path: Path) -> int:
    return int.from_bytes(path.read_bytes()[:8], "little")


@contextlib.contextmanager
def unprivileged() -> Generator[None]:
    """Drop root privileges in the block, so that file modes take effect."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def with_effect(act_map: ActMap, effect: float) -> ActMap:
    return ActMap({site: replace(t, effect=effect) for site, t in act_map.transports.items()}, act_map.record)


def assert_is_a_sentence(error: BaseException, path: Path) -> None:
    text = str(error)
    assert path.name in text
    assert not [word for word in JARGON if word in text]
    assert "\n" not in text
    assert text.endswith(".")


def refused(path: Path) -> str:
    with pytest.raises(MapError) as caught:
        load_map(path)
    assert_is_a_sentence(caught.value, path)
    return str(caught.value)


def packed(header: bytes, body: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + body


def rewritten(
    path: Path,
    act_map: ActMap,
    *,
    tensors: Mapping[str, Tensor | None] | None = None,
    metadata: Mapping[str, str | None] | None = None,
    site: Mapping[str, Any] | None = None,
    record: Mapping[str, Any] | None = None,
) -> Path:
    """A valid map file with some of its parts replaced (None removes them); `site` is for the first site."""
    save_map(act_map, path, statistics=True)
    held: dict[str, Any] = {**safetensors.torch.load_file(path), **(tensors or {})}
    header: dict[str, Any] = metadata_of(path)
    sites, fitted = json.loads(header["act.sites"]), json.loads(header["act.record"])
    sites[0] |= site or {}
    header |= {
        "act.sites": json.dumps(sites),
        "act.record": json.dumps({**fitted, **(record or {})}),
        **(metadata or {}),
    }
    safetensors.torch.save_file(
        {name: tensor for name, tensor in held.items() if tensor is not None},
        path,
        {name: text for name, text in header.items() if text is not None},
    )
    return path


CONV = "toy/conv.omega"


def jpeg() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "teal").save(file, "JPEG")
    return file.getvalue()
