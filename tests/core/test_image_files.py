"""Reading a folder of pictures: what is read how, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from act_core.errors import FitError
from act_core.image_files import Picture, as_rgb, as_values, check_pictures, has_captions, read_pictures

RED = (255, 0, 0)


def test_pictures_come_in_order_with_captions(tmp_path: Path) -> None:
    for name, colour in (("b🐱.png", "blue"), ("a.JPG", "red"), ("c.webp", "green")):
        Image.new("RGB", (8, 8), colour).save(tmp_path / name)
        (tmp_path / name).with_suffix(".txt").write_text(f" a {colour}\nthing ", encoding="utf-8")
    (tmp_path / "notes.md").write_text("not a picture")
    (tmp_path / "._a.JPG").write_bytes(b"\0\5\x16\7")  # of macOS
    (tmp_path / "deeper").mkdir()
    pictures = read_pictures(tmp_path, captions=True)
    assert [picture.caption for picture in pictures] == ["a red thing", "a blue thing", "a green thing"]
    assert [picture.caption for picture in read_pictures(tmp_path)] == ["", "", ""]
    assert has_captions(tmp_path)
    for path in tmp_path.glob("*.txt"):
        path.unlink()
    assert not has_captions(tmp_path)


def test_16_bits_are_scaled() -> None:
    image = Image.fromarray(np.full((4, 4), 32768, np.uint16))
    assert as_rgb(image).getpixel((0, 0)) == (127, 127, 127)


def test_floats_are_scaled() -> None:
    image = Image.fromarray(np.array([[0.5, 2.0, -1.0]], np.float32))
    assert [as_rgb(image).getpixel((x, 0)) for x in range(3)] == [(127,) * 3, (255,) * 3, (0,) * 3]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "I", "F"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    image = as_rgb(Image.new(mode, (4, 4)))
    assert image.mode == "RGB"
    assert image.size == (4, 4)


def test_transparent_pixels_are_white() -> None:
    image = Image.new("RGBA", (2, 1), (*RED, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    assert [as_rgb(image).getpixel((x, 0)) for x in range(2)] == [RED, (255, 255, 255)]


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert read_pictures(tmp_path)[0].image.getpixel((0, 0)) == RED


def test_turned_photo_is_upright(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 4))
    exif = image.getexif()
    exif[0x0112] = 6  # turned by 90 degrees
    image.save(tmp_path / "photo.jpg", exif=exif)
    assert read_pictures(tmp_path)[0].image.size == (4, 8)


@pytest.mark.parametrize("size", [(1, 1), (300, 20), (64, 64), (8000, 10)])
def test_any_size_is_fitted(size: tuple[int, int]) -> None:
    values = as_values(Image.new("RGB", size, "white"), 16, 8)
    assert values.shape == (3, 8, 16)
    assert (values == 1).all()


def test_crop_is_around_the_centre() -> None:
    image = Image.new("RGB", (40, 10), "black")
    image.paste("white", (15, 0, 25, 10))
    assert (as_values(image, 10, 10) == 1).all()


def test_unusable_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FitError, match="is not a folder"):
        read_pictures(tmp_path / "nowhere")
    with pytest.raises(FitError, match="holds no pictures"):
        read_pictures(tmp_path)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nrest")
    with pytest.raises(FitError, match=r"broken\.png is not a picture"):
        read_pictures(tmp_path)


def test_cut_off_picture_is_refused(tmp_path: Path) -> None:
    Image.effect_noise((64, 64), 50).save(tmp_path / "whole.png")
    data = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "whole.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(FitError, match=r"whole\.png is not a picture that can be read"):
        read_pictures(tmp_path)


def test_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("1", (100, 100)).save(tmp_path / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(FitError, match=r"huge\.png is too large"):
        read_pictures(tmp_path)


def test_caption_starts_after_the_mark_of_windows_editors(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "cat.png")
    (tmp_path / "cat.txt").write_text("a cat", encoding="utf-8-sig")
    assert read_pictures(tmp_path, captions=True)[0].caption == "a cat"


@pytest.mark.parametrize(("text", "message"), [(None, "has no caption"), (b" \n", "is empty"), (b"\xff", "UTF-8")])
def test_missing_captions_are_refused(tmp_path: Path, text: bytes | None, message: str) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "cat.png")
    if text is not None:
        (tmp_path / "cat.txt").write_bytes(text)
    with pytest.raises(FitError, match=f"cat.*{message}"):
        read_pictures(tmp_path, captions=True)


@pytest.mark.parametrize(("count", "message"), [(0, "no pictures"), (1, "1 picture"), (3, "All pictures are the same")])
def test_too_little_to_learn_from(count: int, message: str) -> None:
    with pytest.raises(FitError, match=message):
        check_pictures([Picture(Image.new("RGB", (4, 4), "red"), f"caption {n}") for n in range(count)])


def test_pictures_of_other_sizes_differ() -> None:
    check_pictures([Picture(Image.new("RGB", size)) for size in ((4, 2), (2, 4))])
