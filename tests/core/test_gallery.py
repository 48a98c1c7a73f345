"""The gallery page: what it shows, and that nothing in a map from a stranger acts in it."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Generator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from command_line import Run, refused
from map_files import jpeg
from PIL import Image

from act_core import ActMap, MapError, gallery, save_map
from act_core.calibration import Calibration
from act_core.gallery import MAX_SWEEP_BYTES, write_gallery
from act_core.records import Evidence
from act_core.settings import FittedBy
from tools.comfyui.frontend import CHROMIUM, FLAGS

HOSTILE = (
    "</h2></title><script>document.title='run'</script><img src=x onerror=\"document.title='run'\"> & 'x' \u202etxt"
)
EVIDENCE = Evidence(f"probability of {HOSTILE}", 0.91, 0.85, 0.95, samples=72, model="demo")
MEASURED = Calibration((0.0, 1.0), (0.0, 1.0), (1.0, 0.7), (0.0, 0.6, 1.25), negative="none")


@pytest.fixture
def folder(tmp_path: Path, fitted: ActMap) -> Path:
    """A map with hostile texts and a sweep, one in a subfolder, and a file that is not a map."""
    folder = tmp_path / "maps"
    (folder / "more").mkdir(parents=True)
    hostile = replace(
        fitted,
        evidence=(EVIDENCE,),
        calibration=MEASURED,
        record=replace(fitted.record, source_prompts=(HOSTILE,), target_prompts=(f"{HOSTILE} drawn",)),
    )
    texts = dict.fromkeys(("title", "author", "description", "license", "usage_hint", "tags"), HOSTILE)
    save_map(hostile, folder / "java & script:<b>.safetensors", **texts, cover=jpeg())
    Image.new("RGB", (30, 10), "red").save(folder / "java & script:<b>.sweep.png")
    save_map(fitted, folder / "more" / "calm.safetensors", title="Calm", strength_range=(0, 1), keep_prompts=False)
    safetensors.torch.save_file({"lora_up": torch.zeros(2)}, folder / "lora.safetensors")
    return folder


class Elements(HTMLParser):
    """The elements of a page with their attributes, and its text."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def test_page_shows_what_maps_say(folder: Path) -> None:
    found = write_gallery(folder, folder / "gallery.html")
    assert [listed.name for listed in found if listed.header is None] == ["lora.safetensors"]
    page = Elements(folder / "gallery.html")
    for file in ("java & script:<b>.safetensors", "more/calm.safetensors"):
        assert file in page.text
        assert hashlib.sha256((folder / file).read_bytes()).hexdigest() in page.text
    for shown in ("Calm", "0 to 1", "0.91 (0.85 to 0.95)", "0 to 1 is strength 0 to 1.25", HOSTILE, "toy", " → "):
        assert shown in page.text
    assert "lora" not in page.text
    assert "source 0" not in page.text  # the other map keeps its prompts to itself
    cover, sweep = page.attributes("img")
    assert (cover["src"] or "").startswith("data:image/jpeg;base64,")
    assert (sweep["src"] or "").startswith("data:image/png;base64,")


def test_card_has_a_row_for_each_text(tmp_path: Path, fitted: ActMap) -> None:
    names = {"author": "author", "license": "license", "usage_hint": "use", "tags": "tags"}
    texts: dict[str, Any] = {name: f"text of {name}" for name in (*names, "description")}
    saved = save_map(fitted, tmp_path / "ink.safetensors", title="Ink", strength_range=(0, 0.5), **texts)
    Image.new("RGB", (30, 10), "red").save(tmp_path / "ink.sweep.jpg")
    write_gallery(tmp_path, tmp_path / "gallery.html")
    page = (tmp_path / "gallery.html").read_text("utf-8")
    rows = dict(re.findall("<dt>(.*?)</dt><dd[^>]*>(.*?)</dd>", page))
    assert {row: rows[row] for row in names.values()} == {row: texts[name] for name, row in names.items()}
    assert (rows["strength"], rows["model"]) == ("0 to 0.5", fitted.record.model)
    assert rows["size"] == f"{saved.stat().st_size / 1e6:.2f} MB"
    assert f">{texts['description']}</p>" in page
    assert len(Elements(tmp_path / "gallery.html").attributes("img")) == 1


