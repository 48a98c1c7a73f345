"""How far a map moves a CLIP and a MODEL at each site, for Probe ACT Map."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import comfy.sample
import comfy.utils
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...act_core import ActMap
from ...act_core.components import DIFFUSION_MODEL
from ...act_core.probe import Moves, Probe, probe
from .latents import empty_latent
from .model_steering import ModelSteering
from .models import KEY, diffusion_model, forget_prompts
from .steering import Window, steered
from .text_encoders import TextEncoders


@dataclass(frozen=True)
class TextMoves:
    """How far a map moves the tokens of a prompt in one text encoder.

    Attributes:
        tokens: those of the prompt itself, as text; for a CLIP model, which is read as a whole, also the start and end
            tokens and the first one of the padding.
        moves: by site, ``[tokens]``; they are those of `tokens`.
        pooled: by site that returns one vector for the whole prompt.
    """

    tokens: list[str]
    moves: Mapping[str, Tensor]
    pooled: Mapping[str, float]


@dataclass(frozen=True)
class ModelMoves:
    """How far a map moves a diffusion model.

    Attributes:
        moves: by site, an entry for each call of the model.
        size: height and width of the latent.
    """

    moves: Moves
    size: tuple[int, int]


def probe_text(clip: Any, act_map: ActMap, prompt: str, strength: float) -> dict[str, TextMoves]:
    """How far a map moves a prompt in each text encoder of a CLIP that it steers.

    Raises:
        MapError: the map does not fit, or the CLIP is already steered.
    """
    steered_parts = [name for name in act_map.components if name != DIFFUSION_MODEL]
    if not steered_parts:
        return {}
    encoders = TextEncoders(clip)
    roots = {part.name: part.module for part in encoders.components}
    own = act_map.restrict(*(f"{name}/*" for name in steered_parts))
    (batch,) = encoders.batches([prompt], 1)
    moves = probe(roots, own, batch.run, strength)
    labels = _labels(clip, encoders.token_keys, prompt)
    found: dict[str, TextMoves] = {}
    for name in roots:
        mask = batch.masks[name][0] if name in batch.masks else None
        words = labels.get(name, [])
        chosen = _without_padding(words) if mask is None else mask.nonzero().flatten().tolist()
        own_moves = {site.key: calls[0][0] for site, calls in moves.items() if site.component == name}
        by_site = {key: values[chosen] for key, values in own_moves.items() if values.shape == (len(words),)}
        vectors = {key: float(values) for key, values in own_moves.items() if values.ndim == 0}
        if by_site:
            found[name] = TextMoves([words[at] for at in chosen], by_site, vectors)
    return found


def probe_model(
    model: Any, clip: Any, act_map: ActMap, prompt: str, strength: float, seed: int, steps: int, size: tuple[int, int]
) -> tuple[ModelMoves | None, str]:
    """How far a map moves the diffusion model at each step, and the report of applying the map.

    At each step the model runs twice on the same latent, without the map and with it, and sampling goes on with what
    the map makes of it. Both read the steered prompt, without guidance.

    Args:
        model, clip: MODEL and CLIP.
        act_map: the map.
        prompt: the positive prompt.
        strength: on the diffusion model and on the text encoders.
        seed, steps: of the sampling run.
        size: width and height of the picture in pixels; 0 for the model's usual size.

    Returns:
        None if the map does not steer the diffusion model.

    Raises:
        MapError: the map does not fit, or the strength is not a number.
    """
    applied = steered(model, clip, act_map, strength, strength, Window())
    if applied.on_model is None:
        return None, applied.report
    positive = applied.clip.encode_from_tokens_scheduled(applied.clip.tokenize(prompt))
    watched = _WatchedSteering(act_map.restrict(f"{DIFFUSION_MODEL}/*"), strength)
    clone = model.clone()
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, watched.call)
    empty = empty_latent(model, *size)
    noise = comfy.sample.prepare_noise(empty, seed)
    bar = comfy.utils.ProgressBar(steps)

    def step(number: int, *_: object) -> None:
        bar.update_absolute(number + 1)

    settings: dict[str, Any] = {"seed": seed, "callback": step, "disable_pbar": True}
    comfy.sample.sample(clone, noise, steps, 1.0, "euler", "simple", positive, positive, empty, **settings)
    height, width = empty.shape[-2:]
    return ModelMoves(watched.moves, (height, width)), applied.report


class _WatchedSteering:
    """Runs each call of a model without a map and with it, and compares its sites.

    Attributes:
        moves: by site, an entry for each call.
    """

    def __init__(self, act_map: ActMap, strength: float) -> None:
        self._steering = ModelSteering(act_map, strength, branch="both")
        self._act_map = act_map
        self._probes: dict[int, Probe] = {}

    @property
    def moves(self) -> Moves:
        (first, *_) = self._probes.values()
        return first.moves

    def call(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """Wrap one call of the model."""
        module = diffusion_model(executor.class_obj).module
        if id(module) not in self._probes:
            self._probes[id(module)] = Probe({DIFFUSION_MODEL: module}, self._act_map)
        watch = self._probes[id(module)]
        forget_prompts(module)
        with watch.before():
            executor(*args, **kwargs)
        return self._steering.call(_Inside(executor, watch.after), *args, **kwargs)


class _Inside:
    """An executor of the host that runs inside a context."""

    def __init__(self, executor: Any, context: Callable[[], AbstractContextManager[None]]) -> None:
        self.class_obj = executor.class_obj
        self._executor = executor
        self._context = context

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self._context():
            return self._executor(*args, **kwargs)


def _labels(clip: Any, keys: Mapping[str, str], prompt: str) -> dict[str, list[str]]:
    """The tokens of the first section of a prompt, as text, by text encoder."""
    tokens = clip.tokenize(prompt)
    labels: dict[str, list[str]] = {}
    for name, key in keys.items():
        tokenizer = getattr(clip.tokenizer, name, None)
        vocabulary: Mapping[Any, str] = getattr(tokenizer, "inv_vocab", {})
        sections = tokens.get(key) or [[]]
        labels[name] = [_word(token[0], vocabulary) for token in sections[0]]
    return labels


def _without_padding(words: list[str]) -> list[int]:
    """The tokens of an encoder that is read with its padding; of the latter only the first one."""
    end = len(words)
    while end > 1 and words[end - 1] == words[end - 2]:
        end -= 1
    return list(range(end))


def _word(token: Any, vocabulary: Mapping[Any, str]) -> str:
    """A token as text; its number if the tokenizer does not list it, and a note for an embedding."""
    if isinstance(token, Tensor):
        return "embedding"
    return vocabulary.get(token, str(token)).removesuffix("</w>").strip("\u0120\u2581")
