"""The text encoders of a CLIP: the parts that hold sites, and how prompts run through them for a fit."""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import comfy.model_management
import torch
from torch import Tensor, nn

from ...act_core import ActMap, steer
from ...act_core.architectures import architecture_of
from ...act_core.components import Component
from ...act_core.errors import FitError
from ...act_core.fitting import FitModel, MicroBatch
from ...act_core.interception import own_forward, restore_forward
from .caption_batches import run_together
from .encoder_layers import measured_passes, unused_layers
from .models import is_steered_clip, weight_patches
from .prompt_tokens import PromptTokens, Tokens, are_sections, is_read_with_padding

Conditioning = tuple[Tensor, dict[str, Any]]

# Reaches every encoder, even one that reads only what a prompt quotes.
_PROBE = 'a sign with the words "a cat"'


def text_encoders(clip: Any) -> dict[str, Any]:
    """The text encoders in a CLIP by name, such as ``clip_l`` and ``t5xxl``; each runs its ``transformer``."""
    parts: list[tuple[str, Any]] = list(clip.cond_stage_model.named_children())
    return {name: part for name, part in parts if isinstance(getattr(part, "transformer", None), nn.Module)}


class TextEncoders(FitModel[str]):
    """The text encoders of a CLIP as a model that can be fitted; samples are prompts.

    A fit pools the tokens of the prompt itself, see `PromptTokens`. Only a CLIP model without any mask is pooled as a
    whole, see `is_read_with_padding`. Encoders that some prompts do not use are left out.
    """

    def __init__(self, clip: Any) -> None:
        if is_steered_clip(clip):
            raise FitError("This CLIP is already steered by a map; connect the CLIP from before Apply ACT Steering.")
        self._clip = clip
        self._encoders = _encoders(clip)
        self._components = [encoder.component for encoder in self._encoders]
        self.patches = weight_patches(clip.patcher, "text encoders")

    @property
    def components(self) -> Sequence[Component]:
        return self._components

    @property
    def module(self) -> nn.Module:
        """The module of the CLIP, which holds all of them."""
        return self._clip.cond_stage_model

    @property
    def token_keys(self) -> dict[str, str]:
        """By component, the key of its tokens in what the tokenizer returns."""
        return {encoder.component.name: encoder.key for encoder in self._encoders if encoder.key is not None}

    def check(self, source: Sequence[str], target: Sequence[str]) -> None:
        super().check(source, target)
        self.leave_out_unused([*source, *target])

    def leave_out_unused(self, prompts: Sequence[str]) -> None:
        """Leave out the encoders that some prompts do not use.

        Raises:
            FitError: there are some, but none is left.
        """
        used = [_tokens(self._clip, prompt).keys() for prompt in prompts]
        reasons: dict[str, str] = {}
        for component, key, _ in self._encoders:
            if key is None:
                reasons[component.name] = "the tokens of a trial prompt did not reach it unchanged"
            elif any(key not in keys for keys in used):
                reasons[component.name] = "some prompts do not use it"
        self._components = [e.component for e in self._encoders if e.component.name not in reasons]
        self.notes = tuple(f"{name} left out, because {reason}" for name, reason in reasons.items())
        if self._encoders and not self._components:
            raise FitError(
                f"No text encoder of this CLIP can be fitted ({'; '.join(self.notes)}); set components to model."
            )

    def batches(self, samples: Sequence[str], size: int) -> list[MicroBatch]:
        """Batch prompts with the same number of tokens together."""
        alike: dict[tuple[object, ...], list[Tokens]] = {}
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
        with steer({encoder.component.name: encoder.component.module for encoder in self._encoders}, act_map):
            return [self._encode(prompt) for prompt in prompts]

    def encode_together(self, prompts: Sequence[str]) -> list[Conditioning]:
        """As `encode`, but each text encoder runs prompts with as many tokens as one batch, which takes more memory."""
        if self._clip.patcher.forced_hooks is not None:
            return self.encode(prompts)  # they may change the weights between two runs
        tokens = [self._clip.tokenize(prompt) for prompt in prompts]
        parts = text_encoders(self._clip)
        read = {parts[e.component.name]: e.key for e in self._encoders if e.key is not None}
        sections = {
            part: [[token[0] for token in section] for own in tokens for section in own.get(key, ())]
            for part, key in read.items()
        }
        with run_together(sections):
            return [self._encode_tokens(own) for own in tokens]

    def _encode(self, prompt: str) -> Conditioning:
        return self._encode_tokens(self._clip.tokenize(prompt))

    def _encode_tokens(self, tokens: Tokens) -> Conditioning:
        conditioning, extra = _keeping_forwards(self._clip).encode_from_tokens_scheduled(tokens)[0]
        return conditioning, extra

    def _masks(self, group: Sequence[Tokens]) -> dict[str, Tensor]:
        with memory_errors():
            return {
                encoder.component.name: encoder.tokens.mask(group)
                for encoder in self._encoders
                if encoder.tokens is not None and encoder.key in group[0]
            }

    def _run(self, group: Sequence[Tokens]) -> None:
        # The host runs the sections of a long prompt as rows of one batch; here each row is another prompt.
        tokens = {
            name: [section for tokens in group for section in tokens[name]] if are_sections(own) else own
            for name, own in group[0].items()
        }
        with memory_errors():
            _keeping_forwards(self._clip).encode_from_tokens(tokens)


