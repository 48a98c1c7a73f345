"""Save ACT Map and Load ACT Map."""

from __future__ import annotations

import io as bytes_io
from typing import Any

import numpy as np
from comfy_api.latest import io
from PIL import Image

from ..act_core import ActMap, load_map, save_map
from ..act_core.image_files import as_rgb
from ..act_core.mapfile import write_sidecars
from ..act_core.summary import describe
from .common import CATEGORY, MAX_STRENGTH, ACTMapIO, aliases
from .host import folders
from .map_cards import shown_card, summary_of

COVER_SIDE = 256  # pixels
DEFAULT_STRENGTHS = 0.0, 1.0


class SaveACTMap(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SaveACTMap",
            display_name="Save ACT Map",
            category=CATEGORY,
            **aliases("activation transport", "export map", "write map"),
            description="Saves a map as one small file in models/act_maps, to keep and to share. Files are never "
            "overwritten: if the name is taken, the new file gets a number.",
            is_output_node=True,
            inputs=[
                ACTMapIO.Input("act_map", tooltip="The map to save."),
                io.String.Input(
                    "name",
                    default="my_map",
                    tooltip="File name, without .safetensors; styles/ink saves into a subfolder.",
                ),
                io.String.Input("title", default="", tooltip="Title of the map; if empty, keeps the current title."),
                io.String.Input("author", default="", tooltip="Author of the map; if empty, keeps the current author."),
                io.String.Input(
                    "description",
                    default="",
                    multiline=True,
                    tooltip="What the map does, and for which model; if empty, keeps the current description.",
                ),
                io.String.Input(
                    "license", default="", tooltip="License, such as CC0-1.0; if empty, keeps the current license."
                ),
                *(
                    io.Float.Input(
                        name,
                        default=default,
                        min=-MAX_STRENGTH,
                        max=MAX_STRENGTH,
                        step=0.05,
                        tooltip=f"{end} recommended strength. 0 to 1 leaves the range of the map as it is.",
                    )
                    for name, default, end in zip(
                        ("strength_low", "strength_high"), DEFAULT_STRENGTHS, ("Lowest", "Highest"), strict=True
                    )
                ),
                io.Image.Input("thumbnail", optional=True, tooltip="A cover picture; it is scaled down."),
                io.String.Input(
                    "usage_hint",
                    default="",
                    optional=True,
                    tooltip="How to use the map, in one line; if empty, keeps the current hint.",
                ),
                io.String.Input(
                    "tags",
                    default="",
                    optional=True,
                    tooltip="Tags, separated by commas; if empty, keeps the current tags.",
                ),
                io.Boolean.Input(
                    "keep_prompts",
                    default=True,
                    optional=True,
                    tooltip="Stores the prompts that the map was fitted from. Off stores only their number and a hash.",
                ),
                io.Boolean.Input(
                    "sidecars",
                    default=False,
                    optional=True,
                    tooltip="Also writes the cover as a picture and a .metadata.json beside the map, for managers of "
                    "models such as Lora Manager.",
                ),
            ],
            outputs=[io.String.Output(display_name="name", tooltip="The name under which Load ACT Map lists it.")],
        )

    @classmethod
    def execute(
        cls,
        act_map: ActMap,
        name: str,
        title: str,
        author: str,
        description: str,
        license: str,
        strength_low: float,
        strength_high: float,
        thumbnail: Any = None,
        usage_hint: str = "",
        tags: str = "",
        keep_prompts: bool = True,
        sidecars: bool = False,
    ) -> io.NodeOutput:
        path = folders.new_map(name)
        strengths = strength_low, strength_high
        save_map(
            act_map,
            path,
            title=title or act_map.card.title or path.stem,
            author=author or None,
            description=description or None,
            license=license or None,
            usage_hint=usage_hint or None,
            tags=tags or None,
            strength_range=None if strengths == DEFAULT_STRENGTHS else strengths,
            cover=None if thumbnail is None else _jpeg(thumbnail),
            keep_prompts=keep_prompts,
        )
        if sidecars:
            write_sidecars(path, overwrite=True)  # of a map of that name which is gone
        text = f"Saved {path} ({path.stat().st_size / 1e6:.2f} MB)."
        return io.NodeOutput(folders.listed_name(path), ui={"text": (text,)})


class LoadACTMap(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoadACTMap",
            display_name="Load ACT Map",
            category=CATEGORY,
            **aliases("activation transport", "steering vector", "import map"),
            description="Loads a map from models/act_maps, or one that ships with the pack.",
            inputs=[
                io.Combo.Input("name", options=folders.names(folders.MAPS), tooltip="The map file."),
                io.Boolean.Input(
                    "allow_other_architecture",
                    default=False,
                    # Optional, or the host would refuse graphs from before it existed.
                    optional=True,
                    tooltip="Apply the map to a model of another architecture too, if its layers have the same names, "
                    "such as a Flux map to Chroma. Its effect there is a matter of luck.",
                ),
            ],
            outputs=[
                ACTMapIO.Output(display_name="act_map", tooltip="The map."),
                io.String.Output(display_name="report", tooltip="What the map is, and what it was fitted on."),
                io.String.Output(display_name="sha256", tooltip="SHA-256 of the file."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, name: str | None, allow_other_architecture: bool | None = False) -> str:
        return folders.fingerprint(folders.MAPS, name)

    @classmethod
    def execute(cls, name: str, allow_other_architecture: bool = False) -> io.NodeOutput:
        act_map = load_map(folders.find(folders.MAPS, name))
        if allow_other_architecture:
            act_map = act_map.for_any_architecture()
        shown = shown_card(act_map, summary_of(act_map), cls)
        return io.NodeOutput(act_map, describe(act_map), folders.sha256(name), ui=shown)


def _jpeg(images: Any) -> bytes:
    """The first picture of a batch ``[pictures, height, width, 3]``, scaled down, as the bytes of a JPEG file."""
    pixels = (images[0].float().cpu().numpy().clip(0, 1) * 255).round().astype(np.uint8)
    # Pillow takes grey without a channel.
    picture = as_rgb(Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels))
    picture.thumbnail((COVER_SIDE, COVER_SIDE))
    file = bytes_io.BytesIO()
    picture.save(file, "JPEG", quality=85)
    return file.getvalue()
