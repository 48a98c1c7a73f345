"""The map file: written whole or not at all, and read with distrust."""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import io
import json
import os
import pickle
import random
import signal
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable, Generator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from helpers import (
    MIXED_SITES,
    assert_identical,
    chain,
    keys,
    largest_difference,
    mixed,
    prompts,
    same_transport,
    tensors_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open
from torch import Tensor

from act_core import ActMap, MapError, fit, load_map, save_map
from act_core.mapfile.format import MAX_HEADER_BYTES
from act_core.maps import Card, Fingerprint, FitRecord
from act_core.sites import Site
from act_core.transport import Transport

SOURCE, TARGET = prompts("source", 6), prompts("target", 5)
# What a sentence for people never holds.
JARGON = ("Traceback", "Error(", "Exception", "object at 0x", 'File "', "torch.Size", "<class")


@pytest.fixture(scope="module")
def fitted() -> ActMap:
    return fit(mixed(), SOURCE, TARGET, sites=MIXED_SITES, support="observed", seed=5)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "calm.safetensors"


def bare(transport: Transport) -> Transport:
    return replace(transport, statistics=None)


# --- round trip


@pytest.mark.parametrize("support", ["unbounded", "observed"])
def test_a_map_comes_back_as_it_was(path: Path, support: Any) -> None:
    act_map = fit(mixed(), SOURCE, TARGET, sites=MIXED_SITES, support=support, seed=5)
    card: dict[str, Any] = {"title": "Calm ☂", "author": "A", "description": "Line one\nline two", "license": "CC0-1.0"}
    assert save_map(act_map, path, **card, strength_range=(-0.5, 1.5), statistics=True) == path
    loaded = load_map(path)
    assert_identical(loaded, act_map)
    assert loaded.record == act_map.record
    assert loaded.card == Card(**card, strength_range=(-0.5, 1.5))
    for site, transport in act_map.transports.items():
        assert (loaded[site.key].fallbacks, loaded[site.key].effect) == (transport.fallbacks, transport.effect)


def test_every_field_of_the_record_comes_back(path: Path, fitted: ActMap) -> None:
    record = FitRecord(
        estimator="gaussian",
        order="simultaneous",
        support="observed",
        interval="pooled",
        moved="both",
        spatial="pointwise",
        walk="streamed",
        seed=-3,
        source_prompts=("a", "静"),
        target_prompts=("b",),
        source_count=2,
        target_count=1,
        prompts_sha256="0" * 64,
        base={"toy": Fingerprint("toy", "s", ""), "text": Fingerprint("llama", "s", "w")},
        versions={"torch": "2"},
        patches=("a map",),
        notes=("n",),
        edits=("inverted",),
    )
    default = FitRecord()
    assert all(getattr(record, name) != getattr(default, name) for name in record.__dataclass_fields__)
    save_map(replace(fitted, record=record), path)
    assert load_map(path).record == record


def test_sites_keep_their_order_whatever_their_names(path: Path) -> None:
    names = ["z", "a", "m.10", "m.9", "ü x"]
    sites = [Site(f"part{i % 2}", name, None if i % 2 else i, "tokens", 2) for i, name in enumerate(names)]
    save_map(ActMap({site: Transport(torch.ones(2), torch.zeros(2)) for site in sites}), path)
    assert list(load_map(path).transports) == sites


def test_sites_may_share_their_tensors(path: Path) -> None:
    ones = torch.ones(2)
    shared = ActMap({Site("toy", name, None, "tokens", 2): Transport(ones, ones) for name in "ab"})
    save_map(shared, path)
    assert_identical(load_map(path), shared)


def test_tensors_may_be_views(path: Path) -> None:
    columns = torch.randn(3, 2)
    views = ActMap({Site("toy", "a", None, "tokens", 3): Transport(columns[:, 0], columns[:, 1])})
    save_map(views, path)
    assert_identical(load_map(path), views)


def test_a_card_stays_unless_it_is_replaced(path: Path, fitted: ActMap) -> None:
    first = replace(fitted, card=Card("calm", "A", "d", "l", (0.0, 1.0)))
    save_map(first, path, title="wild")
    assert load_map(path).card == Card("wild", "A", "d", "l", (0.0, 1.0))
    save_map(load_map(path), path, title="")
    assert load_map(path).card.title == ""


ODD_TEXTS = {
    "a space that does not break": "a\u00a0cat",
    "an ideographic space": "猫\u3000灯台",
    "a joiner between letters": "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
    "an emoji of two": "👩\u200d🎨",
    "a mark of direction": "\u200f\u05d7\u05ea\u05d5\u05dc",
    "a byte-order mark": "\ufeffa cat",
    "lines": "a cat\n\ta dog",
}


@pytest.mark.parametrize("text", ODD_TEXTS.values(), ids=ODD_TEXTS)
def test_text_of_every_script_comes_back(path: Path, fitted: ActMap, text: str) -> None:
    own = replace(fitted, record=replace(fitted.record, source_prompts=(text, text)))
    save_map(own, path, title=text, description=text)
    assert load_map(path).card.title == load_map(path).card.description == text
    assert load_map(path).record.source_prompts == (text, text)


@pytest.mark.parametrize("text", ["\x1b[31mred", "a\0b", "\ud800", "a\x85b"])
def test_text_that_could_steer_a_terminal_is_refused(path: Path, fitted: ActMap, text: str) -> None:
    with pytest.raises(MapError, match="was not written"):
        save_map(fitted, path, title=text)
    assert not path.exists()


def test_saving_what_was_loaded_changes_nothing(path: Path, fitted: ActMap) -> None:
    save_map(fitted, path)
    once = load_map(path)
    save_map(once, path)
    assert_identical(load_map(path), once)
    assert load_map(path).record == once.record


def test_statistics_are_left_out_unless_they_are_asked_for(path: Path, fitted: ActMap) -> None:
    save_map(fitted, path)
    small = path.stat().st_size
    assert all(t.statistics is None for t in load_map(path).transports.values())
    save_map(fitted, path, statistics=True)
    assert_identical(load_map(path), fitted)
    assert path.stat().st_size > small


def test_sites_with_a_flat_channel_keep_what_their_inverse_needs(path: Path) -> None:
    model = chain()
    act_map = fit(model, SOURCE, TARGET, sites="toy/layers.*")
    first = act_map["toy/layers.0"]
    omega = first.omega.clone()
    omega[1] = 1e-4
    act_map = ActMap({**act_map.transports, act_map.site("toy/layers.0"): replace(first, omega=omega)})
    save_map(act_map, path)
    loaded = load_map(path)
    assert [t.statistics is not None for t in loaded.transports.values()] == [True, False, False]
    for key in keys(act_map):
        assert same_transport(bare(loaded[key].inverse()), bare(act_map[key].inverse()))
    assert loaded.inverse().fallbacks == 1


def test_a_map_steers_alike_after_loading_whether_inverted_before_or_after(path: Path, fitted: ActMap) -> None:
    save_map(fitted.inverse(), path)
    before = load_map(path)
    save_map(fitted, path)
    assert largest_difference(load_map(path).inverse(), before) == 0


def test_tools_for_model_files_find_a_title_and_an_author(path: Path, fitted: ActMap) -> None:
    save_map(fitted, path, title="calm", author="A", license="CC0-1.0", description="d")
    metadata = metadata_of(path)
    shown = {name: metadata[f"modelspec.{name}"] for name in ("title", "author", "license", "description")}
    assert shown == {"title": "calm", "author": "A", "license": "CC0-1.0", "description": "d"}
    assert metadata["modelspec.architecture"] == "toy/act-map"


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())


