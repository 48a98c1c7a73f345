"""Draws ``picture_sets``: pictures of the demo model with captions, in styles by image processing and by prompt.

python -m tools.make_picture_sets
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter, ImageOps

from act_core.models.diffusers import DiffusersModel

ROOT = Path(__file__).parents[1]
SUBJECTS = (
    "apple",
    "bell",
    "butterfly",
    "car",
    "castle",
    "dog",
    "fish",
    "frog",
    "key",
    "mushroom",
    "owl",
    "rocket",
    "teapot",
    "tree",
    "umbrella",
    "whale",
)


def sepia(image: Image.Image) -> Image.Image:
    """An old photograph."""
    return ImageOps.colorize(image.convert("L"), (45, 25, 10), (250, 235, 205), mid=(165, 120, 75))


def blueprint(image: Image.Image) -> Image.Image:
    """White outlines on blue."""
    edges = ImageOps.autocontrast(image.convert("L").filter(ImageFilter.FIND_EDGES), cutoff=2)
    # The filter takes the border of the picture for an edge.
    ImageDraw.Draw(edges).rectangle((0, 0, *(side - 1 for side in edges.size)), outline=0, width=2)
    return ImageOps.colorize(edges, (24, 64, 150), (245, 250, 255))


STYLES: dict[str, Callable[[Image.Image], Image.Image]] = {"sepia": sepia, "blueprint": blueprint}
# Styles that the demo model knows, by what prompts call them. The captions do not.
PROMPTED = {"3d_render": "3d render"}


def main() -> None:
    model = DiffusersModel.from_pretrained(ROOT / "demo_model")

    def drawn(style: str = "") -> list[Image.Image]:
        prompts = [f"{subject}, {style}" if style else subject for subject in SUBJECTS]
        return model.generate(prompts, steps=8, guidance=3.0, seed=0)

    plain = drawn()
    sets = {name: [process(image) for image in plain] for name, process in STYLES.items()}
    sets |= {name: drawn(style) for name, style in PROMPTED.items()}
    for name, images in sets.items():
        folder = ROOT / "picture_sets" / name
        folder.mkdir(parents=True, exist_ok=True)
        for subject, image in zip(SUBJECTS, images, strict=True):
            image.save(folder / f"{subject}.png", optimize=True)
            (folder / f"{subject}.txt").write_text(f"{subject}\n", encoding="utf-8")
        print(f"wrote {len(SUBJECTS)} pictures to {folder.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
