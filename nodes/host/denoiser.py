"""A loaded diffusion model, inside one sampling run of the host."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import comfy.model_management
import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP, merge_nested_dicts
from torch import Tensor

from ...act_core.components import Component
from ...act_core.fitting import FitModel, MicroBatch
from .models import KEY, diffusion_model, forget_prompts, weight_patches
from .noise_levels import sigma_of
from .replicas import on_device, placed_models
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


@dataclass(frozen=True, eq=False)
class Row:
    """One row of a call of the model.

    Attributes:
        prepared: its noisy latent and conditioning, as the host's samplers prepare them.
        sigma: its noise level ``[1]``.
    """

    prepared: Any
    sigma: Tensor


def encoded_sides(source: Sequence[str], target: Sequence[str]) -> tuple[list[EncodedPrompt], list[EncodedPrompt]]:
    """Both sides of a fit: sample n of either side starts from the same noise."""
    return (
        [EncodedPrompt(text, number, number) for number, text in enumerate(source)],
        [EncodedPrompt(text, len(source) + number, number) for number, text in enumerate(target)],
    )


def run_denoiser(
    model: Any,
    latent: Tensor,
    seed: int,
    conditionings: Sequence[Conditioning],
    use: Callable[[Denoiser], None],
    *,
    reserve: int = 1,
) -> None:
    """Load a MODEL as a sampler does, and call a function with it instead of sampling.

    Args:
        model: a MODEL, which is not changed.
        latent: an empty latent ``[1, channels, ...]``.
        seed: of the noise.
        conditionings: numbered in this order by `EncodedPrompt`.
        use: called once, with the loaded model.
        reserve: rows of a sampling run for which memory is kept free beside the weights.
    """
    clone = model.clone()
    if reserve > 1:

        def prepare(executor: Any, patcher: Any, shape: Any, *args: Any, **kwargs: Any) -> Any:
            return executor(patcher, [reserve * shape[0], *shape[1:]], *args, **kwargs)

        clone.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, KEY, prepare)
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
    """A loaded diffusion model as a model that can be fitted, at one noise level; its rows may have others.

    Args:
        guider: of the sampling run.
        sigma: noise level ``[1]`` of a fit.
        model_options: of the sampling run.
        like: a latent ``[1, channels, ...]`` of the pictures.
        seed: of the noise.
    """

    def __init__(self, guider: Any, sigma: Tensor, model_options: dict[str, Any], like: Tensor, seed: int) -> None:
        self._model = guider.inner_model
        self._placed = placed_models(self._model, like.device, model_options)
        self.replicas = [[diffusion_model(copy)] for _, copy in self._placed[1:]]
        self._conds = {cond[_NUMBER]: cond for cond in guider.conds["positive"]}
        self._sigma = sigma
        self._options = model_options
        self._like = like
        self._seed = seed
        self._components = [diffusion_model(self._model)]
        for _, loaded in self._placed:
            prepare = loaded.current_patcher.prepare_state
            # Older hosts take only the sigma.
            prepare(*(sigma, model_options)[: len(inspect.signature(prepare).parameters)])

    @property
    def components(self) -> Sequence[Component]:
        return self._components

    def describe(self, sample: EncodedPrompt) -> str:
        return sample.text

    def batch_key(self, sample: EncodedPrompt) -> Hashable:
        return self.key_of(sample.conditioning)

    def key_of(self, conditioning: int) -> Hashable:
        """The shapes of a conditioning."""
        conds: dict[str, Any] = self._conds[conditioning]["model_conds"]
        return tuple(sorted((name, tuple(cond.size())) for name, cond in conds.items()))

    def budget(self) -> int | None:
        """Bytes that the fit may use; None if it needs only a small share of the free memory."""
        free = comfy.model_management.get_free_memory(self._like.device)
        needed = self._model.memory_required([len(self._conds), *self._like.shape[1:]])
        return None if needed < _SMALL_SHARE * free else int(_SHARE * free)

    def batches(self, samples: Sequence[EncodedPrompt], size: int) -> list[MicroBatch]:
        """Batch prompts together if their conditioning has the same shape."""
        return self.micro_batches([self._row(sample) for sample in samples], size)

    def micro_batches(self, rows: Sequence[Row], size: int) -> list[MicroBatch]:
        """All rows, in micro-batches of at most `size`, which the replicas of the model take in turn."""
        count = len(self._placed)
        groups = self.grouped(rows, min(size, -(-len(rows) // count)))
        return [
            MicroBatch(len(group), partial(self.denoised, group, number % count), replica=number % count)
            for number, group in enumerate(groups)
        ]

    def grouped(self, rows: Sequence[Row], size: int) -> list[list[Row]]:
        """Rows whose conditioning has the same shape, in groups of at most `size`."""
        groups: list[list[Row]] = []
        for row in rows:
            group = next((g for g in groups if len(g) < size and _can_share_a_batch(g[0], row)), None)
            if group is None:
                groups.append([row])
            else:
                group.append(row)
        return groups

    def row(
        self,
        conditioning: int,
        latent: Tensor,
        noise: Tensor,
        sigma: Tensor,
        *,
        noisiest: bool = False,
        encoded: Conditioning | None = None,
    ) -> Row:
        """One row of a call of the model.

        Args:
            conditioning: number of its conditioning.
            latent, noise: ``[1, channels, ...]``; they are mixed.
            sigma: noise level ``[1]``.
            noisiest: whether it is that of the beginning of a schedule.
            encoded: a conditioning that takes its place, such as one that gradients pass by.
        """
        x = self._model.model_sampling.noise_scaling(sigma[0], noise, latent, noisiest)
        cond = self._conds[conditioning]
        if encoded is not None:
            cond = self._prepared({**cond, "cross_attn": encoded[0], **encoded[1]}, noise)
        return Row(comfy.samplers.get_area_and_mult(cond, x, sigma), sigma)

    def _prepared(self, cond: dict[str, Any], noise: Tensor) -> dict[str, Any]:
        """A conditioning as the host's samplers prepare it for the model."""
        prepare = comfy.samplers.encode_model_conds
        # Some models make parts of their conditioning from the latent, which is empty here.
        empty = torch.zeros_like(noise)
        (prepared,) = prepare(
            self._model.extra_conds, [cond], noise, noise.device, "positive", latent_image=empty, seed=self._seed
        )
        return prepared

    def sigma_at(self, percent: float) -> Tensor:
        """The noise level ``[1]`` at a position of the sampling schedule, from 0 (noisiest) to 1."""
        sigma = float(self._model.model_sampling.percent_to_sigma(percent))
        return torch.full((1,), sigma, device=self._like.device)

    def sigma_of(self, level: float) -> Tensor:
        """The noise level ``[1]`` of a level of `act_core.levels`."""
        return sigma_of(self._model.model_sampling, level, self._like.device)

    def noise(self, number: int) -> Tensor:
        """The noise ``[1, channels, ...]`` of a sample with this number."""
        generator = torch.Generator().manual_seed(self._seed + number)
        return torch.randn(self._like.shape, generator=generator).to(self._like)

    def process_latent_in(self, latent: Tensor) -> Tensor:
        """A latent of a VAE ``[1, channels, ...]``, scaled as the model samples it."""
        return self._model.process_latent_in(latent).to(self._like)

    @property
    def is_loaded_whole(self) -> bool:
        """Whether all weights are where the model runs."""
        return all(p.device == self._like.device for p in self._components[0].module.parameters())

    def rows_in_memory(self, factor: float) -> int:
        """How many rows the free memory holds, if each needs `factor` times what it needs for sampling."""
        free = comfy.model_management.get_free_memory(self._like.device)
        return int(free / (factor * self._model.memory_required([1, *self._like.shape[1:]])))

    def _row(self, sample: EncodedPrompt) -> Row:
        noise = self.noise(sample.noise)
        return self.row(sample.conditioning, torch.zeros_like(noise), noise, self._sigma, noisiest=True)

    def denoised(self, group: Sequence[Row], replica: int = 0) -> Tensor:
        """What the model takes for the clean latents ``[rows, channels, ...]`` of a group of rows.

        Args:
            group: the rows.
            replica: which copy of the model runs, see `MicroBatch`.
        """
        count = len(group)
        device, model = self._placed[replica]
        own = model.current_patcher.apply_hooks(hooks=None)
        options = merge_nested_dicts(own, self._options.get("transformer_options", {}), copy_dict1=False)
        uuids = [row.prepared.uuid for row in group]
        sigmas = torch.cat([row.sigma for row in group])
        options |= {"cond_or_uncond": [0] * count, "uuids": uuids, "sigmas": sigmas[:1]}
        x = torch.cat([row.prepared.input_x for row in group])
        c = comfy.samplers.cond_cat([row.prepared.conditioning for row in group])
        if replica:
            x, sigmas, c, options = on_device((x, sigmas, c, options), device)
            comfy.model_management.set_torch_device(device)  # of this thread
        c["transformer_options"] = options
        forget_prompts(diffusion_model(model).module)
        with memory_errors():
            if "model_function_wrapper" in self._options:
                arguments = {"input": x, "timestep": sigmas, "c": c, "cond_or_uncond": options["cond_or_uncond"]}
                return self._options["model_function_wrapper"](model.apply_model, arguments)
            return model.apply_model(x, sigmas, **c)


def _can_share_a_batch(one: Row, other: Row) -> bool:
    """Whether two prompts can share a batch without repeating one to the length of the other."""
    sizes = [{name: cond.size() for name, cond in row.prepared.conditioning.items()} for row in (one, other)]
    return sizes[0] == sizes[1] and comfy.samplers.can_concat_cond(one.prepared, other.prepared)