def _keeping_forwards(clip: Any) -> Any:
    """A CLIP like this one that, while it is loaded, encodes without touching the ``forward`` of any module.

    Before each prompt the host removes the object patches and injections of other packs and puts them back, and with
    that undoes every swap of those modules, as by a fit.
    """
    if not any(loaded.model is clip.patcher for loaded in comfy.model_management.current_loaded_models):
        return clip
    forwards = {module: own_forward(module) for module in clip.cond_stage_model.modules()}

    def load_model(*args: Any, **kwargs: Any) -> Any:
        patcher = clip.load_model(*args, **kwargs)
        for module, forward in forwards.items():
            restore_forward(module.__dict__, forward)
        return patcher

    kept = copy.copy(clip)
    kept.load_model = load_model
    return kept


class _Encoder(NamedTuple):
    """A text encoder in a fit.

    Attributes:
        component: holds its sites.
        key: of its tokens, in what the tokenizer returns; None if it was not seen to read them.
        tokens: finds those of the prompt; None if all of them count.
    """

    component: Component
    key: str | None
    tokens: PromptTokens | None


def _encoders(clip: Any) -> list[_Encoder]:
    """The text encoders in a CLIP, observed in a run."""
    parts = text_encoders(clip)
    found: dict[str, _Encoder] = {}
    if not parts:
        return []
    tokens = _tokens(clip, _PROBE)

    def note(name: str, given: object) -> None:
        if name in found:
            return  # another call, with other layers, as for the lyrics of a song
        part = parts[name]
        key = next((key for key, sections in tokens.items() if sections is given), None)
        component = Component(
            name,
            part.transformer,
            architecture_of(part.transformer),
            measured_passes(part, alone=len(parts) == 1),
            unused_layers(part),
        )
        own = None
        if key is not None and not is_read_with_padding(part):
            own = PromptTokens(part, key, partial(_tokens, clip))
        found[name] = _Encoder(component, key, own)

    # The run also makes the host load this clone of the CLIP now; otherwise it would remove another clone's patches in
    # mid-walk.
    with _watched(parts, note), memory_errors():
        clip.encode_from_tokens(tokens)
    for name, part in parts.items():
        module = part.transformer
        found.setdefault(name, _Encoder(Component(name, module, architecture_of(module)), None, None))
    return [found[name] for name in parts]


@contextmanager
def _watched(parts: Mapping[str, Any], note: Callable[[str, object], None]) -> Generator[None, None, None]:
    """Call ``note(name, tokens)`` whenever the host runs a text encoder."""
    method = "encode_token_weights"
    before = {name: vars(part).get(method) for name, part in parts.items()}

    def watching(name: str, encode: Callable[..., Any]) -> Callable[..., Any]:
        def call(tokens: object, *args: Any, **kwargs: Any) -> Any:
            note(name, tokens)
            return encode(tokens, *args, **kwargs)

        return call

    for name, part in parts.items():
        vars(part)[method] = watching(name, getattr(part, method))
    try:
        yield
    finally:
        for name, part in parts.items():
            vars(part).pop(method)
            if before[name] is not None:
                vars(part)[method] = before[name]


def _tokens(clip: Any, prompt: str) -> Tokens:
    tokens: Tokens = clip.tokenize(prompt)
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
