"""A style from a folder of pictures, whose captions do not name it."""

from __future__ import annotations

from pathlib import Path

from ..image_files import read_pictures
from ..models.diffusers import DiffusersModel
from ..models.picture_loss import PictureModel
from ..plots import grid
from ..progress import refine_with_bar
from ..settings import RefineSettings
from . import shipped
from .chapter import Chapter, saved
from .pictures import SHOWN, SUBJECTS, Sweep, palette_distance

TITLE = "A style from a folder of pictures"
PICTURE_SET = "3d_render"
STRENGTHS = (0.0, 0.5, 1.0)
STEPS = 60
RATE = 0.02


def show(model: DiffusersModel, output: Path) -> Chapter:
    """Fit the map, and draw subjects that are not in the folder."""
    folder = shipped("picture_sets") / PICTURE_SET
    given = read_pictures(folder, captions=True)
    label = f"Fitting {len(given)} pictures"
    act_map = refine_with_bar(PictureModel(model), given, RefineSettings(steps=STEPS, rate=RATE), label)
    path = output / "from_pictures.safetensors"
    act_map = saved(act_map, path, "3D from pictures", "Draws in 3D, learned from a folder of pictures.", (0.0, 1.0))
    subjects = [subject for subject in SUBJECTS if not any(picture.caption in subject for picture in given)]
    sweep = Sweep.drawn(model, act_map, subjects, STRENGTHS, "other subjects")
    sweep.save_sheet(output / "from_pictures.png")
    originals = [picture.image.resize(sweep.images[0][0].size) for picture in given]
    grid([originals[:SHOWN]], [""], [picture.caption for picture in given[:SHOWN]], zoom=2).save(output / "given.png")
    return Chapter(
        title=TITLE,
        story=(
            f"Given: {len(given)} pictures that look three-dimensional, with captions that name only what they show, "
            f"such as '{given[0].caption}'. The map follows the gradient of the model's loss on them, and no weight of "
            "the model changes. The subjects that it draws are others."
        ),
        map_file=path,
        columns=("strength", "distance from the colours of the folder"),
        rows=sweep.measured(lambda image: palette_distance(image, originals)),
        reading=(
            f"Mean over {len(subjects)} pictures with a 95% interval; 0 would be the colours of the folder. The last "
            "row is a control: the same map with its channels shuffled."
        ),
        pictures=(
            ("given.png", "some of the given pictures"),
            ("from_pictures.png", "other subjects at each strength"),
        ),
    )
