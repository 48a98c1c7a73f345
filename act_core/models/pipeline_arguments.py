"""The arguments with which a pipeline of diffusers is called, found by the names of its parameters."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch

from ..errors import MapError
from ..settings import as_integer
from .pipelines import denoiser

# Settings that turn guidance off; the first one that a pipeline obeys is used.
_OFF = (1.0, 0.0)


@dataclass(frozen=True)
class Guidance:
    """One way to guide a pipeline.

    Attributes:
        arguments: of its call.
        scale: for its guider, if it has one; None to leave that alone.
    """

    arguments: Mapping[str, Any] = field(default_factory=dict[str, Any])
    scale: float | None = None

    def applied(self, pipeline: Any) -> Any:
        """The pipeline, with a guider of its own if this sets its scale."""
        if self.scale is not None:
            pipeline = copy.copy(pipeline)
            pipeline.guider = pipeline.guider.new(guidance_scale=self.scale)
        return pipeline


class PipelineArguments:
    """What can be given to a pipeline, by the names of its parameters.

    Args:
        pipeline: of diffusers.
        size: width and height of the pictures in pixels; the pipeline's default if None.
    """

    def __init__(self, pipeline: Any, size: tuple[int, int] | None) -> None:
        self._parameters = inspect.signature(type(pipeline).__call__).parameters
        self._size = size
        config = getattr(denoiser(pipeline), "config", None)
        is_distilled = bool(getattr(config, "guidance_embeds", False) or getattr(config, "time_cond_proj_dim", None))
        self._has_guider = getattr(pipeline, "guider", None) is not None
        # The parameter whose scale needs a second branch; models that take the scale as an input have another one.
        self._scale = ""
        if "true_cfg_scale" in self._parameters:
            self._scale = "true_cfg_scale"
        elif "guidance_scale" in self._parameters and not is_distilled and not self._has_guider:
            self._scale = "guidance_scale"
        own_scale = self._default("guidance_scale")
        self._is_guided_by_input = self._scale == "true_cfg_scale" and own_scale is not None

    @property
    def takes_negative(self) -> bool:
        """Whether a negative prompt can be given."""
        return "negative_prompt" in self._parameters

    def of(self, prompts: Sequence[str], seeds: Sequence[int], **settings: Any) -> dict[str, Any]:
        """The arguments for prompts that each start from the noise of their seed; without those it does not have."""
        width, height = self._size or (None, None)
        given: dict[str, Any] = {
            "prompt": list(prompts),  # a new list each time, since some pipelines write into it
            "generator": [torch.Generator().manual_seed(seed) for seed in seeds],
            # Video models draw a single picture.
            "num_frames": 1,
            "video_length": 1,
            **settings,
        }
        if self._size:
            # Otherwise some pipelines draw at the nearest size that they were trained on, and resize.
            given |= {"width": width, "height": height, "use_resolution_binning": False}
        return {name: value for name, value in given.items() if name in self._parameters}

    def without_guidance(self) -> list[Guidance]:
        """Ways to turn guidance off, to be tried in order. A distilled model keeps its default guidance."""
        if self._has_guider:
            return [Guidance(scale=1.0), Guidance(scale=0.0)]
        return [Guidance({self._scale: scale}) for scale in _OFF] if self._scale else [Guidance()]

    def guided(self, scale: float | None, negative: Sequence[str], off: Guidance) -> tuple[Guidance, bool]:
        """How to guide a call, and whether that takes a second branch.

        Args:
            scale: guidance scale; the pipeline's default if None.
            negative: negative prompts, which may be empty.
            off: how guidance is turned off.
        """
        limit: float = off.arguments.get(self._scale, 1.0) if off.scale is None else off.scale
        if self._has_guider:
            return Guidance(self._away(negative), scale), scale is None or scale > limit
        if not self._scale or (self._is_guided_by_input and not any(negative)):
            # A scale that is an input of the model.
            return Guidance({} if scale is None else self._known({"guidance_scale": scale})), False
        chosen = self._default(self._scale) if scale is None else scale
        if chosen is None or chosen <= limit:
            return Guidance({self._scale: chosen}), False
        return Guidance({self._scale: chosen, **self._away(negative)}), True

    def _away(self, negative: Sequence[str]) -> dict[str, Any]:
        """Negative prompts. Without any, most pipelines have a default; for true CFG and guiders they are required."""
        is_required = self._scale == "true_cfg_scale" or self._has_guider
        return self._known({"negative_prompt": list(negative)}) if any(negative) or is_required else {}

    def _known(self, arguments: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in arguments.items() if name in self._parameters}

    def _default(self, name: str) -> Any:
        parameter = self._parameters.get(name)
        return None if parameter is None or parameter.default is parameter.empty else parameter.default


def checked_size(pipeline: Any, size: tuple[int, int] | None, name: str) -> tuple[int, int] | None:
    """Width and height in pixels.

    Raises:
        MapError: they are not numbers, or the pipeline cannot draw pictures of this size.
    """
    if size is None:
        return None
    try:
        width, height = (as_integer("size", side, 0, error=MapError) for side in size)
    except (TypeError, ValueError):
        raise MapError(f"size is {size!r}; give width and height in pixels, such as (512, 512).") from None
    config = getattr(denoiser(pipeline), "config", None)
    unit = _unit(pipeline, config)
    if any(side < unit or side % unit for side in (width, height)):
        raise MapError(f"Pictures of {width} x {height} cannot be drawn; give multiples of {unit} pixels.")
    largest = (getattr(config, "pos_embed_max_size", None) or math.inf) * unit
    if max(width, height) > largest:
        raise MapError(
            f"Pictures of {width} x {height} are too large for {name or 'this model'}; it draws up to "
            f"{largest} pixels per side."
        )
    return width, height


def _unit(pipeline: Any, config: Any) -> int:
    """The number of pixels of which both sides of a picture must be multiples, as far as it is known."""
    names = ("vae_scale_factor", "vae_scale_factor_spatial", "vae_spatial_compression_ratio")
    scale = next((getattr(pipeline, name) for name in names if isinstance(getattr(pipeline, name, None), int)), 1)
    sizes: Any = getattr(config, "patch_size", 1)
    patch = cast("Sequence[Any]", sizes)[-1] if isinstance(sizes, (list, tuple)) else sizes
    processor = getattr(getattr(pipeline, "image_processor", None), "config", None)
    # Some pipelines pack latents into patches before the model sees them.
    return max(scale * (patch if isinstance(patch, int) else 1), getattr(processor, "vae_scale_factor", 1))
