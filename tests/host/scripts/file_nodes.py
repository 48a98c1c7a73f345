"""Run by the host's own Python: what nodes that read and write maps do with unusual files and inputs, as JSON."""

from __future__ import annotations

import io
import json
import tempfile
from pathlib import Path
from typing import Any

import inside

# isort: split
import folder_paths
import torch
from act_pack.act_core import ActMap, MapError, load_map, save_map
from act_pack.act_core.sites import Site
from act_pack.act_core.transport import Transport
from act_pack.nodes.host import folders
from act_pack.nodes.list_maps import ListACTMaps
from act_pack.nodes.map_files import LoadACTMap, SaveACTMap
from act_pack.nodes.stack import ACTMapStack
from PIL import Image

assert inside.PACK
BASE = Path(tempfile.mkdtemp())
folder_paths.models_dir = str(BASE / "models")
folder_paths.set_temp_directory(str(BASE / "temp"))
folders.register()
MAPS = BASE / "models" / "act_maps"
MAPS.mkdir(parents=True)
SITE = Site("model", "layer", None, "tokens", 2)
CARD: dict[str, Any] = {"title": "", "author": "", "description": "", "license": ""}
STRENGTHS = {"strength_low": 0.0, "strength_high": 1.0}


def map_of(offset: float) -> ActMap:
    return ActMap({SITE: Transport(torch.ones(2), torch.full((2,), offset))})


def jpeg(side: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), "red").save(file, "JPEG", quality=1)
    return file.getvalue()


def is_noticed(change: bool, **row: Any) -> bool:
    """Whether a stack notices that the file of its row is another one, or that nothing happened."""
    save_map(map_of(1.0), MAPS / "row.safetensors")
    before = ACTMapStack.fingerprint_inputs(map_1="row.safetensors", **row)
    if change:
        save_map(map_of(2.0), MAPS / "row.safetensors")
    return ACTMapStack.fingerprint_inputs(map_1="row.safetensors", **row) != before


def shown(cover: bytes) -> list[str]:
    """What Load ACT Map shows of a map with this cover."""
    save_map(map_of(1.0), MAPS / "covered.safetensors", title="Covered", cover=cover)
    output = LoadACTMap.execute("covered.safetensors")
    return sorted(output.ui)


def corner(channels: list[float], dtype: torch.dtype = torch.float32) -> tuple[int, ...]:
    """The first pixel of the cover that Save ACT Map makes of a picture of one colour."""
    pixels = torch.tensor(channels, dtype=dtype).expand(1, 16, 16, len(channels))
    name = SaveACTMap.execute(map_of(1.0), "thumbnail", **CARD, **STRENGTHS, thumbnail=pixels).args[0]
    with Image.open(io.BytesIO(load_map(MAPS / name).card.cover)) as picture:
        return picture.convert("RGB").getpixel((0, 0))


def saved_as(name: str) -> str:
    try:
        return folders.listed_name(folders.new_map(name))
    except MapError as error:
        return str(error)


def language_model(name: Any) -> str:
    """Where a language model is found inside the base folder, or why not."""
    try:
        return folders.find_language_model(name).relative_to(BASE).as_posix()
    except MapError as error:
        return str(error).replace(str(BASE), "")


def listing_of(contains: Any) -> str:
    try:
        return ListACTMaps.execute(contains).args[0]
    except MapError as error:
        return str(error)


for place in ("models/LLM/tiny", "models/outside"):
    (BASE / place).mkdir(parents=True)
    (BASE / place / "config.json").write_text("{}")

RESULTS = {
    "stack": {
        "on": is_noticed(change=True, on_1=True),
        "off": is_noticed(change=True, on_1=False),
        "linked": is_noticed(change=True, on_1=None),
        "unchanged": is_noticed(change=False, on_1=None),
    },
    "gone": ACTMapStack.fingerprint_inputs(map_1="gone.safetensors", on_1=None),
    "list": ListACTMaps.fingerprint_inputs(None) == ListACTMaps.fingerprint_inputs(""),
    "list of a number": listing_of(7),
    "language models": {
        name: language_model(name) for name in ("tiny", "../outside", str(BASE / "models" / "outside"), "", ".")
    },
    "covers": {
        "whole": shown(jpeg(32)),
        "damaged": shown(b"\xff\xd8\xff no picture"),
        "cut": shown(jpeg(256)[:-400]),
        "huge": shown(jpeg(2049)),
    },
    "thumbnails": {
        "rgb": corner([1.0, 0.0, 0.0]),
        "bfloat16": corner([1.0, 0.0, 0.0], torch.bfloat16),
        "grey": corner([0.5]),
        "transparent": corner([0.0, 0.0, 0.0, 0.0]),
    },
    "names": {name: saved_as(name) for name in ("ink", "nul", "aux.v2", "styles/COM1", "console", "com", "my con")},
}
print(json.dumps(RESULTS))
