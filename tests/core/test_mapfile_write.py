"""Map files are written atomically."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from map_files import (
    assert_is_a_sentence,
    unprivileged,
    with_effect,
)

from act_core import ActMap, MapError, load_map, save_map


@pytest.fixture(autouse=True, params=["unnamed", "hidden"])
def temporary_file(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new file has no name until it is whole, or a hidden one where there are no such files (Windows, macOS)."""
    if request.param == "hidden":
        monkeypatch.delattr(os, "O_TMPFILE")


def test_save_obeys_umask(path: Path, fitted: ActMap) -> None:
    for mask, mode in ((0o022, 0o644), (0o077, 0o600)):
        before = os.umask(mask)
        try:
            save_map(fitted, path)
        finally:
            os.umask(before)
        assert stat.S_IMODE(path.stat().st_mode) == mode


def test_save_refuses_other_suffixes(tmp_path: Path, fitted: ActMap) -> None:
    for name in ("calm", "calm.pt", "calm.safetensors.txt", ".safetensors"):
        with pytest.raises(MapError, match=r"must end in \.safetensors"):
            save_map(fitted, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def broken_fsync(_: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_save_on_full_disk_leaves_nothing(path: Path, fitted: ActMap, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", broken_fsync)
    with pytest.raises(MapError) as caught:
        save_map(fitted, path)
    assert_is_a_sentence(caught.value, path)
    assert "No space left" in str(caught.value)
    assert list(path.parent.iterdir()) == []


def test_failed_save_keeps_old_file(path: Path, fitted: ActMap, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_interrupted_save_leaves_nothing(path: Path, fitted: ActMap, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_map(fitted, path)
    assert list(path.parent.iterdir()) == []


def test_killed_save_leaves_nothing_under_final_name(path: Path) -> None:
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
    assert list(path.parent.iterdir()) == []


def test_save_refuses_read_only_folder(tmp_path: Path, fitted: ActMap) -> None:
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


def test_save_removes_what_killed_saves_left(path: Path, fitted: ActMap) -> None:
    old, new, other = (path.with_name(name) for name in (f".{'0' * 16}.part", f".{'1' * 16}.part", ".notes.part"))
    for file in (old, new, other):
        file.touch()
    for file in (old, other):
        os.utime(file, (0, 0))
    save_map(fitted, path)
    # A young part may belong to a save that is still running, and the other file is someone else's.
    assert set(path.parent.iterdir()) == {path, new, other}


@pytest.mark.parametrize("name", ["title", "author", "description", "license"])
def test_save_refuses_card_text_that_is_not_a_text(path: Path, fitted: ActMap, name: str) -> None:
    with pytest.raises(MapError, match=f"the {name} is 7; give a text"):
        save_map(fitted, path, **{name: 7})  # pyright: ignore[reportArgumentType]
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("name", ["missing/calm.safetensors", f"{'x' * 300}.safetensors"])
def test_save_refuses_path_that_cannot_be_written(tmp_path: Path, fitted: ActMap, name: str) -> None:
    with pytest.raises(MapError) as caught:
        save_map(fitted, tmp_path / name)
    assert_is_a_sentence(caught.value, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_save_refuses_name_of_folder(path: Path, fitted: ActMap) -> None:
    path.mkdir()
    with pytest.raises(MapError) as caught:
        save_map(fitted, path)
    assert_is_a_sentence(caught.value, path)
    assert list(path.parent.iterdir()) == [path]


def test_save_refuses_values_that_load_refuses(path: Path, fitted: ActMap) -> None:
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


@pytest.mark.parametrize("ends", [(1.0,), (0.0, 1.0, 2.0), (float("nan"), 1.0), (0.0, float("inf")), 1.0])
def test_save_refuses_strength_range_that_is_not_two_numbers(path: Path, fitted: ActMap, ends: Any) -> None:
    with pytest.raises(MapError) as caught:
        save_map(fitted, path, strength_range=ends)
    assert str(caught.value) == f"{path.name} was not written: the strength range is {ends!r}; give two finite numbers."
    assert not path.exists()


@pytest.mark.parametrize("name", ["description", "usage_hint"])
def test_save_names_the_text_that_is_too_long(path: Path, fitted: ActMap, name: str) -> None:
    what = name.replace("_", " ")
    with pytest.raises(MapError, match=rf"was not written: the {what} takes 2000 KiB of the 1024 KiB .* shorten it"):
        save_map(fitted, path, **{name: "x" * (2000 << 10)})  # pyright: ignore[reportArgumentType]
    assert not path.exists()


def test_save_refuses_cover_that_is_not_a_jpeg(path: Path, fitted: ActMap) -> None:
    for cover in (b"\x89PNG", b"\xff\xd8" + bytes(200_000)):
        with pytest.raises(MapError, match=r"was not written: the cover is not a JPEG picture .*; give another"):
            save_map(fitted, path, cover=cover)
    assert not path.exists()
