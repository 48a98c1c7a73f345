"""Load ACT Demo Model: a tiny text-to-image model, with which every example runs on any machine."""

from __future__ import annotations

from comfy_api.latest import io

from .common import CATEGORY, aliases
from .host.demo_model import load_demo_model


class LoadACTDemoModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoadACTDemoModel",
            display_name="Load ACT Demo Model",
            category=CATEGORY,
            **aliases("activation transport", "tiny model", "test model"),
            description="The pack's own tiny model: 64 x 64 pictures of emoji subjects in five styles, within a second "
            "on any machine. A prompt is a subject and a style, such as: cat, black ink icon.",
            inputs=[],
            outputs=[
                io.Model.Output(tooltip="The diffusion model."),
                io.Clip.Output(tooltip="Its text encoder, which reads 16 tokens."),
                io.Vae.Output(tooltip="Its autoencoder."),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(*load_demo_model())
