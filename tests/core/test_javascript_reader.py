"""The reader in JavaScript under examples/: it reads every map as `load_map` does, and refuses what that refuses.

All files are read in one Node process, since starting one takes longer than reading a map.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import random
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from bins import binned_map
from map_files import CONV, JARGON, jpeg, metadata_of, packed, rewritten
from test_bins_file import without_a_bin, without_levels
from test_mapfile_damage import FIRST_TENSORS
from test_mapfile_header import BAD_COVERS, BAD_JSON, BAD_RECORDS, BAD_SITES

from act_core import ActMap, MapError, load_map, save_map
from act_core.calibration import Calibration
from act_core.gates import Gate
from act_core.mapfile.format import MAX_COUNT, MAX_HEADER_BYTES, MAX_NUMBER
from act_core.projections import Projection
from act_core.records import Evidence
from act_core.sites import Segment, Site
from act_core.transport import Transport

ROOT = Path(__file__).parents[2]
READER = ROOT / "examples" / "read_map" / "read_map.mjs"
SHIPPED = sorted((ROOT / "pretrained_maps").glob("*.safetensors"))
FORMAT_1 = sorted((ROOT / "tests" / "data" / "format_1").glob("*.safetensors"))
NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(NODE is None, reason="Node.js is not installed: THE READER IN JAVASCRIPT IS NOT TESTED")

# A line for each file: what was read, with a hash over all coefficients, or the error.
READ_ALL = """
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
const [reader, ...paths] = JSON.parse(readFileSync(0, "utf8")), { readMap } = await import(reader);
for (const path of paths) {
  try {
    const { title, sites } = readMap(path), hash = createHash("sha256");
    for (const { tensors } of sites) for (const part of Object.values(tensors)) hash.update(part.values);
    const shapes = sites.map(({ tensors: { omega } }) => omega.shape);
    const keys = sites.map(({ site, layout, channels }) => [site, layout, channels]);
    console.log(JSON.stringify({ title, keys, shapes, hash: hash.digest("hex") }));
  } catch (error) { console.log(JSON.stringify({ error: String(error) })); }
}
"""


def read_all(paths: Sequence[Path]) -> list[dict[str, Any]]:
    assert NODE is not None
    command = [NODE, "--input-type=module", "--eval", READ_ALL]
    names = json.dumps([READER.as_uri(), *map(str, paths)])
    run = subprocess.run(command, input=names, capture_output=True, text=True, timeout=120, check=True)
    return [json.loads(line) for line in run.stdout.splitlines()]


def expected(path: Path) -> dict[str, Any]:
    act_map, digest = load_map(path), hashlib.sha256()
    for transport in act_map.transports.values():
        tensors = [transport.omega, transport.beta, transport.low, transport.high, *(transport.statistics or ())]
        tensors += [part and part.packed() for part in (transport.gate, transport.projection)]
        for tensor in tensors:
            if tensor is not None:
                digest.update(tensor.numpy().tobytes())
    return {
        "title": act_map.card.title,
        "keys": [[site.key, site.layout, site.channels] for site in act_map.transports],
        "shapes": [list(transport.omega.shape) for transport in act_map.transports.values()],
        "hash": digest.hexdigest(),
    }


def valid_maps(folder: Path, fitted: ActMap) -> Iterator[Path]:
    """A map with each optional part of a file."""
    curve = Calibration((-1.0, 0.0, 1.0), (-0.5, 0.0, 1.0), (0.9, 1.0, 0.7), (0.0, 0.6, 1.25), (0.0, -1.0))
    evidence = (Evidence("ink", 0.9, samples=3), Evidence("ink", 0.9, 0.8, 1.0, 0.1, 0.2, 0.3, model="静"))
    segment = Segment("trailing", "text_in", None, "leading")
    ones, gate = torch.ones(2), Gate(torch.ones(2), -1.0)
    parts = {
        Site("toy", "a", None, "tokens", 2, segment): Transport(ones, ones, gate=gate),
        Site("toy", "a", 3, "tokens", 2): Transport(ones, ones, projection=Projection(ones, 0.5)),
    }
    yield save_map(fitted, folder / "statistics.safetensors", title="Calm ☂", statistics=True, strength_range=(-1, 2))
    yield save_map(replace(fitted, calibration=curve, evidence=evidence), folder / "measured.safetensors", cover=jpeg())
    yield save_map(ActMap(parts), folder / "parts.safetensors", description="two\n\tlines")
    for bounded in (False, True):
        yield save_map(binned_map(bounded=bounded), folder / f"bins_{bounded}.safetensors")
    unknown: dict[str, Any] = {"metadata": {"act.later": "x"}, "record": {"later": {"a": 1}}, "site": {"later": [1]}}
    yield rewritten(folder / "unknown.safetensors", fitted, **unknown)
    largest: dict[str, Any] = {"site": {"fallbacks": MAX_COUNT, "effect": MAX_NUMBER}, "record": {"seed": 2**64}}
    yield rewritten(folder / "largest.safetensors", fitted, **largest)


def test_javascript_reads_maps_as_python_does(tmp_path: Path, fitted: ActMap) -> None:
    paths = [*SHIPPED, *FORMAT_1, *valid_maps(tmp_path, fitted)]
    assert len(SHIPPED) >= 7
    for path, found in zip(paths, read_all(paths), strict=True):
        assert found == expected(path), path.name


def damaged_containers(folder: Path, sound: bytes) -> Iterator[Path]:
    size = int.from_bytes(sound[:8], "little")
    header, body = json.loads(sound[8 : 8 + size]), sound[8 + size :]
    contents = [sound[:end] for end in (0, 1, 7, 8, 9, 100, 2000, -400, -1)]
    contents += [sound + b"more", sound[:-1] + bytes([sound[-1] ^ 1])]
    contents += [random.Random(seed).randbytes(length) for length in (8, 100, 10_000) for seed in range(5)]
    contents += [pickle.dumps({"omega": 1}, protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
    contents += [length.to_bytes(8, "little") + sound[8:] for length in (1 << 20, 1 << 31, 1 << 63, (1 << 64) - 1)]
    site = {"component": "toy", "name": "a", "output": None, "layout": "tokens", "channels": 4}
    described = json.dumps([{**site, "fallbacks": 0, "effect": None}])
    tiny = {"act.format": "1", "act.sites": described, "act.record": "{}"}
    kinds = b"{}", b"[]", b"{", b"null", b"\xff\xfe", b'{"__metadata__":7}', b"{" * 5000, b'{"__metadata__":null}'
    contents += [packed(kind) for kind in kinds]
    for offsets in ([0, 1 << 60], [24, 0], [0, 0], [-24, 0], [1 << 63, 1 << 64], [0], None, "x"):
        changed = {**header, CONV: {**header[CONV], "data_offsets": offsets}}
        contents.append(packed(json.dumps(changed).encode(), body))
    for shape in ("4", 4, [[4]], [4.5], [-1], ["4"], None):
        empty = {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}
        tensors = dict.fromkeys(("toy/a.omega", "toy/a.beta"), empty)
        contents.append(packed(json.dumps({"__metadata__": tiny, **tensors}).encode()))
    # 10 GB of coefficients that are declared, but not there.
    huge = {**header, CONV: {"dtype": "F32", "shape": [10 << 28], "data_offsets": [0, 10 << 30]}}
    contents.append(packed(json.dumps(huge).encode(), body))
    for number, content in enumerate(contents):
        path = folder / f"container_{number}.safetensors"
        path.write_bytes(content)
        yield path


def damaged_values(folder: Path, fitted: ActMap) -> Iterator[Path]:
    changes: list[dict[str, Any]] = [{"site": change} for change in BAD_SITES if change != {"channels": 6.0}]
    changes += [{"record": change} for change in BAD_RECORDS]
    changes += [{"metadata": {key: text}} for key in ("act.sites", "act.record") for text in (*BAD_JSON, None)]
    changes += [{"metadata": {"ssmd_cover_images": text}} for text in BAD_COVERS]
    changes += [{"metadata": {"act.format": version}} for version in ("0", "3", "", "1.0", "x" * 5000)]
    ranges = ["", "[]", "[1]", "[1, 2, 3]", "7", '["a", 1]', "[NaN, 1]", "[0, 1e999]", "[0, null]"]
    changes += [{"metadata": {"act.strength_range": text}} for text in ranges]
    levels = ["[2.0, 0.5]", "[0.2, 0.5]", '["high"]', "0.5", "[" * 5000, "[0.5]", "[0]"]
    changes += [{"metadata": {"act.levels": text}} for text in levels]
    measured = ["12", "[[1]]", '[{"measure": "x"}]', '[{"measure": "x", "value": "NaN"}]', '[{"value": 1}]', "[null]"]
    changes += [{"metadata": {"act.evidence": text}} for text in measured]
    good = {"strengths": [0, 1], "effects": [0, 1], "kept": [1, 0], "up": [0, 1], "down": [], "negative": "none"}
    curves = [{"strengths": [1, 0]}, {"kept": [1]}, {"up": [0]}, {"up": [1, 2]}, {"down": [0, -1]}, {"negative": "no"}]
    curves += [{"negative": "inverse"}, {"effects": [0, 1001]}, {"up": None}, {"down": [0], "negative": "negated"}]
    changes += [{"metadata": {"act.calibration": json.dumps({**good, **bad})}} for bad in curves]
    changes += [{"metadata": {"modelspec.title": "\x1b[31mred"}}, {"metadata": {"modelspec.hash_sha256": "0x00"}}]
    changes += [{"metadata": {"more": "x" * MAX_HEADER_BYTES}}]
    changes += [{"site": {"segment": {}}}, {"site": {"segment": {"end": "leading"}}}]
    parts = ("omega", "beta", "low", "high", "source_mean", "target_std")
    changes += [{"tensors": {f"toy/conv.{part}": tensor}} for part in parts for tensor in FIRST_TENSORS.values()]
    changes += [{"tensors": {name: torch.zeros(6)}} for name in ("more", "toy/conv.more", "toy/gone.omega", "toy/conv")]
    high = fitted["toy/conv"].high
    assert high is not None
    changes += [{"tensors": {"toy/conv.low": high + 1}}]
    for number, change in enumerate(changes):
        yield rewritten(folder / f"value_{number}.safetensors", fitted, **change)


def other_damage(folder: Path, fitted: ActMap) -> Iterator[Path]:
    torch.save({"omega": torch.ones(2)}, folder / "torch.safetensors")
    safetensors.torch.save_file({"lora_up": torch.zeros(2)}, folder / "lora.safetensors")
    yield from (folder / name for name in ("torch.safetensors", "lora.safetensors", "missing.safetensors"))
    (folder / "folder.safetensors").mkdir()
    yield folder / "folder.safetensors"
    for number, damage in enumerate((without_a_bin, without_levels)):
        path = save_map(binned_map(), folder / f"bins_{number}.safetensors")
        tensors, metadata = safetensors.torch.load_file(path), metadata_of(path)
        damage(tensors, metadata)
        safetensors.torch.save_file(tensors, path, metadata)
        yield path
    path = save_map(fitted, folder / "twice.safetensors")
    metadata = metadata_of(path)
    sites = json.loads(metadata["act.sites"])
    tensors = safetensors.torch.load_file(path)
    for name, content, kept in (("twice", [*sites, sites[0]], tensors), ("none", [], {})):
        again = folder / f"{name}.safetensors"
        safetensors.torch.save_file(kept, again, {**metadata, "act.sites": json.dumps(content)})
        yield again


def test_javascript_refuses_what_python_refuses(tmp_path: Path, fitted: ActMap) -> None:
    sound = save_map(fitted, tmp_path / "sound.safetensors").read_bytes()
    paths = [*damaged_containers(tmp_path, sound), *damaged_values(tmp_path, fitted), *other_damage(tmp_path, fitted)]
    for path in paths:
        with pytest.raises(MapError):
            load_map(path)
    accepted = [path.name for path, found in zip(paths, read_all(paths), strict=True) if "error" not in found]
    assert accepted == []


@pytest.mark.parametrize("content", [b"", b"\x80\x04K\x01.", packed(b"{}"), packed(b"{"), None])
def test_javascript_command_ends_with_one_sentence(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "a.safetensors"
    if content is not None:
        path.write_bytes(content)
    run = subprocess.run(["node", READER, path], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith(f"{path} is not a usable map: ")
    assert run.stderr.endswith(".\n")
    assert run.stderr.count("\n") == 1
    assert not [word for word in JARGON if word in run.stderr]


def test_javascript_command_prints_json() -> None:
    run = subprocess.run(["node", READER, SHIPPED[0]], capture_output=True, text=True, check=True)
    shown = json.loads(run.stdout)
    assert (shown["title"], len(shown["sites"])) == (load_map(SHIPPED[0]).card.title, len(load_map(SHIPPED[0])))
    assert shown["sites"][0]["tensors"]["omega"] == {"shape": [shown["sites"][0]["channels"]]}


def test_javascript_reader_is_short() -> None:
    for path in READER.parent.glob("*.mjs"):
        assert len(path.read_text("utf-8").splitlines()) <= 60
