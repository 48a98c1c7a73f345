"""The text encoders of a CLIP: the parts that hold sites, and how prompts run through them for a fit."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import comfy.model_management
import torch
from torch import Tensor, nn

from ...act_core import ActMap, steer
from ...act_core.architectures import architecture_of
from ...act_core.architectures.language import LLAMA
from ...act_core.components import Component
from ...act_core.errors import FitError
from ...act_core.fitting import FitModel, MicroBatch
from .chat_template import ChatTemplate, are_sections
from .models import is_steered_clip, weight_patches

Conditioning = tuple[Tensor, dict[str, Any]]


def text_encoders(clip: Any) -> list[Component]:
    """The text encoders of a CLIP, such as ``clip_l`` and ``t5xxl``."""
    parts = [(name, part, getattr(part, "transformer", None)) for name, part in clip.cond_stage_model.named_children()]
    found = [(name, part, module) for name, part, module in parts if isinstance(module, nn.Module)]
    # With several encoders, the pooled output of one is used: see `_passes`.
    return [
        Component(name, module, architecture_of(module), _passes(part, module) if len(found) == 1 else {})
        for name, part, module in found
    ]


def _passes(part: Any, module: nn.Module) -> dict[str, int]:
    """Which pass of a norm produces the conditioning.

    If layers are skipped at the end (CLIP Set Last Layer), the host norms the last layer first, only for the pooled
    output, and then the layer that becomes the conditioning.
    """
    if getattr(part, "layer", "last") != "hidden" or not getattr(part, "layer_norm_hidden_state", False):
        return {}
    return {name: 1 for name, _ in module.named_modules() if name.endswith("final_layer_norm")}


class TextEncoders(FitModel[str]):
    """The text encoders of a CLIP as a model that can be fitted; samples are prompts.

    Attributes:
        unknown: encoders that have no presets, and are left out.
    """

    def __init__(self, clip: Any) -> None:
        if is_steered_clip(clip):
            raise FitError("This CLIP is already steered by a map; connect the CLIP from before Apply ACT Steering.")
        self._clip = clip
        # Makes the host load this clone of the CLIP now; otherwise it would remove another clone's patches in mid-walk.
        clip.encode_from_tokens(_tokens(clip, ""))
        found = text_encoders(clip)
        self._components = [part for part in found if part.architecture.presets]
        self.unknown = [part for part in found if not part.architecture.presets]
        alone = len(found) == 1 and found[0].architecture is LLAMA
        self._template = ChatTemplate.of(partial(_tokens, clip)) if alone else None
        self.patches = weight_patches(clip.patcher, "text encoders")
        self.notes = tuple(
            f"{part.name} left out, of the unknown kind {part.architecture.name}" for part in self.unknown
        )

    @property
    def components(self) -> Sequence[Component]:
        return self._components

    def batches(self, samples: Sequence[str], size: int) -> list[MicroBatch]:
        """Batch prompts with the same number of tokens together."""
        alike: dict[tuple[object, ...], list[dict[str, Any]]] = {}
        for prompt in samples:
            tokens = _tokens(self._clip, prompt)
            # One row per prompt: leaves out further sections, and weights, which add a row for the empty prompt.
            for name, sections in tokens.items():
                if are_sections(sections):
                    tokens[name] = [[(token[0], 1.0, *token[2:]) for token in sections[0]]]
            lengths = tuple((name, len(own[0]) if are_sections(own) else str(own)) for name, own in tokens.items())
            alike.setdefault(lengths, []).append(tokens)
        groups = [group[at : at + size] for group in alike.values() for at in range(0, len(group), size)]
        return [MicroBatch(len(group), partial(self._run, group), self._masks(group)) for group in groups]

    def encode(self, prompts: Sequence[str], act_map: ActMap | None = None) -> list[Conditioning]:
        """The conditioning of prompts, with all their weights and sections; steered if a map is given."""
        if act_map is None:
            return [self._encode(prompt) for prompt in prompts]
        with steer({part.name: part.module for part in self.components}, act_map):
            return [self._encode(prompt) for prompt in prompts]

    def _encode(self, prompt: str) -> Conditioning:
        conditioning, extra = self._clip.encode_from_tokens_scheduled(self._clip.tokenize(prompt))[0]
        return conditioning, extra

    def _masks(self, group: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Mask out padding and chat template, which are the same for all prompts and would dilute the means."""
        if self._template is None:
            return {}
        spans = [self._template.prompt(tokens) for tokens in group]
        mask = torch.zeros(len(spans), spans[0][2], dtype=torch.bool)
        for row, (begin, end, _) in zip(mask, spans, strict=True):
            row[begin:end] = True
            row |= not row.any()
        return {self._components[0].name: mask}

    def _run(self, group: Sequence[dict[str, Any]]) -> None:
        # The host runs the sections of a long prompt as rows of one batch; here each row is another prompt.
        tokens = {
            name: [section for tokens in group for section in tokens[name]] if are_sections(own) else own
            for name, own in group[0].items()
        }
        with memory_errors():
            self._clip.encode_from_tokens(tokens)


def _tokens(clip: Any, prompt: str) -> dict[str, Any]:
    tokens: dict[str, Any] = clip.tokenize(prompt)
    if isinstance(song := tokens.get("lm_metadata"), dict):
        # Otherwise, a language model next to the text encoder would write a whole song for each prompt.
        tokens["lm_metadata"] = song | {"generate_audio_codes": False}
    return tokens


@contextmanager
def memory_errors() -> Generator[None, None, None]:
    """Turn every error that the host treats as out of memory into the type that restarts a fit."""
    try:
        yield
    except RuntimeError as error:
        is_oom = getattr(comfy.model_management, "is_oom", None)
        if is_oom is None or not is_oom(error):
            raise
        raise torch.OutOfMemoryError(str(error)) from error
