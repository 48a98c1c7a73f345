"""A diffusion model at its noisiest step, inside one sampling run of the host."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import comfy.model_management
import comfy.samplers
import torch
from comfy.patcher_extension import merge_nested_dicts
from torch import Tensor

from ...act_core.components import Component
from ...act_core.fitting import FitModel, MicroBatch
from .models import diffusion_model, forget_prompts, weight_patches
from .text_encoders import Conditioning, memory_errors

# Key in a conditioning for its number among those of a fit.
_NUMBER = "act_number"
# Length of the schedule whose first step, the noisiest, is used.
_SCHEDULE = "simple", 20
# Shares of the free memory: a fit that needs less than the second runs without a budget; others get the first as a
# budget.
_SHARE, _SMALL_SHARE = 0.7, 0.3


@dataclass(frozen=True)
class EncodedPrompt:
    """A sample of a fit: a prompt with its conditioning and noise.

    Attributes:
        text: the prompt.
        conditioning: the number of its conditioning in the sampling run.
        noise: offset that, added to the seed of the fit, seeds its noise.
    """

    text: str
    conditioning: int
    noise: int


def encoded_sides(source: Sequence[str], target: Sequence[str]) -> tuple[list[EncodedPrompt], list[EncodedPrompt]]:
    """Both sides of a fit: sample n of either side starts from the same noise."""
    return (
        [EncodedPrompt(text, number, number) for number, text in enumerate(source)],
        [EncodedPrompt(text, len(source) + number, number) for number, text in enumerate(target)],
    )


def run_denoiser(
    model: Any, latent: Tensor, seed: int, conditionings: Sequence[Conditioning], use: Callable[[Denoiser], None]
) -> None:
    """Load a MODEL as a sampler does, and call a function with it instead of sampling.

    Args:
        model: a MODEL, which is not changed.
        latent: an empty latent ``[1, channels, ...]``.
        seed: of the noise.
        conditionings: numbered in this order by `EncodedPrompt`.
        use: called once, with the loaded model.
    """
    clone = model.clone()
    guider = comfy.samplers.CFGGuider(clone)
    conds = [[cond, {**extra, _NUMBER: number}] for number, (cond, extra) in enumerate(conditionings)]
    guider.inner_set_conds({"positive": conds})
    sigmas = comfy.samplers.calculate_sigmas(clone.get_model_object("model_sampling"), *_SCHEDULE)
    sampler = _Walk(use, seed, weight_patches(clone, "diffusion model"))
    # Not `zeros_like`: the latent may be a nested tensor of video and audio.
    guider.sample(latent * 0, latent, sampler, sigmas, disable_pbar=True, seed=seed)


class _Walk(comfy.samplers.Sampler):
    """A sampler that does not sample: it hands the loaded model and the prepared conditioning to a function."""

    def __init__(self, use: Callable[[Denoiser], None], seed: int, patches: Sequence[str]) -> None:
        self._use = use
        self._seed = seed
        self._patches = patches

    def sample(
        self, guider: Any, sigmas: Tensor, extra_args: dict[str, Any], callback: Any, noise: Tensor, *_: Any, **__: Any
    ) -> Tensor:
        denoiser = Denoiser(guider, sigmas[:1], extra_args["model_options"], noise, self._seed)
        denoiser.patches = self._patches
        self._use(denoiser)
        return noise


class Denoiser(FitModel[EncodedPrompt]):
    """A loaded diffusion model at its noisiest step, as a model that can be fitted.

    Args:
        guider: of the sampling run.
        sigma: noise level ``[1]``.
        model_options: of the sampling run.
        like: a latent ``[1, channels, ...]`` of the pictures.
        seed: of the noise.
    """

    def __init__(self, guider: Any, sigma: Tensor, model_options: dict[str, Any], like: Tensor, seed: int) -> None:
        self._model = guider.inner_model
        self._conds = {cond[_NUMBER]: cond for cond in guider.conds["positive"]}
        self._sigma = sigma
        self._options = model_options
        self._like = like
        self._seed = seed
        self._components = [diffusion_model(self._model)]
        prepare = self._model.current_patcher.prepare_state
        # Older hosts take only the sigma.
        prepare(*(sigma, model_options)[: len(inspect.signature(prepare).parameters)])

    @property
    def components(self) -> Sequence[Component]:
        return self._components

    def describe(self, sample: EncodedPrompt) -> str:
        return sample.text

    def batch_key(self, sample: EncodedPrompt) -> Hashable:
        conds: dict[str, Any] = self._conds[sample.conditioning]["model_conds"]
        return tuple(sorted((name, tuple(cond.size())) for name, cond in conds.items()))

    def budget(self) -> int | None:
        """Bytes that the fit may use; None if it needs only a small share of the free memory."""
        free = comfy.model_management.get_free_memory(self._like.device)
        needed = self._model.memory_required([len(self._conds), *self._like.shape[1:]])
        return None if needed < _SMALL_SHARE * free else int(_SHARE * free)

    def batches(self, samples: Sequence[EncodedPrompt], size: int) -> list[MicroBatch]:
        """Batch prompts together if their conditioning has the same shape."""
        groups: list[list[Any]] = []
        for sample in samples:
            prepared = self._prepared(sample)
            group = next((g for g in groups if len(g) < size and _can_share_a_batch(g[0], prepared)), None)
            if group is None:
                groups.append([prepared])
            else:
                group.append(prepared)
        return [MicroBatch(len(group), partial(self._run, group)) for group in groups]

    def _prepared(self, sample: EncodedPrompt) -> Any:
        generator = torch.Generator().manual_seed(self._seed + sample.noise)
        noise = torch.randn(self._like.shape, generator=generator).to(self._like)
        x = self._model.model_sampling.noise_scaling(self._sigma[0], noise, torch.zeros_like(noise), True)
        return comfy.samplers.get_area_and_mult(self._conds[sample.conditioning], x, self._sigma)

    def _run(self, group: Sequence[Any]) -> None:
        count = len(group)
        own = self._model.current_patcher.apply_hooks(hooks=None)
        options = merge_nested_dicts(own, self._options.get("transformer_options", {}), copy_dict1=False)
        uuids = [prepared.uuid for prepared in group]
        options |= {"cond_or_uncond": [0] * count, "uuids": uuids, "sigmas": self._sigma}
        x, t = torch.cat([prepared.input_x for prepared in group]), self._sigma.expand(count)
        c = comfy.samplers.cond_cat([prepared.conditioning for prepared in group]) | {"transformer_options": options}
        forget_prompts(self._components[0].module)
        with memory_errors():
            if "model_function_wrapper" in self._options:
                arguments = {"input": x, "timestep": t, "c": c, "cond_or_uncond": options["cond_or_uncond"]}
                self._options["model_function_wrapper"](self._model.apply_model, arguments)
            else:
                self._model.apply_model(x, t, **c)


def _can_share_a_batch(one: Any, other: Any) -> bool:
    """Whether two prompts can share a batch without repeating one to the length of the other."""
    sizes = [{name: cond.size() for name, cond in prepared.conditioning.items()} for prepared in (one, other)]
    return sizes[0] == sizes[1] and comfy.samplers.can_concat_cond(one, other)