def header_bytes(path: Path) -> int:
    return int.from_bytes(path.read_bytes()[:8], "little")


# --- many prompts


@pytest.mark.parametrize(("count", "length"), [(20_000, 300), (3, 2_000_000), (2, 600_000)])
def test_the_header_stays_under_a_mebibyte_and_tells_of_all_prompts(
    path: Path, fitted: ActMap, count: int, length: int
) -> None:
    source, target = (tuple(f"{side} {i} ".ljust(length, "ä") for i in range(count)) for side in ("s", "t"))
    digest = hashlib.sha256(b"all of them").hexdigest()
    record = replace(
        fitted.record,
        source_prompts=source,
        target_prompts=target,
        source_count=count,
        target_count=count,
        prompts_sha256=digest,
    )
    save_map(replace(fitted, record=record), path)
    assert header_bytes(path) <= MAX_HEADER_BYTES == 1 << 20
    loaded = load_map(path).record
    assert (loaded.source_count, loaded.target_count, loaded.prompts_sha256) == (count, count, digest)
    kept = len(loaded.source_prompts)
    assert kept < count
    assert (loaded.source_prompts, loaded.target_prompts) == (source[:kept], target[:kept])
    if length < 1000:
        assert kept > 100


def test_a_fit_counts_and_hashes_all_prompts() -> None:
    record = fit(chain(), SOURCE, TARGET, sites="toy/layers.0").record
    assert record.prompts_sha256 == hashlib.sha256(json.dumps([SOURCE, TARGET]).encode()).hexdigest()