def test_page_has_no_element_or_address_of_a_stranger(folder: Path) -> None:
    write_gallery(folder, folder / "gallery.html")
    page = Elements(folder / "gallery.html")
    used = {"html", "head", "meta", "title", "style", "body", "h1", "main", "article", "h2", "img", "p", "dl", "dt"}
    assert {tag for tag, _ in page.found} == used | {"dd", "ul", "li", "a", "code"}
    names = {name for _, attributes in page.found for name in attributes}
    assert not [name for name in names if name.startswith("on") or name == "style"]
    links = [attributes["href"] or "" for attributes in page.attributes("a")]
    assert links == ["./java%20%26%20script%3A%3Cb%3E.safetensors", "./more/calm.safetensors"]
    # A quotation mark in a title does not end an attribute.
    assert [image["alt"] for image in page.attributes("img")] == [
        f"Cover of {HOSTILE}",
        f"{HOSTILE} at several strengths",
    ]
    saved_as = [attributes["download"] for attributes in page.attributes("a")]
    assert saved_as == ["java & script:<b>.safetensors", "calm.safetensors"]
    policy = page.attributes("meta")[1]["content"] or ""
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "script" not in policy
    assert "unsafe" not in policy


@pytest.mark.parametrize("fitted_by", ["transport", "refinement"])
def test_page_shows_the_first_prompts_of_each_kind_of_map(tmp_path: Path, fitted: ActMap, fitted_by: FittedBy) -> None:
    """A refinement has captions of pictures alone, some of them perhaps empty."""
    targets = ("a cat in ink", "", "a dog in ink", "a hen in ink")
    sources = () if fitted_by == "refinement" else ("a cat", "a fox", "a dog", "a hen")
    record = replace(fitted.record, fitted_by=fitted_by, source_prompts=sources, target_prompts=targets)
    save_map(replace(fitted, record=record), tmp_path / "ink.safetensors", title="Ink")
    write_gallery(tmp_path, tmp_path / "gallery.html")
    text = Elements(tmp_path / "gallery.html").text
    shown = {"transport": "a cat → a cat in inka fox → a dog → a dog in ink", "refinement": "a cat in inka dog in ink"}
    assert f"prompts{shown[fitted_by]}" in text
    assert "hen" not in text  # three are enough to see what a map is


def test_page_shows_no_prompts_of_pictures_without_captions(tmp_path: Path, fitted: ActMap) -> None:
    record = replace(fitted.record, source_prompts=("",) * 3, target_prompts=("",) * 3)
    save_map(replace(fitted, record=record), tmp_path / "ink.safetensors", title="Ink")
    write_gallery(tmp_path, tmp_path / "gallery.html")
    terms = re.findall("<dt>(.*?)</dt>", (tmp_path / "gallery.html").read_text("utf-8"))
    assert "model" in terms
    assert "prompts" not in terms


def test_page_elsewhere_has_no_links(folder: Path, tmp_path: Path) -> None:
    write_gallery(folder, tmp_path / "page.html")
    page = Elements(tmp_path / "page.html")
    assert page.attributes("a") == []
    assert "more/calm.safetensors" in page.text
    assert str(tmp_path) not in (tmp_path / "page.html").read_text("utf-8")


def test_page_leaves_out_sweeps_that_are_not_pictures_of_the_folder(folder: Path, tmp_path: Path) -> None:
    sweep = folder / "java & script:<b>.sweep.png"
    outside = tmp_path / "outside.png"
    sweep.rename(outside)
    contents = (b"<svg onload=alert(1)>", b"\x89PNG" + bytes(MAX_SWEEP_BYTES))
    for content in contents:
        sweep.write_bytes(content)
        write_gallery(folder, folder / "gallery.html")
        assert len(Elements(folder / "gallery.html").attributes("img")) == 1
    sweep.unlink()
    sweep.symlink_to(outside)
    write_gallery(folder, folder / "gallery.html")
    assert len(Elements(folder / "gallery.html").attributes("img")) == 1


