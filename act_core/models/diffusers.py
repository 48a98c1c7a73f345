"""Text-to-image pipelines of the diffusers library, from a local folder."""

from __future__ import annotations

import copy
import logging
import os
import warnings
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import torch
from diffusers import StableDiffusion3Pipeline  # pyright: ignore[reportPrivateImportUsage]
from PIL.Image import Image
from torch import Tensor, nn

from ..architectures import architecture_of
from ..components import DIFFUSION_MODEL, Component
from ..errors import MapError, MapMismatchError
from ..fitting import MicroBatch
from ..settings import Branch, Components, as_integer, check_choice
from ..steering import BatchRows
from ..steering.forward import layers_on
from .base import SteerableModel, as_real, checked_prompts, checked_seed
from .branches import Branches, resetting, unguided_rows
from .call_plan import CallPlan, examined
from .loading import loading
from .pipeline_arguments import PipelineArguments, checked_size
from .pipeline_calls import STEPS, Call, called, first_call, watched
from .pipelines import (
    OneEncoderPipeline,
    check_pipeline,
    checked_folder,
    denoiser,
    denoiser_place,
    text_encoders,
    uncompiled,
    with_own_schedule,
)
from .prompt_tokens import warn_of_long
from .sampling_levels import with_levels

__all__ = ["DIFFUSION_MODEL", "Branch", "DiffusersModel"]

logger = logging.getLogger(__name__)


