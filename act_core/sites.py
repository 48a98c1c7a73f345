"""Which outputs of a model are read and moved: presets, patterns, discovery, coverage."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .errors import MapError
from .forwards import intercepted, output_tensors, submodules
from .maps import Layout, Site, Spatial, matches
from .transport import displace, displacement


@dataclass(frozen=True)
class Component:
    """A part of a pipeline that holds sites.

    Attributes:
        name: such as ``clip_l``.
        module: its root.
        architecture: its family, see `PRESETS`.
        passes: by submodule that runs more than once in a call of the model, the pass that a fit looks at, counted from
            0; the first of all others.
    """

    name: str
    module: nn.Module
    architecture: str
    passes: Mapping[str, int] = field(default_factory=dict[str, int], hash=False)


@dataclass(frozen=True)
class Coverage:
    """How many sites of a map were found in the model, and how many did fire.

    Attributes:
        expected: keys of all sites of the map, in the components that are connected.
        missing: keys that the model does not have.
        fires: how often each found site fired; one inside a compiled graph counts once, from when
            it was compiled.
        unconnected: components of the map that no model was given for.
    """

    expected: tuple[str, ...]
    missing: tuple[str, ...]
    fires: Mapping[str, int]
    unconnected: tuple[str, ...] = ()

    @property
    def fired(self) -> tuple[str, ...]:
        return tuple(key for key, count in self.fires.items() if count)

    @property
    def silent(self) -> tuple[str, ...]:
        """Found, but not run."""
        return tuple(key for key, count in self.fires.items() if not count)

    def __str__(self) -> str:
        text = f"{len(self.fired)} of {len(self.expected)} sites fired"
        if self.missing:
            text += f", {len(self.missing)} not found (first: {self.missing[0]})"
        if self.silent:
            text += f", {len(self.silent)} never ran (first: {self.silent[0]})"
        if self.unconnected:
            text += f", {' and '.join(self.unconnected)} not connected"
        return text


def _numbered(path: str) -> tuple[str, ...]:
    """Patterns of a numbered block itself, not of what is inside it (fnmatch has no 'digits only')."""
    return tuple(path + "[0-9]" * digits for digits in (1, 2, 3))


_LLAMA = {
    "norms": ("*.layers.*.input_layernorm", "*.layers.*.post_attention_layernorm"),
    "attention": ("*.self_attn.o_proj",),
    "mlp": ("*.mlp.down_proj",),
    "blocks": _numbered("*.layers."),
}
# The paper steers what leaves the attention and the feed-forward of Gemma, not what enters them.
_GEMMA = {**_LLAMA, "norms": ("*.layers.*.post_attention_layernorm", "*.layers.*.post_feedforward_layernorm")}

_CLIP = {
    "norms": ("*layers.*.layer_norm[12]", "*final_layer_norm"),
    "attention": ("*.self_attn.out_proj",),
    "mlp": ("*.mlp.fc2",),
    "blocks": _numbered("*.layers."),
    "output": ("*final_layer_norm", "text_projection"),
}
_T5 = {
    "norms": ("*.layer.[01].layer_norm", "*final_layer_norm"),
    "attention": ("*.SelfAttention.o",),
    "mlp": ("*.DenseReluDense.wo",),
    "blocks": tuple(f"{block}#0" for block in _numbered("*.block.")),
    "output": ("*final_layer_norm",),
}
# Of a norm that also returns the gates of its block, the first output. Both streams: picture and text.
_MMDIT = {
    "norms": ("*.norm1#0", "*.norm1_context#0", "*.norm2", "*.norm2_context"),
    "attention": ("*.attn.to_out.0", "*.attn.to_add_out"),
    "mlp": ("*.ff.net.2", "*.ff_context.net.2"),
    "blocks": _numbered("transformer_blocks."),
}

# Architecture family (of transformers: config.model_type; of diffusers and ComfyUI: the class) -> preset -> patterns on
# the name.
PRESETS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "smollm3": _LLAMA,
    "phi3": _LLAMA,
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "gpt2": {
        "norms": ("*.h.*.ln_[12]",),
        "attention": ("*.attn.c_proj",),
        "mlp": ("*.mlp.c_proj",),
        "blocks": _numbered("*.h."),
    },
    "gpt_neox": {
        "norms": ("*.layers.*.input_layernorm", "*.layers.*.post_attention_layernorm"),
        "attention": ("*.attention.dense",),
        "mlp": ("*.mlp.dense_4h_to_h",),
        "blocks": _numbered("*.layers."),
    },
    "clip_text_model": _CLIP,
    "t5": _T5,
    # All norms, as in the paper: those of the attention blocks, of the residual blocks, and the last.
    "UNet2DConditionModel": {
        "norms": ("*.norm", "*.norm[123]", "conv_norm_out"),
        "attention": ("*.attn[12].to_out.0",),
        "mlp": ("*.ff.net.2",),
        "blocks": (*_numbered("*.transformer_blocks."), *_numbered("*.resnets.")),
    },
    "SD3Transformer2DModel": _MMDIT,
    "FluxTransformer2DModel": {
        **_MMDIT,
        "norms": (*_MMDIT["norms"], *(f"{block}.norm#0" for block in _numbered("single_transformer_blocks."))),
        "attention": (*_MMDIT["attention"], "single_transformer_blocks.*.proj_out"),
        "blocks": (*_MMDIT["blocks"], *_numbered("single_transformer_blocks.")),
    },
    # Models as ComfyUI builds them: SD1, SD2 and SDXL; SD3; Flux; Wan.
    "UNetModel": {
        "norms": ("*.transformer_blocks.*.norm[123]", "*.norm", "*.in_layers.0", "*.out_layers.0", "out.0"),
        "attention": ("*.attn[12].to_out.0",),
        "mlp": ("*.ff.net.2",),
        "blocks": (*_numbered("*.transformer_blocks."), "*.out_layers.3"),
    },
    "OpenAISignatureMMDITWrapper": {
        "norms": ("joint_blocks.*.norm[12]",),
        "attention": ("joint_blocks.*.attn.proj",),
        "mlp": ("joint_blocks.*.mlp.fc2",),
        "blocks": _numbered("joint_blocks."),
    },
    "Flux": {
        "norms": ("double_blocks.*_norm[12]", "single_blocks.*.pre_norm"),
        "attention": ("double_blocks.*_attn.proj", "single_blocks.*.linear2"),
        "mlp": ("double_blocks.*_mlp.2",),
        "blocks": (*_numbered("double_blocks."), *_numbered("single_blocks.")),
    },
    "WanModel": {
        "norms": ("blocks.*.norm[123]",),
        "attention": ("blocks.*.self_attn.o", "blocks.*.cross_attn.o"),
        # Not its last layer, around which a quantised model calls.
        "mlp": ("blocks.*.ffn",),
        "blocks": _numbered("blocks."),
    },
}
_NAMES = {preset for presets in PRESETS.values() for preset in presets}
# What `auto` stands for. For language models: fluent at strength 1 (`benchmarks/effect.py --dev`). For pictures: the
# style moves furthest there while the subject stays, most of it by the outputs of the text encoder
# (`benchmarks/styles.py --dev`).
AUTO: Mapping[str, tuple[str, ...]] = {
    "clip_text_model": ("output", "attention", "mlp"),
    "t5": ("output", "attention", "mlp"),
    "SD3Transformer2DModel": ("attention", "mlp"),
    "FluxTransformer2DModel": ("attention", "mlp"),
    "UNet2DConditionModel": ("norms",),
    "OpenAISignatureMMDITWrapper": ("attention", "mlp"),
    "Flux": ("attention", "mlp"),
    "WanModel": ("attention", "mlp"),
    "UNetModel": ("norms",),
}
_AUTO_ELSEWHERE = ("attention",)


def patterns_for(component: Component, sites: str) -> tuple[str, ...]:
    """Patterns on ``component/name`` for a preset name, ``auto``, ``all``, or comma-separated patterns.

    Raises:
        MapError: a preset for an architecture that has none.
    """
    names = tuple(part.strip() for part in sites.split(",") if part.strip())
    presets = PRESETS.get(component.architecture, {})
    patterns: list[str] = []
    for name in names:
        if name not in ("auto", "all", *_NAMES):
            patterns.append(name)
        elif not presets:
            raise MapError(
                f"There are no presets for the architecture {component.architecture!r}; "
                "give patterns instead, such as '*norm*' or '*/model.layers.*.mlp'."
            )
        else:
            chosen = {"all": tuple(presets), "auto": AUTO.get(component.architecture, _AUTO_ELSEWHERE)}.get(
                name, (name,)
            )
            # A preset that only other components have, such as the output of a text encoder, finds nothing in this one.
            patterns += [f"{component.name}/{pattern}" for preset in chosen for pattern in presets.get(preset, ())]
    return tuple(patterns)


def discover(
    components: Sequence[Component],
    sites: str,
    run: Callable[[], object],
    rows: int,
    at_site: Callable[[], None] = lambda: None,
) -> list[Site]:
    """The sites that fire in a dry run, in the order in which they first do.

    Args:
        components: parts of the pipeline.
        sites: preset or patterns, see `patterns_for`.
        run: runs the pipeline once, on `rows` prompts.
        rows: first dimension of an output that counts as a site.
        at_site: called whenever one fires.

    Raises:
        MapError: nothing fits the patterns (the closest names are given), or nothing that fits was run.
    """
    found: dict[str, Site] = {}
    passed = Counter[str]()

    def note(component: Component, name: str, patterns: tuple[str, ...], output: Any) -> Any:
        for index, tensor in output_tensors(output).items():
            layout = layout_of(tensor)
            if layout is None or tensor.shape[0] != rows:
                continue
            site = Site(component.name, name, index, layout, tensor.shape[channel_dim(layout)])
            if not matches(patterns, site.key):
                continue
            passed[site.key] += 1
            if passed[site.key] > component.passes.get(name, 0):
                found.setdefault(site.key, site)
                at_site()
        return output

    handlers: dict[nn.Module, Callable[[Any], Any]] = {}
    everything: list[str] = []
    for component in components:
        patterns = patterns_for(component, sites)
        # A pattern may name an output; which outputs there are shows only when the module runs.
        modules = tuple(pattern.partition("#")[0] for pattern in patterns)
        for name, module in submodules(component.module).items():
            key = f"{component.name}/{name}"
            everything.append(key)
            if name and matches(modules, key):
                handlers[module] = partial(note, component, name, patterns)
    if not handlers:
        kinds = dict.fromkeys(re.sub(r"\d+", "*", key) for key in everything if not key.endswith("/"))
        close = difflib.get_close_matches(sites.split(",")[0].strip(), kinds, n=3, cutoff=0)
        raise MapError(f"No part of the model fits the sites {sites!r}; the closest names are {', '.join(close)}.")
    with intercepted(handlers):
        run()
    if not found:
        raise MapError(
            f"Of the {len(handlers)} parts of the model that fit the sites {sites!r} none returned an "
            "activation; choose parts that run and that return tensors."
        )
    return list(found.values())


def layout_of(tensor: Tensor) -> Layout | None:
    """How the channels lie in an activation, by its number of dimensions; None if it is no activation."""
    layouts: dict[int, Layout] = {2: "vector", 3: "tokens", 4: "spatial"}
    return layouts.get(tensor.ndim) if tensor.is_floating_point() else None


def channel_dim(layout: Layout) -> int:
    return 1 if layout == "spatial" else -1


def displace_at(
    x: Tensor,
    layout: Layout,
    spatial: Spatial,
    gain: Tensor,
    offset: Tensor,
    low: Tensor | None = None,
    high: Tensor | None = None,
) -> Tensor:
    """Move an activation of the given layout by coefficients ``[channels]``, see `transport.displace`.

    Feature maps follow the ``shift`` rule, ``x + (T(mean) - mean)`` with the mean over height and width (the
    paper's), or the ``pointwise`` rule, which maps every position.
    """
    if layout != "spatial":
        return displace(x, gain, offset, low, high)
    gain, offset = gain.view(-1, 1, 1), offset.view(-1, 1, 1)
    low, high = (None if edge is None else edge.view(-1, 1, 1) for edge in (low, high))
    if spatial == "pointwise":
        return displace(x, gain, offset, low, high)
    mean = x.mean((2, 3), keepdim=True, dtype=torch.float32)
    return x + displacement(mean, gain, offset, low, high).to(x.dtype)
