"""The names of modules in apple/ml-act, and the sites that they are here.

It names the parts of a pipeline as diffusers does (``unet.``, ``transformer.``, ``text_encoder.``), and those of a
language model as transformers does, with nothing in front.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..components import DIFFUSION_MODEL, LANGUAGE_MODEL
from ..errors import MapFileError
from ..records import Fingerprint
from ..sites import Layout, Site
from .blocks import blocks_of

_NAME = re.compile(r"([\w.]+?)(?::([0-9]{1,2}))?", re.ASCII)
# In the order in which they run.
_COMPONENTS = ("clip_l", "clip_g", "t5xxl", DIFFUSION_MODEL, LANGUAGE_MODEL)
_UNET, _FLUX = "UNet2DConditionModel", "FluxTransformer2DModel"
# The transformer of a pipeline, rather than GPT-2, whose names begin in the same way.
_DENOISER = re.compile(r"transformer\.(transformer_blocks|single_transformer_blocks|norm_out|proj_out)\b")
_UNET_LAYOUTS: tuple[tuple[str, Layout], ...] = (
    (r"\.transformer_blocks\.", "tokens"),
    (r"(^|\.)(time_embedding|add_embedding|time_emb_proj)\b", "vector"),
    (r"(^|\.)((resnets|attentions|downsamplers|upsamplers)\.\d+|mid_block)", "spatial"),
    (r"^(conv_in|conv_norm_out|conv_act|conv_out|(down|up)_blocks\.\d+)$", "spatial"),
)  # fmt: skip
# Modules that return several tensors, of which the first is the activation.
_TUPLES: dict[str, tuple[re.Pattern[str], ...]] = {
    **dict.fromkeys(_COMPONENTS, (re.compile(r"(^|\.)self_attn$|(^|\.)attn$"),)),
    "t5xxl": (re.compile(r"(^|\.)(block|layer)\.\d+$|SelfAttention$"),),
    DIFFUSION_MODEL: (
        re.compile(r"^(single_)?transformer_blocks\.\d+$"),
        re.compile(r"^(single_)?transformer_blocks\.\d+\.(norm1|norm1_context|norm|attn)$"),
        re.compile(r"attentions\.\d+$|^down_blocks\.\d+$"),
    ),
}
_SINGLE_BLOCK = re.compile(r"single_transformer_blocks\.\d+")
_STAGES = ("", "conv_in", "down_blocks", "mid_block", "up_blocks", "transformer_blocks", "single_transformer_blocks")


class Place(NamedTuple):
    """A module of a pipeline or language model, and the index of its output; None if it is the lone one."""

    component: str
    name: str
    output: int | None

    @property
    def order(self) -> tuple[object, ...]:
        """Sorts places roughly in the order in which they run."""
        first = self.name.partition(".")[0]
        stage = _STAGES.index(first) if first in _STAGES else (len(_STAGES) if "out" in first else 0)
        parts = tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in self.name.split("."))
        return (_COMPONENTS.index(self.component), stage, parts, self.output or 0)


def place_of(name: str) -> Place:
    """The place of a module by its name in apple/ml-act.

    Raises:
        MapFileError: it is not such a name, or one that cannot be steered.

    Example:
        >>> place_of("unet.conv_norm_out:0")
        Place(component='diffusion_model', name='conv_norm_out', output=None)
        >>> place_of("text_encoder_2.encoder.block.3:0")
        Place(component='t5xxl', name='encoder.block.3', output=0)
    """
    found = _NAME.fullmatch(name)
    if not found:
        raise MapFileError("its name is not that of a module.")
    part, _, rest = found[1].partition(".")
    index = None if found[2] is None else int(found[2])
    if part == "vae":
        raise MapFileError("the VAE is not steered; leave its files out.")
    if part == "unet":
        component = DIFFUSION_MODEL
    elif part in ("text_encoder", "text_encoder_2"):
        is_clip = "text_model." in rest or rest.startswith("text_projection")
        component = ("clip_g" if part.endswith("_2") else "clip_l") if is_clip else "t5xxl"
    elif _DENOISER.match(found[1]):
        component = DIFFUSION_MODEL
    else:
        component, rest = LANGUAGE_MODEL, found[1]
    if not rest:
        raise MapFileError("its name is not that of a module.")
    return Place(component, rest, _output(component, rest, index))


def sites_of(place: Place, channels: int) -> list[Site]:
    """The sites of a place: one, or two for a single block of Flux.

    In the diffusers of that time such a block returned text and picture as one tensor; now it returns one for each.

    Raises:
        MapFileError: the layout of its activation is not known.

    Example:
        >>> sites_of(place_of("unet.conv_norm_out"), 4)[0].layout
        'spatial'
    """
    is_joined = place.component == DIFFUSION_MODEL and _SINGLE_BLOCK.fullmatch(place.name)
    outputs = (0, 1) if is_joined else (place.output,)
    return [Site(place.component, place.name, output, _layout(place), channels) for output in outputs]


def base_of(places: Sequence[Place], architecture: str | None, model: Path | None) -> dict[str, Fingerprint]:
    """What the places are parts of, by component, as far as their names show it.

    Args:
        places: in any order.
        architecture, model: as for `act_core.interop.blocks.blocks_of`, for a language model.

    Raises:
        MapFileError: they are parts of a pipeline and of a language model, or the kind of model is not known.
    """
    components = {place.component for place in places}
    if LANGUAGE_MODEL in components:
        if len(components) > 1:
            raise MapFileError("it holds sites of a pipeline and of a language model; import them one by one.")
        if not architecture and model is None:
            return {}
        return {LANGUAGE_MODEL: Fingerprint(blocks_of(architecture, model).kind, "")}
    if architecture or model is not None:
        raise MapFileError("its files are for a pipeline, whose kind their names show; leave out --architecture.")
    kinds = {"clip_l": "clip_text_model", "clip_g": "clip_text_model", "t5xxl": "t5"}
    names = [place.name for place in places if place.component == DIFFUSION_MODEL]
    if any(name.startswith("single_transformer_blocks.") for name in names):
        kinds[DIFFUSION_MODEL] = _FLUX
    elif any(not _is_denoiser(name) for name in names):
        kinds[DIFFUSION_MODEL] = _UNET
    return {component: Fingerprint(kinds[component], "") for component in components & kinds.keys()}


def _is_denoiser(name: str) -> bool:
    return _DENOISER.match(f"transformer.{name}") is not None


def _layout(place: Place) -> Layout:
    if place.component == DIFFUSION_MODEL and not _is_denoiser(place.name):
        for pattern, layout in _UNET_LAYOUTS:
            if re.search(pattern, place.name):
                return layout
        raise MapFileError(f"the shape of what {place.name} returns is not known, so it cannot be imported.")
    is_modulation = bool(place.output) and "norm" in place.name.rpartition(".")[2]
    return "vector" if is_modulation or place.name.startswith("text_projection") else "tokens"


def _output(component: str, name: str, index: int | None) -> int | None:
    """The index of the output here: apple/ml-act writes ``:0`` for the lone tensor of a module, too."""
    if index != 0:
        return index
    return 0 if any(pattern.search(name) for pattern in _TUPLES[component]) else None
