"""Damaged files of each format: a map or one sentence, in bounded time and memory, with nothing run or followed."""

from __future__ import annotations

import io
import os
import random
import re
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hostile_files import confined, gguf_bytes, hostile_pickles, limited_memory, mutated, rezipped, torch_bytes
from map_files import assert_is_a_sentence

from act_core import ActMap, MapError, load_map, save_map
from act_core.interop.importing import import_map
from act_core.mapfile import fields
from act_core.sites import Site
from act_core.transport import Transport

# How many damaged files of each format are read; ACT_FUZZ_COUNT=5000 for a thorough run.
COUNT = int(os.environ.get("ACT_FUZZ_COUNT", "1000"))
# Real files, made by others, to be damaged beside those that are built here.
DATA = os.environ.get("ACT_INTEROP_DATA", "")
# A single damaged file may not keep anyone waiting; of the processor, which other tests may share.
MAX_SECONDS = 2.0


def map_file(path: Path) -> bytes:
    sites = [Site("toy", f"layers.{number}", None, "tokens", 4) for number in range(3)]
    act_map = ActMap({site: Transport(torch.ones(4), torch.ones(4)) for site in sites})
    return save_map(act_map, path, title="calm", strength_range=(0, 1)).read_bytes()


def hook_file(_: Path) -> bytes:
    ends = [torch.zeros(1, 4), torch.ones(1, 4)]
    state = {"net.w1": torch.ones(1, 4), "net.b1": torch.ones(1, 4), "quantiles_src": ends}
    return torch_bytes({**state, "quantiles_dict_src": {"q_0_100": ends}})


def npy_file(_: Path) -> bytes:
    file = io.BytesIO()
    np.save(file, np.ones(8, np.float32))
    return file.getvalue()


def lora_file(_: Path) -> bytes:
    names = ("lora_unet_a.lora_down.weight", "lora_unet_a.lora_up.weight", "lora_unet_a.alpha")
    return safetensors.torch.save({name: torch.ones(4, 4) for name in names}, {"ss_network_dim": "4"})


def imported(path: Path) -> ActMap:
    return import_map(path, architecture="llama", layers=() if path.suffix == ".gguf" else (1,))


def imported_hooks(path: Path) -> ActMap:
    return import_map(path, architecture="gpt2")


# By format: the name of its file, what a sound one holds, its reader, and the pattern of real ones.
FORMATS: dict[str, tuple[str, Callable[[Path], bytes], Callable[[Path], ActMap], str]] = {
    "map": ("a.safetensors", map_file, load_map, "*.safetensors"),
    "ml-act": ("transformer.h.0.ln_1.statedict", hook_file, imported_hooks, "ml_act/*.statedict"),
    "gguf": (
        "a.gguf",
        lambda _: gguf_bytes({f"direction.{number}": torch.ones(8) for number in (1, 2)}),
        imported,
        "control_vectors/*.gguf",
    ),
    "pt": ("a.pt", lambda _: torch_bytes(torch.ones(8)), imported, "*.pt"),
    "npy": ("a.npy", npy_file, imported, "*.npy"),
    "lora": ("b.safetensors", lora_file, load_map, "lora/*.safetensors"),
}


def sound_files(folder: Path, name: str) -> list[bytes]:
    file, build, _, pattern = FORMATS[name]
    real = sorted(Path(DATA).glob(pattern)) if DATA else []
    return [build(folder / file), *(path.read_bytes() for path in real)]


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_file_is_a_map_or_a_sentence(tmp_path: Path, name: str) -> None:
    file, _, read, _ = FORMATS[name]
    path = tmp_path / file
    sound = sound_files(tmp_path, name)
    outcomes = [outcome(path, sound[0], read)]  # imports what reading needs, before it is watched
    assert (outcomes[0] == "map") == (name != "lora")
    slowest = 0.0
    with limited_memory(), confined(tmp_path):
        for seed in range(COUNT):
            data = damaged(sound[seed % len(sound)], seed)
            begin = time.process_time()
            outcomes.append(outcome(path, data, read))
            slowest = max(slowest, time.process_time() - begin)
    assert slowest < MAX_SECONDS
    assert os.listdir(tmp_path) == [file]
    # The damage goes deep enough to be refused in several places.
    assert len(set(outcomes)) > 3


@pytest.mark.parametrize("name", ["ml-act", "pt"])
def test_hostile_pickle_is_a_sentence(tmp_path: Path, name: str) -> None:
    """Chance hardly finds these: every opcode is sound, and what they build together is not."""
    file, build, read, _ = FORMATS[name]
    path = tmp_path / file
    sound = build(path)
    assert outcome(path, sound, read) == "map"  # imports what reading needs, before it is watched
    for description, content in hostile_pickles().items():
        data = rezipped(sound, {"/data.pkl": content})
        with limited_memory(), confined(tmp_path):
            begin = time.process_time()
            assert outcome(path, data, read) != "map", description
            assert time.process_time() - begin < MAX_SECONDS, description


def damaged(data: bytes, seed: int) -> bytes:
    """A damaged copy; of an archive every other time with the damage inside an entry, whose checksum is right again."""
    if not data.startswith(b"PK") or seed % 2:
        return mutated(data, seed)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        name = random.Random(seed).choice(["data.pkl", "data.pkl", "data.pkl", "data/0", "version", "byteorder"])
        found = [entry for entry in archive.namelist() if entry.endswith(f"/{name}")]
        content = archive.read(found[0]) if found else b""
    return rezipped(data, {f"/{name}": mutated(content, seed)})


def outcome(path: Path, data: bytes, read: Callable[[Path], ActMap]) -> str:
    """Reads a file; the message without what it quotes, or ``map``."""
    path.write_bytes(data)
    try:
        act_map = read(path)
    except MapError as error:
        assert_is_a_sentence(error, path)
        return re.sub(r"\W|\d|'.*'", "", str(error))[-60:]
    for site, transport in act_map.transports.items():
        assert fields.identifier("name", site.name) == site.name
        assert fields.identifier("component", site.component) == site.component
        assert all(bool(tensor.isfinite().all()) for tensor in (transport.omega, transport.beta))
    return "map"
