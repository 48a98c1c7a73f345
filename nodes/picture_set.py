"""ACT Picture Set: the pictures of a style, from a folder."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from comfy_api.latest import io

from ..act_core.image_files import has_captions, is_picture, read_pictures
from .common import CATEGORY, aliases
from .host import folders


class ACTPictureSet(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ACTPictureSet",
            display_name="ACT Picture Set",
            category=CATEGORY,
            **aliases("activation transport", "load image folder", "image dataset", "style pictures"),
            description="All pictures in a folder, with the captions in the text files beside them, ready for Fit ACT "
            "Map From Images. Your own sets are folders in models/act_picture_sets, or in ComfyUI's input folder.",
            inputs=[
                io.Combo.Input(
                    "name",
                    options=list(folders.picture_sets()),
                    tooltip="A folder of pictures that ships with the pack, or one of yours.",
                ),
                io.Boolean.Input(
                    "captions",
                    default=True,
                    tooltip="Read what each picture shows from the text file beside it, cat.txt beside cat.png, if "
                    "there are any.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="images", is_output_list=True, tooltip="The pictures, in their own sizes."
                ),
                io.String.Output(
                    display_name="captions",
                    is_output_list=True,
                    tooltip="One for each picture; empty without captions.",
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, name: str | None, captions: bool | None) -> str:
        if name is None:  # connected: the host compares what it is connected to
            return ""
        digest = hashlib.sha256()
        for path in sorted(folders.find_picture_set(name).iterdir()):
            if is_picture(path) or (path.suffix == ".txt" and path.is_file()):
                digest.update(path.name.encode() + path.read_bytes())
        return digest.hexdigest()

    @classmethod
    def execute(cls, name: str, captions: bool) -> io.NodeOutput:
        folder = folders.find_picture_set(name)
        pictures = read_pictures(folder, captions=captions and has_captions(folder))
        images = [torch.from_numpy(np.asarray(picture.image, dtype=np.float32) / 255)[None] for picture in pictures]
        return io.NodeOutput(images, [picture.caption for picture in pictures])
