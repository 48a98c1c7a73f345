"""The parts of a pipeline that hold sites."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from .architectures import Architecture

# Component names that are the same in every host; text encoders are named by their family, such as ``clip_l``.
DIFFUSION_MODEL = "diffusion_model"
LANGUAGE_MODEL = "language_model"
# The halves of an encoder-decoder language model.
ENCODER, DECODER = "encoder", "decoder"


@dataclass(frozen=True)
class Component:
    """A part of a pipeline that holds sites.

    Attributes:
        name: such as ``clip_l``.
        module: its root.
        architecture: its family.
        passes: for submodules that run more than once in a call of the model, the pass that a fit measures, counted
            from 0; by default the first.
        ignored: fnmatch patterns on the names of submodules that are not sites, because their output is not used.
        variants: names of the kind of model, the most specific first, in a host that builds models of several kinds
            from one class; empty if the class says it all.
    """

    name: str
    module: nn.Module
    architecture: Architecture
    passes: Mapping[str, int] = field(default_factory=dict[str, int], hash=False)
    ignored: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()
