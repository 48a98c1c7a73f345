"""ACT Prompt Set: the two lists of prompts that a map is fitted on."""

from __future__ import annotations

from comfy_api.latest import io

from ..act_core.prompts import load_prompt_set
from .common import CATEGORY, MAX_PROMPTS, aliases
from .host import folders


class ACTPromptSet(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ACTPromptSet",
            display_name="ACT Prompt Set",
            category=CATEGORY,
            **aliases("activation transport", "prompt list", "source and target prompts"),
            description="Source and target prompts from a file, ready for Fit ACT Map. Your own sets are text files "
            "in models/act_prompt_sets.",
            inputs=[
                io.Combo.Input(
                    "name",
                    options=folders.prompt_sets(),
                    tooltip="A prompt set that ships with the pack, or one of yours.",
                ),
                io.Int.Input("count", default=128, min=2, max=MAX_PROMPTS, tooltip="Maximum prompts per side."),
            ],
            outputs=[
                io.String.Output(display_name="source", tooltip="The source prompts, one per line."),
                io.String.Output(display_name="target", tooltip="The target prompts, one per line."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, name: str | None, count: int | None) -> str:
        return folders.fingerprint(folders.PROMPT_SETS, name)

    @classmethod
    def execute(cls, name: str, count: int) -> io.NodeOutput:
        prompts = load_prompt_set(folders.find(folders.PROMPT_SETS, name))
        return io.NodeOutput("\n".join(prompts.source[:count]), "\n".join(prompts.target[:count]))
