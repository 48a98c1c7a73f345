"""Map files: saving and loading round trips."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
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
)
from map_files import (
    bare,
    header_bytes,
    jpeg,
    metadata_of,
)

from act_core import ActMap, MapError, fit, load_map, save_map
from act_core.mapfile.format import MAX_HEADER_BYTES
from act_core.records import Card, Fingerprint, FitRecord
from act_core.sites import Site
from act_core.transport import Transport

SOURCE, TARGET = prompts("source", 6), prompts("target", 5)


@pytest.mark.parametrize("support", ["unbounded", "observed"])
def test_load_returns_what_was_saved(path: Path, support: Any) -> None:
    act_map = fit(mixed(), SOURCE, TARGET, sites=MIXED_SITES, support=support, seed=5)
    card: dict[str, Any] = {"title": "Calm ☂", "author": "A", "description": "Line one\nline two", "license": "CC0-1.0"}
    assert save_map(act_map, path, **card, strength_range=(-0.5, 1.5), statistics=True) == path
    loaded = load_map(path)
    assert_identical(loaded, act_map)
    assert loaded.record == act_map.record
    assert loaded.card == Card(**card, strength_range=(-0.5, 1.5))
    for site, transport in act_map.transports.items():
        assert (loaded[site.key].fallbacks, loaded[site.key].effect) == (transport.fallbacks, transport.effect)


def test_support_may_be_a_single_value(path: Path) -> None:
    """That of a channel which has one value in all source samples."""
    transport = Transport(torch.ones(2), torch.ones(2), low=torch.zeros(2), high=torch.tensor([0.0, 1.0]))
    act_map = ActMap({Site("toy", "layer", None, "tokens", 2): transport}, FitRecord(support="observed"))
    assert_identical(load_map(save_map(act_map, path)), act_map)


def test_load_returns_every_field_of_the_record(path: Path, fitted: ActMap) -> None:
    record = FitRecord(
        estimator="gaussian",
        order="simultaneous",
        support="observed",
        interval="pooled",
        moved="both",
        spatial="pointwise",
        fitted_by="refinement",
        walk="streamed",
        seed=-3,
        source_prompts=("a", "静"),
        target_prompts=("b",),
        source_count=2,
        target_count=1,
        prompts_sha256="0" * 64,
        base={"toy": Fingerprint("toy", "", "Mixed", ("Base",), ("Schnell", "Dev")), "text": Fingerprint("llama", "w")},
        versions={"torch": "2"},
        patches=("a map",),
        notes=("n",),
        edits=("inverted",),
        merged_from=("ink", "calm"),
    )
    default = FitRecord()
    assert all(getattr(record, name) != getattr(default, name) for name in record.__dataclass_fields__)
    save_map(replace(fitted, record=record), path)
    assert load_map(path).record == record


def test_file_does_not_permit_other_architectures(path: Path, fitted: ActMap) -> None:
    save_map(fitted.for_any_architecture(), path)
    assert not load_map(path).any_architecture


def test_load_keeps_order_of_sites(path: Path) -> None:
    names = ["z", "a", "m.10", "m.9", "ü x"]
    sites = [Site(f"part{i % 2}", name, None if i % 2 else i, "tokens", 2) for i, name in enumerate(names)]
    save_map(ActMap({site: Transport(torch.ones(2), torch.zeros(2)) for site in sites}), path)
    assert list(load_map(path).transports) == sites


def test_save_accepts_sites_that_share_tensors(path: Path) -> None:
    ones = torch.ones(2)
    shared = ActMap({Site("toy", name, None, "tokens", 2): Transport(ones, ones) for name in "ab"})
    save_map(shared, path)
    assert_identical(load_map(path), shared)


def test_save_accepts_views(path: Path) -> None:
    columns = torch.randn(3, 2)
    views = ActMap({Site("toy", "a", None, "tokens", 3): Transport(columns[:, 0], columns[:, 1])})
    save_map(views, path)
    assert_identical(load_map(path), views)


def test_save_keeps_card_unless_replaced(path: Path, fitted: ActMap) -> None:
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
def test_load_returns_text_of_every_script(path: Path, fitted: ActMap, text: str) -> None:
    own = replace(fitted, record=replace(fitted.record, source_prompts=(text, text)))
    save_map(own, path, title=text, description=text)
    assert load_map(path).card.title == load_map(path).card.description == text
    assert load_map(path).record.source_prompts == (text, text)


UNSAFE_TEXTS = {
    "line one\r\nline two\r": "line one\nline two\n",
    "\x1b[31mred": "\ufffd[31mred",
    "a\0b": "a\ufffdb",
    "\ud800": "\ufffd",
    "a\x85b\x92": "a\ufffdb\ufffd",
}


@pytest.mark.parametrize("text", UNSAFE_TEXTS)
def test_save_replaces_control_characters_in_card_and_record(path: Path, fitted: ActMap, text: str) -> None:
    record = replace(fitted.record, source_prompts=(text, "b"), notes=(text,), edits=(text,), versions={"torch": text})
    card: dict[str, Any] = {"title": text, "author": text, "description": text, "license": text}
    loaded = load_map(save_map(replace(fitted, record=record), path, **card))
    plain = UNSAFE_TEXTS[text]
    assert loaded.card == Card(plain, plain, plain, plain)
    assert loaded.record == replace(
        record, source_prompts=(plain, "b"), notes=(plain,), edits=(plain,), versions={"torch": plain}
    )


@pytest.mark.parametrize("ends", [(np.float32(-0.5), np.int64(2)), (torch.tensor(-0.5), torch.tensor(2))])
def test_save_accepts_numbers_of_numpy_and_torch(path: Path, fitted: ActMap, ends: Any) -> None:
    assert load_map(save_map(fitted, path, strength_range=ends)).card.strength_range == (-0.5, 2.0)


def test_save_of_loaded_map_changes_nothing(path: Path, fitted: ActMap) -> None:
    save_map(fitted, path)
    once = load_map(path)
    save_map(once, path)
    assert_identical(load_map(path), once)
    assert load_map(path).record == once.record


def test_save_leaves_out_statistics_by_default(path: Path, fitted: ActMap) -> None:
    save_map(fitted, path)
    small = path.stat().st_size
    assert all(t.statistics is None for t in load_map(path).transports.values())
    save_map(fitted, path, statistics=True)
    assert_identical(load_map(path), fitted)
    assert path.stat().st_size > small


def test_save_keeps_statistics_that_inverse_needs(path: Path) -> None:
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


def test_inverse_equals_before_and_after_saving(path: Path, fitted: ActMap) -> None:
    save_map(fitted.inverse(), path)
    before = load_map(path)
    save_map(fitted, path)
    assert largest_difference(load_map(path).inverse(), before) == 0


def test_save_writes_modelspec_keys(path: Path, fitted: ActMap) -> None:
    save_map(fitted, path, title="calm", author="A", license="CC0-1.0", description="d")
    metadata = metadata_of(path)
    shown = {name: metadata[f"modelspec.{name}"] for name in ("title", "author", "license", "description")}
    assert shown == {"title": "calm", "author": "A", "license": "CC0-1.0", "description": "d"}
    assert metadata["modelspec.architecture"] == "toy/act-map"


@pytest.mark.parametrize(("count", "length"), [(20_000, 300), (3, 2_000_000), (2, 600_000)])
def test_header_stays_under_limit_and_counts_all_prompts(path: Path, fitted: ActMap, count: int, length: int) -> None:
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


def test_fit_counts_and_hashes_all_prompts() -> None:
    record = fit(chain(), SOURCE, TARGET, sites="toy/layers.0").record
    assert record.prompts_sha256 == hashlib.sha256(json.dumps([SOURCE, TARGET]).encode()).hexdigest()


def test_save_refuses_more_sites_than_header_holds(path: Path) -> None:
    names = [f"{i}" + "x" * 400 for i in range(2000)]
    sites = {Site("toy", name, None, "tokens", 1): Transport(torch.ones(1), torch.ones(1)) for name in names}
    with pytest.raises(MapError, match="2000 sites is too large"):
        save_map(ActMap(sites), path)
    assert list(path.parent.iterdir()) == []


def test_save_orders_ends_of_strength_range(path: Path, fitted: ActMap) -> None:
    assert load_map(save_map(fitted, path, strength_range=(1.0, -2.0))).card.strength_range == (-2.0, 1.0)


def test_save_puts_cover_where_model_browsers_look(path: Path, fitted: ActMap) -> None:
    save_map(fitted, path, cover=jpeg())
    assert load_map(path).card.cover == jpeg()
    (shown,) = json.loads(metadata_of(path)["ssmd_cover_images"])
    assert base64.b64decode(shown) == jpeg()


def test_load_reads_headers_of_every_length(fitted: ActMap, tmp_path: Path) -> None:
    # The first byte of a file is the low byte of the length of its header, and may be that of a pickle, 0x80.
    firsts: set[int] = set()
    for letters in range(0, 256, 8):
        path = save_map(fitted, tmp_path / "map.safetensors", description="a" * letters)
        firsts.add(path.read_bytes()[0])
        assert load_map(path).card.description == "a" * letters
    assert 0x80 in firsts
