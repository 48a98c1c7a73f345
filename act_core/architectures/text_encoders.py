"""Text encoders of image models, in transformers and in ComfyUI, which use the same names."""

from __future__ import annotations

from .base import Architecture, numbered

_AUTO = ("output", "attention", "mlp")

CLIP = Architecture(
    "clip_text_model",
    {
        "norms": ("*layers.*.layer_norm[12]", "*final_layer_norm"),
        "attention": ("*.self_attn.out_proj",),
        "mlp": ("*.mlp.fc2",),
        "blocks": numbered("*.layers."),
        "output": ("*final_layer_norm", "text_projection"),
    },
    # Most of a style comes through the outputs of the text encoder (`benchmarks/style_settings.py`).
    auto=_AUTO,
    aliases=("CLIPTextModel",),
    foldable=("norms", "attention", "mlp"),
)
T5 = Architecture(
    "t5",
    {
        # A block of a decoder has a third layer, with attention to the encoder.
        "norms": ("*.layer.[012].layer_norm", "*final_layer_norm"),
        "attention": ("*.SelfAttention.o", "*.EncDecAttention.o"),
        "mlp": ("*.DenseReluDense.wo",),
        # An encoder or decoder alone has no name before that of its blocks.
        "blocks": tuple(f"{block}#0" for block in (*numbered("block."), *numbered("*.block."))),
        "output": ("*final_layer_norm",),
    },
    auto=_AUTO,
    aliases=("T5", "umt5", "mt5"),
)
