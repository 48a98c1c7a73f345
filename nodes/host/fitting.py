"""Prompts through a MODEL and a CLIP, so that a map is fitted inside ComfyUI's own sampling and memory management."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import comfy.model_management
import comfy.sample
import comfy.samplers
import torch
from comfy.patcher_extension import merge_nested_dicts
from torch import Tensor

from ...act_core import ActMap, MapError, fit, steer
from ...act_core.architectures import PRESETS
from ...act_core.components import Component
from ...act_core.fitting import MicroBatch
from .modules import diffusion_model, text_encoders
from .steering import is_steered, is_steered_clip

_NUMBER = "act_prompt"
# The share of the free memory that a fit may take besides the model, and below which it is taken not to need a budget.
_SHARE, _SMALL_SHARE = 0.7, 0.3
SIZE = "act_size"


class Prompt(str):
    """A prompt with the number of its conditioning and its noise."""

    number: int

    @classmethod
    def of(cls, text: str, number: int) -> Prompt:
        prompt = cls(text)
        prompt.number = number
        return prompt


class TextEncoders:
    """The text encoders of a CLIP, prompts of one length at a time; see `act_core.fitting.FitModel`."""

    def __init__(self, clip: Any) -> None:
        if is_steered_clip(clip):
            raise MapError("This CLIP is steered by a map already; connect the CLIP from before Apply ACT Steering.")
        self._clip = clip
        # Has the host load this very CLIP now: it would otherwise take the patches of another clone off in mid-walk.
        clip.encode_from_tokens(_tokens(clip, ""))
        found = text_encoders(clip)
        self.components: Sequence[Component] = [part for part in found if part.architecture in PRESETS]
        alone = len(found) == 1 and found[0].architecture == "llama"
        self._template = _ChatTemplate.of(clip) if alone else None
        self.unknown = [part for part in found if part.architecture not in PRESETS]

    def batches(self, prompts: Sequence[str], size: int) -> list[MicroBatch]:
        alike: dict[tuple[object, ...], list[dict[str, Any]]] = {}
        for prompt in prompts:
            tokens = _tokens(self._clip, prompt)
            # One row a prompt: further sections, and weights, which add a row for the empty prompt, are left out.
            for name, sections in tokens.items():
                if _are_sections(sections):
                    tokens[name] = [[(token[0], 1.0, *token[2:]) for token in sections[0]]]
            lengths = tuple((name, len(own[0]) if _are_sections(own) else str(own)) for name, own in tokens.items())
            alike.setdefault(lengths, []).append(tokens)
        groups = [group[at : at + size] for group in alike.values() for at in range(0, len(group), size)]
        return [MicroBatch(len(group), partial(self._run, group), self._mask(group)) for group in groups]

    def _mask(self, group: Sequence[dict[str, Any]]) -> Tensor | None:
        """Without padding and the tokens of a chat template, which are the same for all and would dilute the means."""
        if self._template is None:
            return None
        prompts = [_ids(tokens)[0] for tokens in group]
        mask = torch.zeros(len(prompts), len(prompts[0]), dtype=torch.bool)
        for row, ids in zip(mask, prompts, strict=True):
            row[self._template.before : len(self._template.unpadded(ids)) - self._template.after] = True
            row |= not row.any()
        return mask

    def encode(self, prompt: str) -> tuple[Tensor, dict[str, Any]]:
        """Conditioning of one prompt, with the weights and all the sections that it has."""
        return tuple(self._clip.encode_from_tokens_scheduled(self._clip.tokenize(prompt))[0])

    def _run(self, group: Sequence[dict[str, Any]]) -> None:
        # The host runs the sections of a long prompt as rows of one batch; here each is a prompt of its own.
        tokens = {
            name: [section for tokens in group for section in tokens[name]] if _are_sections(own) else own
            for name, own in group[0].items()
        }
        with _memory_errors():
            self._clip.encode_from_tokens(tokens)


class _ChatTemplate(NamedTuple):
    """How many tokens a language model as text encoder has before and after every prompt, and what it pads with."""

    before: int
    after: int
    pad: object

    @classmethod
    def of(cls, clip: Any) -> _ChatTemplate | None:
        """Seen from two prompts that have nothing in common; None where several lists of tokens are made of one."""
        texts = "tree", "9 red, old and very small houses on a hill beside the sea at night, with a green door"
        short, long = (_ids(_tokens(clip, text)) for text in texts)
        if len(short) != 1 or len(long) != 1:
            return None
        template = cls(0, 0, short[0][-1] if len(short[0]) == len(long[0]) else None)
        one, other = template.unpadded(short[0]), template.unpadded(long[0])
        return template._replace(
            before=_alike_from_the_start(one, other), after=_alike_from_the_start(one[::-1], other[::-1])
        )

    def unpadded(self, ids: Sequence[object]) -> Sequence[object]:
        end = len(ids)
        while end and self.pad is not None and ids[end - 1] == self.pad:
            end -= 1
        return ids[:end]


def _ids(tokens: dict[str, Any]) -> list[list[object]]:
    """The first section of each list of tokens, without the weights."""
    return [[token[0] for token in own[0]] for own in tokens.values() if _are_sections(own)]


def _alike_from_the_start(one: Sequence[object], other: Sequence[object]) -> int:
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), 0)


def _tokens(clip: Any, prompt: str) -> dict[str, Any]:
    tokens: dict[str, Any] = clip.tokenize(prompt)
    if isinstance(song := tokens.get("lm_metadata"), dict):
        # A language model beside the text encoder would else write a whole song for each prompt.
        tokens["lm_metadata"] = song | {"generate_audio_codes": False}
    return tokens


def _are_sections(tokens: object) -> bool:
    return isinstance(tokens, list) and bool(tokens) and isinstance(tokens[0], list)


def fit_text(clip: Any, source: Sequence[str], target: Sequence[str], **settings: Any) -> ActMap:
    """The map of the text encoders of a CLIP."""
    encoders = TextEncoders(clip)
    if not encoders.components:
        kinds = " and ".join(part.architecture for part in encoders.unknown) or "none"
        raise MapError(
            f"Fit ACT Map does not know the text encoders of this CLIP yet ({kinds}); set components to model."
        )
    act_map = fit(encoders, source, target, **settings)
    unknown = tuple(f"{part.name} left out, of the unknown kind {part.architecture}" for part in encoders.unknown)
    record = replace(act_map.record, notes=(*act_map.record.notes, *unknown))
    return replace(act_map, record=replace(record, patches=_patches(clip.patcher, "text encoders")))


def encode(clip: Any, prompts: Sequence[str], text_map: ActMap | None = None) -> list[tuple[Tensor, dict[str, Any]]]:
    """Conditioning of prompts, with a map on the text encoders where one is given."""
    encoders = TextEncoders(clip)
    if text_map is None:
        return [encoders.encode(prompt) for prompt in prompts]
    with steer({part.name: part.module for part in encoders.components}, text_map):
        return [encoders.encode(prompt) for prompt in prompts]


def check_model(model: Any) -> None:
    """Raise a MapError unless a map can be fitted on a MODEL."""
    if is_steered(model):
        raise MapError("This model is steered by a map already; connect the model from before Apply ACT Steering.")
    if (kind := diffusion_model(model).architecture) not in PRESETS:
        raise MapError(
            f"Fit ACT Map does not know this kind of model yet ({kind}); take one that its help page lists, or set "
            "components to text."
        )


def fit_model(
    model: Any,
    latent: Tensor,
    seed: int,
    source: Sequence[tuple[str, tuple[Tensor, dict[str, Any]]]],
    target: Sequence[tuple[str, tuple[Tensor, dict[str, Any]]]],
    **settings: Any,
) -> ActMap:
    """The map of the diffusion model, fitted inside one sampling run at its noisiest step.

    Args:
        model: a MODEL.
        latent: empty latent ``[1, channels, ...]`` of the pictures.
        seed: number n of either side starts from the noise of ``seed + n``.
        source, target: prompts with their conditioning.
        settings: of `act_core.fit`.
    """
    conds = [[cond, {**extra, _NUMBER: number}] for number, (_, (cond, extra)) in enumerate([*source, *target])]
    sides = [
        [Prompt.of(text, number) for number, (text, _) in enumerate(side, start=start)]
        for side, start in ((source, 0), (target, len(source)))
    ]
    fitted: list[ActMap] = []

    def walk(denoiser: Denoiser) -> None:
        denoiser.noise_of = lambda number: number if number < len(source) else number - len(source)
        budget = denoiser.budget(len(conds))
        fitted.append(fit(denoiser, *sides, memory_budget=budget, seed=seed, **settings))

    clone = model.clone()
    guider = comfy.samplers.CFGGuider(clone)
    guider.inner_set_conds({"positive": conds})
    sigmas = comfy.samplers.calculate_sigmas(clone.get_model_object("model_sampling"), "simple", 20)
    guider.sample(torch.zeros_like(latent), latent, _Walk(walk, seed), sigmas, disable_pbar=True, seed=seed)
    (act_map,) = fitted
    # Plain texts: a Prompt stands for tensors.
    texts = {"source_prompts": [text for text, _ in source], "target_prompts": [text for text, _ in target]}
    record = replace(act_map.record, **{side: tuple(own) for side, own in texts.items()})
    return replace(act_map, record=replace(record, patches=_patches(clone, "diffusion model")))


def _patches(patcher: Any, what: str) -> tuple[str, ...]:
    count = len(patcher.patches)
    return (f"{count} weights of the {what} patched, as by a LoRA",) if count else ()


@contextmanager
def _memory_errors() -> Generator[None, None, None]:
    """Give every error that the host counts as out of memory the one type that a fit starts again at."""
    try:
        yield
    except RuntimeError as error:
        is_oom = getattr(comfy.model_management, "is_oom", None)
        if is_oom is None or not is_oom(error):
            raise
        raise torch.OutOfMemoryError(str(error)) from error


class _Walk(comfy.samplers.Sampler):
    """A sampler that does not sample: it hands the loaded model and the prepared conditioning to a function."""

    def __init__(self, walk: Callable[[Denoiser], None], seed: int) -> None:
        self._walk = walk
        self._seed = seed

    def sample(
        self, guider: Any, sigmas: Tensor, extra_args: dict[str, Any], callback: Any, noise: Tensor, *_: Any, **__: Any
    ) -> Tensor:
        self._walk(Denoiser(guider, sigmas[:1], extra_args["model_options"], noise, self._seed))
        return noise


class Denoiser:
    """A loaded diffusion model at its noisiest step; see `act_core.fitting.FitModel`."""

    def __init__(self, guider: Any, sigma: Tensor, model_options: dict[str, Any], like: Tensor, seed: int) -> None:
        self._model = guider.inner_model
        self._conds = {cond[_NUMBER]: cond for cond in guider.conds["positive"]}
        self._sigma = sigma
        self._options = model_options
        self._like = like
        self._seed = seed
        self.noise_of: Callable[[int], int] = lambda number: number
        self.components: Sequence[Component] = [diffusion_model(self._model)]
        prepare = self._model.current_patcher.prepare_state
        # Older hosts take the sigma alone.
        prepare(*(sigma, model_options)[: len(inspect.signature(prepare).parameters)])

    def budget(self, prompts: int) -> int | None:
        """Bytes that the fit may take; None where it will take little of what is free."""
        free = comfy.model_management.get_free_memory(self._like.device)
        needed = self._model.memory_required([prompts, *self._like.shape[1:]])
        return None if needed < _SMALL_SHARE * free else int(_SHARE * free)

    def batches(self, prompts: Sequence[str], size: int) -> list[MicroBatch]:
        groups: list[list[Any]] = []
        for prompt in prompts:
            assert isinstance(prompt, Prompt)
            ready = self._ready(prompt.number)
            group = next((g for g in groups if len(g) < size and _alike(g[0], ready)), None)
            if group is None:
                groups.append([ready])
            else:
                group.append(ready)
        return [MicroBatch(len(group), partial(self._run, group)) for group in groups]

    def _ready(self, number: int) -> Any:
        noise = torch.randn(
            self._like.shape, generator=torch.Generator().manual_seed(self._seed + self.noise_of(number))
        ).to(self._like)
        x = self._model.model_sampling.noise_scaling(self._sigma[0], noise, torch.zeros_like(noise), True)
        return comfy.samplers.get_area_and_mult(self._conds[number], x, self._sigma)

    def _run(self, group: Sequence[Any]) -> None:
        count = len(group)
        own = self._model.current_patcher.apply_hooks(hooks=None)
        options = merge_nested_dicts(own, self._options.get("transformer_options", {}), copy_dict1=False)
        options |= {"cond_or_uncond": [0] * count, "uuids": [ready.uuid for ready in group], "sigmas": self._sigma}
        x, t = torch.cat([ready.input_x for ready in group]), self._sigma.expand(count)
        c = comfy.samplers.cond_cat([ready.conditioning for ready in group]) | {"transformer_options": options}
        with _memory_errors():
            if "model_function_wrapper" in self._options:
                arguments = {"input": x, "timestep": t, "c": c, "cond_or_uncond": options["cond_or_uncond"]}
                self._options["model_function_wrapper"](self._model.apply_model, arguments)
            else:
                self._model.apply_model(x, t, **c)


def _alike(one: Any, other: Any) -> bool:
    """Whether two prompts can share a batch without one being repeated to the length of the other."""
    sizes = [{name: cond.size() for name, cond in ready.conditioning.items()} for ready in (one, other)]
    return sizes[0] == sizes[1] and comfy.samplers.can_concat_cond(one, other)


def fixed_latent(model: Any, latent: dict[str, Any]) -> Tensor:
    """A latent from the graph; an empty one with the channels and the size that the model takes, as samplers do it."""
    given = {name: latent[name] for name in ("downscale_ratio_spacial", "downscale_ratio_temporal") if name in latent}
    return comfy.sample.fix_empty_latent_channels(model, latent["samples"], **given)


def empty_latent(model: Any, width: int, height: int) -> Tensor:
    """An empty latent ``[1, channels, height, width]`` for pictures of a size, or of the model's usual one for 0.

    Raises:
        MapError: the model makes no pictures, or not of that size.
    """
    latent_format = model.get_model_object("latent_format")
    if getattr(latent_format, "latent_dimensions", 2) != 2:
        raise MapError("This model makes no still pictures; connect an empty latent of the kind that it samples.")
    usual = model.get_attachment(SIZE) or (512 if type(model.model.model_config).__name__ in ("SD15", "SD20") else 1024)
    factor = getattr(latent_format, "spacial_downscale_ratio", 8)
    sides = [(side or usual) // factor for side in (height, width)]
    if min(sides) < 1:
        raise MapError(f"Pictures of {width} x {height} are too small; give at least {factor} pixels a side.")
    module = model.get_model_object("diffusion_model")
    if patches := getattr(module, "pos_embed_max_size", None):
        largest = patches * module.patch_size * factor
        if max(width, height) > largest:
            raise MapError(f"Pictures of {width} x {height} are too large for this model; it goes up to {largest}.")
    return torch.zeros([1, latent_format.latent_channels, *sides])