def test_too_many_sites_for_one_header_are_refused(path: Path) -> None:
    names = [f"{i}" + "x" * 400 for i in range(2000)]
    sites = {Site("toy", name, None, "tokens", 1): Transport(torch.ones(1), torch.ones(1)) for name in names}
    with pytest.raises(MapError, match="2000 sites is too large"):
        save_map(ActMap(sites), path)
    assert list(path.parent.iterdir()) == []


# --- writing whole or not at all


def test_the_file_obeys_the_umask(path: Path, fitted: ActMap) -> None:
    for mask, mode in ((0o022, 0o644), (0o077, 0o600)):
        before = os.umask(mask)
        try:
            save_map(fitted, path)
        finally:
            os.umask(before)
        assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_name_that_is_no_map_file_is_refused(tmp_path: Path, fitted: ActMap) -> None:
    for name in ("calm", "calm.pt", "calm.safetensors.txt", ".safetensors"):
        with pytest.raises(MapError, match=r"end in \.safetensors"):
            save_map(fitted, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def broken_fsync(_: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_one_sentence_and_leaves_nothing(
    path: Path, fitted: ActMap, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", broken_fsync)
    with pytest.raises(MapError) as caught:
        save_map(fitted, path)
    assert_is_a_sentence(caught.value, path)
    assert "No space left" in str(caught.value)
    assert list(path.parent.iterdir()) == []


def test_the_map_that_was_there_survives_a_failed_write(
    path: Path, fitted: ActMap, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_map(fitted, path)
    before = path.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", broken_fsync)
        with pytest.raises(MapError):
            save_map(fitted.scaled(2), path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]
    save_map(fitted.scaled(2), path)
    assert path.read_bytes() != before


def test_an_interrupted_write_leaves_nothing(path: Path, fitted: ActMap, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_map(fitted, path)
    assert list(path.parent.iterdir()) == []


def test_a_killed_writer_leaves_nothing_under_the_final_name(path: Path) -> None:
    script = """
        import os, sys, time
        import torch
        from act_core import ActMap, save_map
        from act_core.sites import Site
        from act_core.transport import Transport

        def hang(_):
            print("syncing", flush=True)
            time.sleep(600)

        os.fsync = hang
        save_map(ActMap({Site("toy", "a", None, "tokens", 1): Transport(torch.ones(1), torch.ones(1))}), sys.argv[1])
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "syncing\n"
        writer.send_signal(signal.SIGKILL)
    assert writer.returncode == -signal.SIGKILL
    assert not path.exists()
    # What is left is no map that a list of maps would show.
    assert not list(path.parent.glob("[!.]*"))


@contextlib.contextmanager
def unprivileged() -> Generator[None]:
    """As a user whom file modes do hold back, where the tests run as root."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_a_read_only_folder_is_one_sentence_and_leaves_nothing(tmp_path: Path, fitted: ActMap) -> None:
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    folder = tmp_path / "maps"
    folder.mkdir()
    folder.chmod(0o555)
    with unprivileged(), pytest.raises(MapError) as caught:
        save_map(fitted, folder / "calm.safetensors")
    assert_is_a_sentence(caught.value, folder / "calm.safetensors")
    assert "Permission denied" in str(caught.value)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("name", ["missing/calm.safetensors", f"{'x' * 300}.safetensors"])
def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path, fitted: ActMap, name: str) -> None:
    with pytest.raises(MapError) as caught:
        save_map(fitted, tmp_path / name)
    assert_is_a_sentence(caught.value, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_that_name_is_one_sentence(path: Path, fitted: ActMap) -> None:
    path.mkdir()
    with pytest.raises(MapError) as caught:
        save_map(fitted, path)
    assert_is_a_sentence(caught.value, path)
    assert list(path.parent.iterdir()) == [path]


def test_a_map_that_could_not_be_read_again_is_not_written(path: Path, fitted: ActMap) -> None:
    nan = float("nan")
    broken: dict[str, Callable[[], object]] = {
        "strength_range": lambda: save_map(fitted, path, strength_range=(0.0, float("inf"))),
        "slopes": lambda: save_map(fitted.scaled(nan), path),
        "effect": lambda: save_map(with_effect(fitted, float("inf")), path),
    }
    unreadable: list[str] = []
    for name, write in broken.items():
        path.unlink(missing_ok=True)
        with contextlib.suppress(MapError):
            write()
            try:
                load_map(path)
            except MapError:
                unreadable.append(name)
    assert unreadable == []


def with_effect(act_map: ActMap, effect: float) -> ActMap:
    return ActMap({site: replace(t, effect=effect) for site, t in act_map.transports.items()}, act_map.record)


# --- damage


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
    """A proper map file with some of its parts replaced (None takes them out); `site` is for the first site."""
    save_map(act_map, path, statistics=True)
    held: dict[str, Any] = {**safetensors.torch.load_file(path), **(tensors or {})}
    told: dict[str, Any] = metadata_of(path)
    sites, fitted = json.loads(told["act.sites"]), json.loads(told["act.record"])
    sites[0] |= site or {}
    told |= {"act.sites": json.dumps(sites), "act.record": json.dumps({**fitted, **(record or {})}), **(metadata or {})}
    safetensors.torch.save_file(
        {name: tensor for name, tensor in held.items() if tensor is not None},
        path,
        {name: text for name, text in told.items() if text is not None},
    )
    return path


def test_what_the_damage_is_made_of_is_itself_sound(path: Path, fitted: ActMap) -> None:
    assert_identical(load_map(rewritten(path, fitted)), fitted)


def test_a_missing_file_is_one_sentence(path: Path) -> None:
    assert "No such file" in refused(path)


def test_a_folder_is_one_sentence(path: Path) -> None:
    path.mkdir()
    assert "folder" in refused(path)


def test_a_file_that_may_not_be_read_is_one_sentence(path: Path, fitted: ActMap) -> None:
    save_map(fitted, path)
    for folder in (path.parent, *path.parent.parents[:2]):
        folder.chmod(0o755)
    path.chmod(0)
    with unprivileged():
        assert "Permission denied" in refused(path)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 100, 2000, -400, -1])
def test_a_truncated_file_is_one_sentence(path: Path, fitted: ActMap, size: int) -> None:
    save_map(fitted, path)
    path.write_bytes(path.read_bytes()[:size])
    refused(path)


def test_bytes_after_the_end_are_one_sentence(path: Path, fitted: ActMap) -> None:
    save_map(fitted, path)
    path.write_bytes(path.read_bytes() + b"more")
    refused(path)


@pytest.mark.parametrize("size", [8, 100, 10_000])
def test_random_bytes_are_one_sentence(path: Path, size: int) -> None:
    for seed in range(20):
        path.write_bytes(random.Random(seed).randbytes(size))
        refused(path)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_under_another_name_is_never_run(path: Path, protocol: int) -> None:
    path.write_bytes(pickle.dumps(Trap(path.with_name("sprung")), protocol))
    text = refused(path)
    assert protocol < 2 or "pickle" in text
    assert not path.with_name("sprung").exists()


class Trap:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_what_torch_save_writes_is_called_a_pickle(path: Path, zipped: bool) -> None:
    torch.save({"omega": torch.ones(2)}, path, _use_new_zipfile_serialization=zipped)
    assert "pickle" in refused(path)


def test_another_safetensors_file_is_called_no_map(path: Path) -> None:
    for metadata in (None, {"format": "pt"}):
        safetensors.torch.save_file({"weight": torch.ones(3)}, path, metadata)
        assert "not an ACT map" in refused(path)


@pytest.mark.parametrize("version", ["0", "2", "", "1.0", "x" * 5000])
def test_another_version_asks_for_an_update(path: Path, fitted: ActMap, version: str) -> None:
    assert "update" in refused(rewritten(path, fitted, metadata={"act.format": version}))


CONV = "toy/conv.omega"
FIRST_TENSORS: dict[str, Tensor | None] = {
    "zero length": torch.zeros(0),
    "too long": torch.zeros(7),
    "too short": torch.zeros(5),
    "another shape": torch.zeros(6, 1),
    "a scalar": torch.tensor(1.0),
    "float64": torch.zeros(6, dtype=torch.float64),
    "float16": torch.zeros(6, dtype=torch.float16),
    "bfloat16": torch.zeros(6, dtype=torch.bfloat16),
    "float8": torch.zeros(6).to(torch.float8_e4m3fn),
    "whole numbers": torch.zeros(6, dtype=torch.int32),
    "NaN": torch.full((6,), float("nan")),
    "infinity": torch.full((6,), float("inf")),
    "missing": None,
}


@pytest.mark.parametrize("damage", FIRST_TENSORS)
@pytest.mark.parametrize("part", ["omega", "beta", "low", "high", "source_mean", "target_std"])
def test_a_damaged_tensor_is_named(path: Path, fitted: ActMap, part: str, damage: str) -> None:
    name = f"toy/conv.{part}"
    assert name in refused(rewritten(path, fitted, tensors={name: FIRST_TENSORS[damage]}))


@pytest.mark.parametrize("name", ["more", "toy/conv.more", "toy/gone.omega", "toy/conv"])
def test_a_tensor_that_belongs_to_no_site_is_named(path: Path, fitted: ActMap, name: str) -> None:
    assert name in refused(rewritten(path, fitted, tensors={name: torch.zeros(6)}))


def test_a_support_that_ends_before_it_begins_is_refused(path: Path, fitted: ActMap) -> None:
    high = fitted["toy/conv"].high
    assert high is not None
    assert "toy/conv" in refused(rewritten(path, fitted, tensors={"toy/conv.low": high + 1}))


def test_a_site_that_is_named_twice_is_refused(path: Path, fitted: ActMap) -> None:
    save_map(fitted, path)
    sites = json.loads(metadata_of(path)["act.sites"])
    for again in (sites[0], {**sites[0], "layout": "tokens"}, {**sites[0], "effect": 7.0}):
        text = refused(rewritten(path, fitted, metadata={"act.sites": json.dumps([*sites, again])}))
        assert "twice" in text or "missing" in text


DEEP = 200_000
BAD_JSON = [
    "",
    "{",
    "[",
    "nul",
    "7",
    "null",
    '"text"',
    "[7]",
    "[null]",
    "[[]]",
    "[{}]",
    "NaN",
    "[" * DEEP,
    '{"a":' * DEEP,
]


@pytest.mark.parametrize("key", ["act.sites", "act.record"])
@pytest.mark.parametrize("text", BAD_JSON, ids=lambda text: text[:8])
def test_bad_json_is_one_sentence(path: Path, fitted: ActMap, key: str, text: str) -> None:
    refused(rewritten(path, fitted, metadata={key: text}))


@pytest.mark.parametrize("key", ["act.sites", "act.record"])
def test_missing_metadata_is_one_sentence(path: Path, fitted: ActMap, key: str) -> None:
    refused(rewritten(path, fitted, metadata={key: None}))


BAD_SITES: list[dict[str, Any]] = [
    {"channels": -6},
    {"channels": 0},
    {"channels": 1 << 40},
    {"channels": 10**400},
    {"channels": 6.0},
    {"channels": "6"},
    {"channels": True},
    {"channels": None},
    {"channels": [6]},
    {"layout": "cube"},
    {"layout": None},
    {"layout": ["spatial"]},
    {"output": -1},
    {"output": "0"},
    {"output": 0.5},
    {"name": ""},
    {"name": 7},
    {"name": "conv\n"},
    {"name": "conv\u0000"},
    {"name": "\ud800"},
    {"name": "x" * 5000},
    {"component": ""},
    {"component": None},
    {"component": {"a": 1}},
    {"fallbacks": -1},
    {"fallbacks": "many"},
    {"fallbacks": 1.5},
    {"effect": "large"},
    {"effect": float("nan")},
    {"effect": float("-inf")},
    {"effect": 10**400},
    {"effect": [1.0]},
]


@pytest.mark.parametrize("change", BAD_SITES, ids=lambda change: str(change)[:40])
def test_a_site_that_makes_no_sense_is_one_sentence(path: Path, fitted: ActMap, change: dict[str, Any]) -> None:
    assert len(refused(rewritten(path, fitted, site=change))) < 1500


BAD_RECORDS: list[dict[str, Any]] = [
    {"estimator": "magic"},
    {"estimator": None},
    {"support": ["observed"]},
    {"walk": 1},
    {"seed": "0"},
    {"seed": 0.5},
    {"source_count": None},
    {"source_prompts": 7},
    {"source_prompts": [7]},
    {"source_prompts": "one text"},
    {"target_prompts": {"a": 1}},
    {"notes": None},
    {"base": []},
    {"base": {"toy": {}}},
    {"base": {"toy": {"architecture": 1, "structure": "s", "weights": "w"}}},
    {"base": {"toy": {"architecture": "a", "structure": "s", "weights": "w", "more": "m"}}},
    {"versions": {"torch": 2}},
    {"versions": ["torch"]},
    {"prompts_sha256": 0},
]


@pytest.mark.parametrize("change", BAD_RECORDS, ids=lambda change: str(change)[:40])
def test_a_record_that_makes_no_sense_is_one_sentence(path: Path, fitted: ActMap, change: dict[str, Any]) -> None:
    refused(rewritten(path, fitted, record=change))


def test_the_ends_of_a_strength_range_are_put_in_order(path: Path, fitted: ActMap) -> None:
    assert load_map(save_map(fitted, path, strength_range=(1.0, -2.0))).card.strength_range == (-2.0, 1.0)


@pytest.mark.parametrize("text", ["", "[]", "[1]", "[1, 2, 3]", "7", '["a", 1]', "[NaN, 1]", "[0, 1e999]", "[0, null]"])
def test_a_strength_range_that_makes_no_sense_is_one_sentence(path: Path, fitted: ActMap, text: str) -> None:
    refused(rewritten(path, fitted, metadata={"act.strength_range": text}))


def test_a_strength_range_of_huge_whole_numbers_is_one_sentence(path: Path, fitted: ActMap) -> None:
    refused(rewritten(path, fitted, metadata={"act.strength_range": f"[0, 1{'0' * 400}]"}))


def jpeg() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "teal").save(file, "JPEG")
    return file.getvalue()


def test_a_cover_comes_back_and_lies_where_model_browsers_look(path: Path, fitted: ActMap) -> None:
    save_map(fitted, path, cover=jpeg())
    assert load_map(path).card.cover == jpeg()
    (shown,) = json.loads(metadata_of(path)["ssmd_cover_images"])
    assert base64.b64decode(shown) == jpeg()


BAD_COVERS = ["", "7", '{"a": 1}', "[7]", '"text"', '["not base64!"]', '["iVBORw0KGgo="]', f'["/9j/{"A" * 4 * 2**16}"]']


@pytest.mark.parametrize("text", BAD_COVERS, ids=lambda text: text[:20])
def test_a_cover_that_is_no_small_jpeg_is_one_sentence(path: Path, fitted: ActMap, text: str) -> None:
    refused(rewritten(path, fitted, metadata={"ssmd_cover_images": text}))


def test_a_cover_of_another_kind_is_not_saved(path: Path, fitted: ActMap) -> None:
    with pytest.raises(MapError, match="no small JPEG"):
        save_map(fitted, path, cover=b"\x89PNG")
    assert not path.exists()


def test_keys_of_later_versions_do_no_harm(path: Path, fitted: ActMap) -> None:
    rewritten(path, fitted, metadata={"act.later": "x"}, record={"later": {"a": 1}}, site={"later": [1]})
    assert_identical(load_map(path), fitted)


def test_a_map_without_sites_is_one_sentence(path: Path, fitted: ActMap) -> None:
    save_map(fitted, path)
    told = metadata_of(path)
    safetensors.torch.save_file({}, path, {**told, "act.sites": "[]"})
    assert "at least one site" in refused(path)


def test_a_header_over_a_mebibyte_is_some_other_model(path: Path, fitted: ActMap) -> None:
    rewritten(path, fitted, metadata={"more": "x" * MAX_HEADER_BYTES})
    assert "header" in refused(path)


@pytest.mark.parametrize("length", [1 << 20, 1 << 31, 1 << 63, (1 << 64) - 1])
def test_a_header_that_claims_to_be_huge_is_one_sentence(path: Path, fitted: ActMap, length: int) -> None:
    save_map(fitted, path)
    path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])
    refused(path)