def test_page_leaves_out_only_what_cannot_be_read(
    folder: Path, fitted: ActMap, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = folder / "gallery.html"
    (folder / "loop.safetensors").symlink_to("loop.safetensors")
    names = os.fsencode(folder) + b"/bell\x07.safetensors", os.fsencode(folder) + b"/latin\xe9.safetensors"
    for name in names:
        os.rename(save_map(fitted, folder / "new.safetensors"), name)
    Image.new("RGB", (30, 10), "red").save(folder / "bell\x07.sweep.png")
    found = write_gallery(folder, out)
    assert {listed.name for listed in found if listed.header is None} == {"lora.safetensors", "loop.safetensors"}
    page = Elements(out)
    addresses = [attributes["href"] for attributes in page.attributes("a")]
    assert "./bell%07.safetensors" in addresses
    assert "./latin%E9.safetensors" in addresses
    assert len(page.attributes("img")) == 3
    assert "bell\ufffd.safetensors" in page.text

    def unreadable(path: Path) -> str:
        if path.name == "calm.safetensors":
            raise PermissionError(13, "Permission denied", str(path))
        return "0" * 64

    monkeypatch.setattr(gallery, "_sha256", unreadable)
    (left_out,) = [listed for listed in write_gallery(folder, out) if listed.name == "more/calm.safetensors"]
    assert left_out.problem == "calm.safetensors cannot be read: Permission denied."
    assert "Calm" not in Elements(out).text


def test_failed_gallery_keeps_old_page(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = folder / "gallery.html"
    out.write_text("what was there")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MapError, match=r"could not be written: No space left"):
        write_gallery(folder, out)
    assert out.read_text() == "what was there"
    assert not list(folder.glob(".*"))


def test_command_writes_page_and_names_what_it_left_out(run: Run, folder: Path) -> None:
    status, out, _ = run("gallery", folder)
    assert status == 0
    assert "lora.safetensors was left out: it is a LoRA" in out
    assert f"Saved {folder / 'gallery.html'} with 2 maps." in out
    assert (folder / "gallery.html").is_file()


def test_command_refuses_bad_input(run: Run, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(run("gallery", tmp_path / "empty"), "has no usable map")
    refused(run("gallery", tmp_path / "nowhere"), "nowhere is not a folder")
    refused(run("gallery", folder, "--out", tmp_path / "page.safetensors"), "must end in .html")
    refused(run("gallery", folder, "--out", tmp_path / "gone" / "page.html"), "could not be written")
    assert not list(tmp_path.glob("page*"))


@pytest.fixture
def browser() -> Generator[Any]:
    """A headless Chromium."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: NO BROWSER TEST")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine: THE GALLERY IS NOT TESTED IN A BROWSER")
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        yield launched
        launched.close()


def test_page_in_browser_shows_hostile_title_as_text(folder: Path, browser: Any) -> None:
    out = folder / "gallery.html"
    write_gallery(folder, out)
    page = browser.new_page(viewport={"width": 1000, "height": 800})
    errors: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: errors.append(message.text))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(out.as_uri())
    assert page.title() == "maps: ACT maps"
    assert page.locator("h2").all_inner_texts() == [HOSTILE, "Calm"]
    assert page.evaluate("() => [...document.images].map(image => image.naturalWidth)") == [8, 30]
    assert page.evaluate("() => getComputedStyle(document.querySelector('main')).display") == "grid"
    assert [url for url in requests if not url.startswith("data:")] == [out.as_uri()]
    assert errors == []


def test_page_in_browser_runs_no_script(folder: Path, browser: Any) -> None:
    """Even if a text got into the page unescaped, its policy would keep the browser from running it."""
    out = folder / "gallery.html"
    write_gallery(folder, out)
    text = out.read_text("utf-8")
    injected = "<script>document.title = 'run'</script><img src=http://127.0.0.1:9/x onerror=\"document.title='run'\">"
    out.write_text(re.sub("<h1>", f"{injected}<h1>", text, count=1), "utf-8")
    page = browser.new_page()
    page.goto(out.as_uri())
    assert page.locator("script").count() == 1
    assert page.title() == "maps: ACT maps"
