"""Fit ACT Text Map and ACT Steered Text: fit a map for a language model, and write text with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..act_core import ActMap, MapError, fit, steer
from ..act_core.settings import MAX_SEED
from ..act_core.summary import describe
from .common import (
    CATEGORY,
    STRENGTH,
    ACTMapIO,
    WithStrengths,
    aliases,
    method_inputs,
    one_text,
    only,
    prompts_of,
    sites_input,
    strength_input,
)
from .host.language import LanguageModel
from .host.progress import FitProgress, StepProgress
from .language_model import LanguageModelIO

if TYPE_CHECKING:
    from ..act_core.models.transformers import TransformersModel

INSTRUCTION = (
    "Expand this short idea into a detailed prompt for an image model. Describe the subject, the place, the light and "
    "the mood in one or two sentences."
)
BARE, QUESTION, ANSWER = FORMATS = ["bare text", "question", "answer"]
MODES = ["auto", "chat", "continue"]
# Number of tokens that run together in a fit.
_FIT_TOKENS = 4096
_FIT, _WRITE = "Fit ACT Text Map", "ACT Steered Text"


class FitACTTextMap(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FitACTTextMap",
            display_name=_FIT,
            category=CATEGORY,
            description="Fits a map from what a language model does for the source texts to what it does for "
            "the target texts. Nothing is trained: every text runs through the model once.",
            **aliases("activation transport", "train map", "make slider", "llm"),
            # Nodes with many texts return a list, which should give one fit of all of them, not one fit each.
            is_input_list=True,
            inputs=[
                LanguageModelIO.Input("language_model", tooltip="The model to fit a map for. It is left unchanged."),
                io.String.Input(
                    "source",
                    multiline=True,
                    tooltip="What to move away from: 32 texts or more, one per line. Lines that begin with # are "
                    "comments.",
                ),
                io.String.Input(
                    "target",
                    multiline=True,
                    tooltip="What to move towards, one text per line. Use the same topics as in the source, so that "
                    "only what you want differs.",
                ),
                sites_input(
                    "Which layers are steered. auto selects the attention outputs, which keeps the text fluent."
                ),
                *method_inputs(end_to_end=True),
                *_chat_inputs(),
            ],
            outputs=[
                ACTMapIO.Output(display_name="act_map", tooltip="The map."),
                io.String.Output(display_name="report", tooltip="What was fitted, on what, and where it acts most."),
            ],
        )

    @classmethod
    def execute(
        cls,
        language_model: Any,
        source: Any,
        target: Any,
        sites: Any,
        estimator: Any,
        order: Any,
        support: Any,
        format: Any,
        system: Any,
        user: Any,
    ) -> io.NodeOutput:
        sides = prompts_of(source, "source", _FIT), prompts_of(target, "target", _FIT)
        loaded: LanguageModel = only("language_model", language_model)
        model = loaded.on_device(_FIT_TOKENS)
        kind = only("format", format)
        if kind != BARE:
            texts = (
                one_text(only("system", system), "system text", _FIT),
                one_text(only("user", user), "user text", _FIT),
            )
            model = _in_chat(model, *texts, answer=kind == ANSWER)
            article = "an" if kind == ANSWER else "a"
            model.notes = (*model.notes, f"fitted in the chat template, each prompt as {article} {kind}")
        method = {"sites": sites, "estimator": estimator, "order": order, "support": support}
        settings = {name: only(name, value) for name, value in method.items()}
        act_map = fit(model, *sides, memory_budget=loaded.budget(), progress=FitProgress(), **settings)
        report = describe(act_map)
        return io.NodeOutput(act_map, report, ui={"text": (report,)})


def _chat_inputs() -> list[io.Input]:
    """How a fit presents each text to the model."""
    return [
        io.Combo.Input(
            "format",
            options=FORMATS,
            default=BARE,
            tooltip="How the model reads each line: as bare text, as a question in its chat template, or as its own "
            "answer to the user text below.",
        ),
        io.String.Input(
            "system", default="", multiline=True, tooltip="In the chat template: the system text before each line."
        ),
        io.String.Input(
            "user", default="", multiline=True, tooltip="In the chat template: the user text before each line."
        ),
    ]


class ACTSteeredText(WithStrengths, io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ACTSteeredText",
            display_name=_WRITE,
            category=CATEGORY,
            description="Expands a short idea into an image prompt with a language model, steered by a map.",
            **aliases("activation transport", "llm", "expand prompt", "generate text"),
            inputs=[
                LanguageModelIO.Input("language_model", tooltip="From Load ACT Language Model."),
                io.String.Input("prompt", multiline=True, tooltip="The idea, or the beginning of a text."),
                io.String.Input(
                    "instruction",
                    default=INSTRUCTION,
                    multiline=True,
                    tooltip="What the model should do with the prompt; used only in chat mode.",
                ),
                strength_input("strength", f"Strength of the map. {STRENGTH}"),
                io.Combo.Input(
                    "mode",
                    options=MODES,
                    default="auto",
                    tooltip="chat: the model answers, in its chat template. continue: it continues the prompt. "
                    "auto: chat, if the model has a template.",
                ),
                *_sampling_inputs(),
                io.Boolean.Input(
                    "compare", default=False, tooltip="Also write the text without the map. Takes twice as long."
                ),
                ACTMapIO.Input("act_map", optional=True, tooltip="A text map; without one the text is not steered."),
            ],
            outputs=[
                io.String.Output(display_name="text", tooltip="The text."),
                io.String.Output(
                    display_name="unsteered", tooltip="The text without the map; empty unless compare is on."
                ),
                io.String.Output(display_name="report", tooltip="How many sites of the map fired, and warnings."),
            ],
        )

    @classmethod
    def execute(
        cls,
        language_model: LanguageModel,
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
        prompt, instruction = one_text(prompt, "prompt", _WRITE), one_text(instruction, "instruction", _WRITE)
        if not prompt.strip():
            raise MapError("The prompt of ACT Steered Text is empty; write an idea, or the beginning of a text.")
        model = language_model.on_device(len(prompt) + len(instruction) + max_length)
        chats = mode == "chat" or (mode == "auto" and bool(model.tokenizer.chat_template))
        writer = _in_chat(model, "", instruction, answer=False) if chats else model
        step = StepProgress((1 + (compare and act_map is not None)) * max_length)

        def written() -> str:
            (text,) = writer.generate(
                [prompt],
                max_new_tokens=max_length,
                temperature=temperature,
                top_p=top_p,
                repetition_penalty=repetition_penalty,
                seed=seed,
                step=step,
            )
            # A continuation makes no sense without its beginning.
            return text.strip() if chats else prompt + text

        if act_map is None:
            text = written()
            return io.NodeOutput(text, text if compare else "", "No map is connected.", ui={"text": (text,)})
        with steer(model.modules, act_map, strength) as steering:
            text = written()
        unsteered = written() if compare else ""
        report = "\n".join((*steering.notes, *steering.warnings, f"{steering.coverage}."))
        return io.NodeOutput(text, unsteered, report, ui={"text": (text,)})


def _sampling_inputs() -> list[io.Input]:
    """Inputs for sampling tokens."""
    return [
        io.Int.Input("max_length", default=80, min=1, max=32768, tooltip="Maximum number of tokens to write."),
        io.Float.Input(
            "temperature",
            default=0.8,
            min=0.0,
            max=5.0,
            step=0.05,
            tooltip="0 always picks the most likely token; higher values vary more.",
        ),
        io.Float.Input(
            "top_p",
            default=0.95,
            min=0.01,
            max=1.0,
            step=0.01,
            tooltip="Sample only from the most likely tokens whose probabilities add up to this share.",
        ),
        io.Float.Input(
            "repetition_penalty",
            default=1.1,
            min=0.1,
            max=5.0,
            step=0.01,
            tooltip="Above 1, tokens that were already written become less likely.",
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=MAX_SEED,
            control_after_generate=True,
            tooltip="The same seed gives the same text.",
        ),
    ]


def _in_chat(model: TransformersModel, system: str, user: str, *, answer: bool) -> TransformersModel:
    from ..act_core.models.transformers import Chat

    return model.in_chat(Chat(system, user, answer))