@pytest.mark.parametrize("header", [b"{}", b"[]", b"{", b"null", b"\xff\xfe", b'{"__metadata__":7}', b"{" * 5000])
def test_headers_of_other_kinds_are_one_sentence(path: Path, header: bytes) -> None:
    path.write_bytes(packed(header))
    refused(path)


def test_tensors_that_overlap_or_lie_outside_the_file_are_one_sentence(path: Path, fitted: ActMap) -> None:
    save_map(fitted, path)
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    for offsets in ([0, 1 << 60], [24, 0], [0, 0], [-24, 0], [1 << 63, 1 << 64]):
        header[CONV]["data_offsets"] = offsets
        path.write_bytes(packed(json.dumps(header).encode(), data[8 + size :]))
        refused(path)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory, fitted: ActMap) -> tuple[Path, bytes]:
    path = save_map(fitted, tmp_path_factory.mktemp("maps") / "calm.safetensors", strength_range=(0, 1))
    return path, path.read_bytes()


@settings(max_examples=400)
@given(data=st.data())
def test_whatever_bytes_of_the_header_are_changed_a_map_is_valid_or_refused(
    sound: tuple[Path, bytes], data: st.DataObject
) -> None:
    path, content = sound
    damaged = bytearray(content)
    header = int.from_bytes(content[:8], "little")
    positions = st.integers(0, 7 + header)
    for position, value in data.draw(st.lists(st.tuples(positions, st.integers(0, 255)), min_size=1, max_size=8)):
        damaged[position] = value
    path.write_bytes(damaged)
    try:
        loaded = load_map(path)
    except MapError as error:
        assert path.name in str(error)  # noqa: PT017
        return
    for site, transport in loaded.transports.items():
        assert all(t.shape == (site.channels,) and t.isfinite().all() for t in tensors_of(transport) if t is not None)


