"""Loading language models from GGUF files."""

from __future__ import annotations

import logging
from pathlib import Path

import gguf
import numpy as np
import pytest
from helpers import hide_packages

from act_core import MapError
from act_core.models import gguf as unpacking
from act_core.models.gguf import content_id
from act_core.models.transformers import TransformersModel


def test_gguf_refuses_damaged_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "mine.gguf"
    path.write_bytes(b"no model")
    with pytest.raises(MapError, match=r"mine\.gguf"):
        TransformersModel.from_pretrained(path)
    assert list((tmp_path / "cache" / "act-steering").iterdir()) == []


def test_gguf_content_id_depends_on_content_alone(tmp_path: Path) -> None:
    first, moved, other, longer = (tmp_path / folder / "m.gguf" for folder in ("a", "b", "c", "d"))
    contents = {first: b"one", moved: b"one", other: b"two", longer: b"one" * 2}
    for path, content in contents.items():
        path.parent.mkdir()
        path.write_bytes(content)
    assert content_id(first) == content_id(moved)
    assert len({content_id(path) for path in (first, other, longer)}) == 3


def test_gguf_refuses_unknown_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "voice.gguf"
    writer = gguf.GGUFWriter(path, "no_such_architecture")
    writer.add_block_count(1)
    writer.add_tensor("token_embd.weight", np.zeros((8, 4), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(MapError, match=r"voice\.gguf could not be unpacked.*no_such_architecture"):
        TransformersModel.from_pretrained(path)
    assert list((tmp_path / "cache" / "act-steering").iterdir()) == []


@pytest.mark.parametrize("missing", ["gguf", "accelerate"])
def test_gguf_names_command_that_installs_readers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    hide_packages(monkeypatch, missing)
    (tmp_path / "mine.gguf").write_bytes(b"GGUF")
    with pytest.raises(MapError, match="pip install gguf accelerate"):
        TransformersModel.from_pretrained(tmp_path / "mine.gguf")


def test_gguf_unpacks_once_and_announces_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(unpacking, "_dequantise", lambda _file, folder: folder.mkdir())
    path = tmp_path / "mine.gguf"
    path.write_bytes(b"GGUF")
    with caplog.at_level(logging.INFO, "act_core"):
        folder = unpacking.unpacked(path)
        assert folder.is_dir()
        assert caplog.text.count("Unpacking mine.gguf") == 1
        assert unpacking.unpacked(path) == folder
    assert caplog.text.count("Unpacking mine.gguf") == 1
