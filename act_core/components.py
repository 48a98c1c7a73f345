"""The parts of a pipeline that hold sites."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from .architectures import Architecture

# The components that every host names alike; text encoders are named by their family, such as ``clip_l``.
DIFFUSION_MODEL = "diffusion_model"
LANGUAGE_MODEL = "language_model"


@dataclass(frozen=True)
class Component:
    """A part of a pipeline that holds sites.

    Attributes:
        name: such as ``clip_l``.
        module: its root.
        architecture: its family.
        passes: for each submodule that runs more than once in a call of the model, the pass that a fit measures,
            counted from 0; the first for all others.
    """

    name: str
    module: nn.Module
    architecture: Architecture
    passes: Mapping[str, int] = field(default_factory=dict[str, int], hash=False)