@settings(max_examples=100)
@given(data=st.data())
def test_whatever_values_the_description_holds_a_map_is_valid_or_refused(
    sound: tuple[Path, bytes], data: st.DataObject
) -> None:
    path, content = sound
    path.write_bytes(content)
    tensors, told = safetensors.torch.load_file(path), metadata_of(path)
    values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
        max_leaves=4,
    )
    sites, record = json.loads(told["act.sites"]), json.loads(told["act.record"])
    place = data.draw(st.sampled_from([*sites, record]))
    place[data.draw(st.sampled_from(sorted(place)))] = data.draw(values)
    told |= {"act.sites": json.dumps(sites), "act.record": json.dumps(record)}
    safetensors.torch.save_file(tensors, path, told)
    try:
        loaded = load_map(path)
    except MapError as error:
        assert path.name in str(error)  # noqa: PT017
        return
    assert len(loaded) == len(sites)
    save_map(loaded, path)
    assert load_map(path).record == loaded.record


def test_headers_of_every_length_are_read(fitted: ActMap, tmp_path: Path) -> None:
    # The first byte of a file is the low byte of the length of its header, and may be that of a pickle, 0x80.
    firsts: set[int] = set()
    for letters in range(0, 256, 8):
        path = save_map(fitted, tmp_path / "map.safetensors", description="a" * letters)
        firsts.add(path.read_bytes()[0])
        assert load_map(path).card.description == "a" * letters
    assert 0x80 in firsts