class DiffusersModel(SteerableModel[Image]):
    """A text-to-image pipeline of any kind that diffusers has. Video models draw a single picture.

    A fit runs each prompt once, from separate noise, at the noisiest step of the schedule and without guidance
    (paper, section 5); the text encoders run first, then the diffusion model, in one causal walk. How a pipeline is
    called is found by the names of its parameters and from a few prompts that run up to its diffusion model, when it
    is first used.

    Args:
        pipeline: a diffusers pipeline; it is copied, but its models are shared.
        name: display name.
        components: which parts hold sites: the diffusion model (``model``), the text encoders (``text``), or ``both``.
        size: width and height of the pictures in pixels; the pipeline's default if None.
        seed: seed of a fit, in which prompt n of either side starts from the noise of ``seed + n``.

    Raises:
        MapError: a pipeline that needs more than a prompt, or a size that it cannot draw. The first fit or picture
            raises it for a pipeline that turns out not to run from a prompt alone.

    Example::

        model = DiffusersModel.from_pretrained("demo_model")
        act_map = fit(model, ["cat, flat sticker", ...], ["cat, black ink icon", ...])
        with model.steer(act_map, 0.7):
            model.generate(["rocket, flat sticker"])[0].save("rocket.png")
    """

    def __init__(
        self,
        pipeline: Any,
        name: str = "",
        *,
        components: Components = "both",
        size: tuple[int, int] | None = None,
        seed: int = 0,
    ) -> None:
        check_choice("components", components, get_args(Components))
        check_pipeline(pipeline)
        if isinstance(pipeline, StableDiffusion3Pipeline) and not pipeline.text_encoder_2:
            pipeline = OneEncoderPipeline(**pipeline.components)
        self.pipeline: Any = copy.copy(pipeline)
        self.pipeline.set_progress_bar_config(disable=True)
        self.name = name
        self._components: Components = components
        self._seed = checked_seed(seed)
        self._output_type = "pil"
        self._arguments = PipelineArguments(self.pipeline, checked_size(self.pipeline, size, name))
        if denoiser_place(pipeline) == "transformer" and getattr(pipeline, "transformer_2", None) is not None:
            self.notes = ("the second diffusion model, which runs the less noisy steps, is left alone",)
        self._known_lengths: dict[str, Hashable] = {}
        # Which rows of a batch belong to a branch, for the text encoders and for the diffusion model.
        self._text_rows, self._model_rows = unguided_rows(), unguided_rows()

    @classmethod
    def from_pretrained(
        cls,
        folder: str | os.PathLike[str],
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        components: Components = "both",
        size: tuple[int, int] | None = None,
        seed: int = 0,
    ) -> DiffusersModel:
        """Load a pipeline folder. Nothing is ever downloaded.

        Raises:
            MapError: the folder holds no pipeline, one that needs more than a prompt, or one with missing parts.
        """
        folder = Path(folder).expanduser()
        with loading(f"The pipeline {folder}"), warnings.catch_warnings():
            kind, absent = checked_folder(folder)
            warnings.simplefilter("ignore", FutureWarning)  # newer versions rename torch_dtype to dtype
            pipeline = kind.from_pretrained(folder, torch_dtype=dtype, local_files_only=True, **absent).to(device)
        return cls(pipeline, folder.name, components=components, size=size, seed=seed)

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The text encoders and the diffusion model by component name, in the order in which they run."""
        encoders = {name: uncompiled(getattr(self.pipeline, place)) for place, name in self._encoders.items()}
        return {**encoders, DIFFUSION_MODEL: uncompiled(denoiser(self.pipeline))}

    @property
    def components(self) -> list[Component]:
        is_text = {"both": (True, False), "text": (True,), "model": (False,)}[self._components]
        return [
            Component(name, module, architecture_of(module))
            for name, module in self.modules.items()
            if (name != DIFFUSION_MODEL) in is_text
        ]

    def batch_key(self, sample: str) -> Hashable:
        """The length of a prompt, as its number of tokens or the shapes of its conditioning.

        None if this pipeline pads all prompts to one length.
        """
        plan = self._plan
        if plan.has_fixed_length:
            return None
        if sample not in self._known_lengths:
            call = first_call(*self._unguided([sample], [0]), plan.counted).call
            if call.place == plan.counted:
                length: Hashable = plan.tokens.length(call)
            else:
                length = tuple(call.by_row()[path][0].shape for path in plan.conditioning)
            self._known_lengths[sample] = length
        return self._known_lengths[sample]

    def batches(self, samples: Sequence[str], size: int) -> list[MicroBatch]:
        """Prompts in the order given; prompt n of either side starts from the same noise.

        Prompts of different lengths share a batch only if the pipeline pads them all to one length.
        """
        return self.some_batches(samples, range(len(samples)), size)

    def some_batches(self, samples: Sequence[str], numbers: Sequence[int], size: int) -> list[MicroBatch]:
        warn_of_long(self.pipeline, [samples[number] for number in numbers])
        size = size if self._plan.runs_together else 1
        alike: defaultdict[Hashable, list[tuple[str, int]]] = defaultdict(list)
        for number in numbers:
            alike[self.batch_key(samples[number])].append((samples[number], self._seed + number))
        return [
            self._batch(*map(list, zip(*group[at : at + size], strict=True)))  # prompts and their seeds
            for group in alike.values()
            for at in range(0, len(group), size)
        ]

    def first_call(self, prompts: Sequence[str]) -> Mapping[str, Any]:
        """What the diffusion model gets in its first call, without guidance; gradients pass by the text encoders."""
        unguided = self._unguided(prompts, [0] * len(prompts))
        return first_call(*unguided, gradients=torch.is_grad_enabled()).call.arguments

    def generate(
        self,
        prompts: Sequence[str],
        *,
        negative: str = "",
        steps: int = STEPS,
        guidance: float | None = None,
        seed: int = 0,
        step: Callable[[], object] | None = None,
    ) -> list[Image]:
        """One picture for each prompt, as one batch.

        Args:
            prompts: texts; a text that is too long for the text encoder is truncated, with a warning.
            negative: the negative prompt, under guidance.
            steps: number of denoising steps.
            guidance: guidance (CFG) scale; the pipeline's default if None. 1 or less turns guidance off, for a few
                pipelines (such as Z-Image) only 0. A distilled model takes the scale as an input, without a second
                branch; some of these have a second branch if there is a negative prompt.
            seed: prompt n starts from the noise of ``seed + n``, whatever else is in the batch.
            step: called after each denoising step; an exception that it raises ends the run.

        Raises:
            MapError: no prompt, or a setting that is out of range.
            MapMismatchError: one branch is steered, but the pipeline does not show which rows belong to it.
        """
        prompts, (negative,) = checked_prompts(prompts), checked_prompts([negative])
        steps, seed = as_integer("steps", steps, 1, error=MapError), checked_seed(seed)
        guidance = None if guidance is None else as_real("guidance", guidance, 0)
        warn_of_long(self.pipeline, [*prompts, negative])
        if negative and not self._arguments.takes_negative:
            logger.warning("A %s takes no negative prompt, so %r is ignored.", type(self.pipeline).__name__, negative)
        guided, two_branches = self._arguments.guided(guidance, [negative] * len(prompts), self._plan.off)
        seeds = range(seed, seed + len(prompts))
        arguments = self._arguments.of(prompts, seeds, num_inference_steps=steps, output_type=self._output_type)
        pipeline, checks = guided.applied(self.pipeline), [step] if step else []
        around: dict[str, Callable[[Call], Any]] = {}
        if two_branches and self._steered_by_branch():
            branches = self._branches(prompts, negative)
            around = {**dict.fromkeys(self._encoders, branches.encode), denoiser_place(pipeline): branches.denoise}
            checks.insert(0, branches.after_step)
        pipeline = watched(pipeline, with_levels(pipeline, around))
        pipeline = with_own_schedule(pipeline, after_step=lambda: [check() for check in checks])
        with torch.inference_mode(), resetting(self._text_rows, self._model_rows):
            output = next(iter(pipeline(**{**arguments, **guided.arguments}).values()))
        return [_picture(one) for one in output] if self._output_type == "pil" else output

    def latents(self, prompts: Sequence[str], **settings: Any) -> Tensor:
        """The denoised latents ``[prompts, ...]`` of the pictures that `generate` draws with the same settings."""
        drawing: Any = copy.copy(self)
        drawing._output_type = "latent"
        return drawing.generate(prompts, **settings)

    def _rows(self, branch: Branch) -> dict[str, BatchRows] | None:
        if branch == "both":
            return None
        return {**dict.fromkeys(self.modules, self._text_rows[branch]), DIFFUSION_MODEL: self._model_rows[branch]}

    @property
    def _encoders(self) -> dict[str, str]:
        """Names of the text encoders, by the attributes that hold them."""
        return text_encoders(self.pipeline)

    @cached_property
    def _plan(self) -> CallPlan:
        """How the pipeline calls its models."""
        return examined(self.pipeline, self._arguments)

    def _unguided(self, prompts: Sequence[str], seeds: Sequence[int]) -> tuple[Any, dict[str, Any]]:
        """The pipeline without guidance, and the arguments to call it with for a fit."""
        off = self._plan.off
        arguments = self._arguments.of(prompts, seeds, num_inference_steps=STEPS, output_type="latent")
        return off.applied(self.pipeline), {**arguments, **off.arguments}

    def _steered_by_branch(self) -> list[str]:
        """Names of the components of which one branch is steered."""
        return [
            name
            for name, module in self.modules.items()
            if any(layer.rows is not None for part in module.modules() for layer in layers_on(part))
        ]

    def _branches(self, prompts: Sequence[str], negative: str) -> Branches:
        """Finds the rows of each branch in the calls of a guided run."""
        kind = type(self.pipeline).__name__
        if set(prompts) == {negative}:
            raise MapMismatchError(
                "The prompt and the negative prompt are the same, so their branches cannot be told apart; change one "
                "of them, or steer both branches."
            )
        first = first_call(*self._unguided(prompts, [0] * len(prompts)))
        called = {call.place for call, _ in first.encoded}
        for place, name in self._encoders.items():
            if name in self._steered_by_branch() and place not in called:
                raise MapMismatchError(
                    f"A {kind} calls only parts of its text encoder {name}, so its branches cannot be told apart; "
                    "steer both branches, or fit a map of the diffusion model alone."
                )
        return Branches(first, self._plan.conditioning, self._text_rows, self._model_rows, kind)

    def _batch(self, prompts: Sequence[str], seeds: Sequence[int]) -> MicroBatch:
        masks, present = dict[str, Tensor](), dict[str, Tensor]()

        def encode(call: Call) -> Any:
            for kind, mask in (masks, self._plan.tokens.mask(call)), (present, call.token_mask):
                if mask is not None:
                    kind[self._encoders[call.place]] = mask
            return call.run()

        pipeline = watched(self._unguided(prompts, seeds)[0], dict.fromkeys(self._encoders, encode))
        pipeline = with_own_schedule(pipeline, slice(1))
        # New arguments each time: the same noise.
        return MicroBatch(len(prompts), lambda: called(pipeline, self._unguided(prompts, seeds)[1]), masks, present)


def _picture(output: Any) -> Image:
    """A picture, or the first one of a video."""
    return output if isinstance(output, Image) else _picture(output[0])
