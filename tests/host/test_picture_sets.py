"""ACT Picture Set in the host: which folders it lists, and when it reads them again."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from controls import cached
from PIL import Image

from tools.comfyui.server import PACK, Graph, Host, Run


@pytest.fixture
def folder(host: Host) -> Iterator[Path]:
    """The host's input folder: a set of one picture, with the name of one that ships, and folders without pictures."""
    inputs = host.base / "input"
    for name in ("sepia", "texts", "3d"):  # ComfyUI itself makes one that is called 3d
        (inputs / name).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), "red").save(inputs / "sepia" / "own.png")
    (inputs / "texts" / "notes.txt").write_text("no picture")
    yield inputs
    for name in ("sepia", "texts"):
        shutil.rmtree(inputs / name)


def listed(host: Host) -> list[str]:
    kind, options = host.get("/object_info/ACTPictureSet")["ACTPictureSet"]["input"]["required"]["name"]
    return options["options"] if kind == "COMBO" else kind


def loaded(host: Host, name: str = "sepia") -> tuple[Run, bool]:
    """A run that shows the pictures of a set, and whether the host read them anew."""
    graph = Graph()
    pictures = graph.add("ACTPictureSet", name=name, captions=False)
    graph.add("PreviewImage", images=pictures)
    run = host.run(graph)
    return run, pictures.number not in cached(run.status)


def shipped() -> set[str]:
    return {path.name for path in (PACK / "picture_sets").iterdir() if path.is_dir()}


@pytest.mark.usefixtures("folder")
def test_only_folders_with_pictures_are_listed(host: Host) -> None:
    assert {"3d", "texts"}.isdisjoint(listed(host))
    assert shipped() <= set(listed(host))
    assert listed(host).count("sepia") == 1


@pytest.mark.usefixtures("folder")
def test_folder_in_input_comes_before_the_one_that_ships(host: Host) -> None:
    assert len(host.images(loaded(host)[0])) == 1


def test_only_pictures_and_captions_make_it_read_again(host: Host, folder: Path) -> None:
    loaded(host)
    (folder / "sepia" / "film.mp4").write_bytes(b"a long film")
    assert not loaded(host)[1]
    for name, content in (
        ("own.txt", b"a square"),
        ("own.png", (PACK / "web/docs/FitACTMap/fit_your_own.png").read_bytes()),
    ):
        (folder / "sepia" / name).write_bytes(content)
        assert loaded(host)[1], name
