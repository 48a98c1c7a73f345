"""The choices and bounds of settings, and `FitSettings`, from which records, options and node inputs are derived.

Code that offers a setting to a user gets its choices from `choices`, its description from `purpose`, and its default
from an instance: ``getattr(FitSettings(), name)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, SupportsFloat, TypeVar, get_args, get_type_hints

from .errors import FitError, MapError
from .numeric import as_integer, as_number

# Fitted for each channel by itself; `end_to_end` fits all of them at once.
ChannelEstimator = Literal["linear", "mean", "gaussian", "project"]
Estimator = Literal[ChannelEstimator, "end_to_end"]
# Not every fit offers it.
END_TO_END_PURPOSE = "end_to_end fits all layers at once by gradient, which takes longer."
Order = Literal["causal", "simultaneous"]
Support = Literal["unbounded", "observed", "gated"]
Interval = Literal["token", "pooled"]
Moved = Literal["source", "both"]
Spatial = Literal["shift", "pointwise"]
Components = Literal["both", "model", "text"]
Branch = Literal["positive", "both", "negative"]
Dtype = Literal["float32", "bfloat16", "float16"]

FittedBy = Literal["transport", "refinement"]
# The presets that an architecture may have; `auto` and `all` are chosen from them.
SITE_PRESETS = ("auto", "attention", "mlp", "norms", "blocks", "all")

# Far above any useful strength, and far below those that overflow float16 at once.
MAX_STRENGTH = 1000
MAX_SEED = 2**63 - 1


def _for(purpose: str) -> dict[str, str]:
    return {"purpose": purpose}


def purpose(name: str) -> str:
    """What a field of `FitSettings` does, in a sentence for tooltips and ``--help``.

    Example:
        >>> purpose("order")
        'causal fits each layer with the layers before it steered; simultaneous fits all on the unsteered model.'
    """
    return next(f.metadata["purpose"] for f in fields(FitSettings) if f.name == name)


def choices(name: str) -> tuple[str, ...]:
    """The allowed words of a field of `FitSettings`; none for a number or free text.

    Example:
        >>> choices("order"), choices("seed")
        (('causal', 'simultaneous'), ())
    """
    return tuple(word for word in get_args(get_type_hints(FitSettings)[name]) if isinstance(word, str))


def check_choice(name: str, value: object, allowed: tuple[str, ...], error: type[MapError] = MapError) -> None:
    """Raise an error that lists what is allowed.

    Example:
        >>> check_choice("branch", "left", ("positive", "negative"))
        Traceback (most recent call last):
        ...
        act_core.errors.MapError: branch is 'left'; choose one of positive, negative.
    """
    if not isinstance(value, str) or value not in allowed:
        raise error(f"{name} is {value!r}; choose one of {', '.join(allowed)}.")


@dataclass(frozen=True)
class FitMethod:
    """The settings that determine what a map is: the part of `FitSettings` that its file keeps.

    Attributes:
        estimator: how the transport of a channel is fitted (paper, section 3.2).
        order: whether a site is fitted while the maps of the sites before it act (paper, section 3.3).
        support: whether a map acts on all values, inside the interval that the source showed, or on prompts that are
            like the source.
        interval: with observed support, what that interval spans.
        moved: in a causal fit, the prompts on which the maps of earlier sites act.
        spatial: rule for feature maps.
        seed: of the noise, and of the order of samples in a streamed fit.

    Raises:
        FitError: a word or a seed that is not allowed.

    Example:
        >>> FitMethod(support="observed").interval
        'token'
    """

    estimator: Estimator = field(
        default="linear",
        metadata=_for(
            "linear shifts and scales each channel, mean only shifts it, gaussian matches mean and spread. project "
            "removes something: it takes away only as much as is there."
        ),
    )
    order: Order = field(
        default="causal",
        metadata=_for(
            "causal fits each layer with the layers before it steered; simultaneous fits all on the unsteered model."
        ),
    )
    support: Support = field(
        default="unbounded",
        metadata=_for(
            "unbounded to add something; gated to remove something, acting only on prompts that show it; observed acts "
            "only on values that the source prompts showed."
        ),
    )
    interval: Interval = field(
        default="token",
        metadata=_for(
            "With observed support, the interval spans single values (token) or means over a prompt (pooled)."
        ),
    )
    moved: Moved = field(
        default="source",
        metadata=_for(
            "In a causal fit, the prompts that earlier layers already steer: source, or both as in the paper's code."
        ),
    )
    spatial: Spatial = field(
        default="shift",
        metadata=_for("For feature maps, shift the mean over the picture (the paper's rule) or map every position."),
    )
    seed: int = field(default=0, metadata=_for("Seed of the noise, and of the order of prompts in a streamed fit."))

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for name in ("estimator", "order", "support", "interval", "moved", "spatial"):
            check_choice(name, getattr(self, name), get_args(hints[name]), FitError)
        object.__setattr__(self, "seed", as_integer("seed", self.seed, 0, MAX_SEED))


@dataclass(frozen=True)
class FitSettings(FitMethod):
    """How a map is fitted. All settings have defaults, and are validated when an instance is created.

    Attributes:
        sites: preset (``norms``, ``attention``, ``mlp``, ``blocks``, ``all``, ``auto``) or comma-separated fnmatch
            patterns on ``component/name``.
        batch_size: samples that run together.
        memory_budget: bytes that the fit may use on the model's device in addition to the model; None for no limit.
            Samples that do not fit are parked while they wait: in main memory, or if the model runs on the CPU in a
            temporary file. The map stays exact. If main memory is short, too, they are streamed in groups, and the
            map's record notes it: such a map is a coarse approximation of the exact one.
        steps: of gradient descent, for the estimator ``end_to_end``.
        sparsity: how much that estimator shrinks coefficients, and leaves out sites that hardly matter; 0 keeps all.

    Raises:
        FitError: a setting that is not allowed.

    Example:
        >>> FitSettings(sites="norms", estimator="mean").order
        'causal'
        >>> FitSettings(order="random")
        Traceback (most recent call last):
        ...
        act_core.errors.FitError: order is 'random'; choose one of causal, simultaneous.
    """

    sites: str = field(
        default="auto",
        metadata=_for(
            "Which layers are steered. auto selects what works best for this kind of model. Patterns are allowed."
        ),
    )
    batch_size: int = field(default=32, metadata=_for("Samples that run together."))
    memory_budget: int | None = field(
        default=None,
        metadata=_for("Memory that the fit may use on the model's device, beside the model; unlimited by default."),
    )
    steps: int = field(default=60, metadata=_for("Steps of an end_to_end fit."))
    sparsity: float = field(
        default=0.0, metadata=_for("In an end_to_end fit, how much to shrink coefficients and leave out layers.")
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sites(self.sites)
        object.__setattr__(self, "batch_size", as_integer("batch_size", self.batch_size, 1))
        if self.memory_budget is not None:
            object.__setattr__(self, "memory_budget", as_integer("memory_budget", self.memory_budget, 1))
        object.__setattr__(self, "steps", as_integer("steps", self.steps, 1))
        object.__setattr__(self, "sparsity", as_number("sparsity", self.sparsity, 0, 100))
        needed = {"order": "causal", "support": "unbounded", "moved": "source"}
        for name, word in needed.items():
            if self.estimator == "end_to_end" and getattr(self, name) != word:
                raise FitError(f"The estimator end_to_end needs {name} {word}, not {getattr(self, name)}.")
        if self.sparsity and self.estimator != "end_to_end":
            raise FitError(f"sparsity has no effect on the estimator {self.estimator}; choose end_to_end.")


@dataclass(frozen=True)
class RefineSettings:
    """How a map is refined. All settings have defaults, and are validated when an instance is created.

    Attributes:
        sites: as in `FitSettings`.
        steps: steps of gradient descent.
        rate: learning rate of Adam, for gains and for offsets in units of the activation.
        batch_size: samples of a step.
        held_back: share of the samples that is not trained on, and shows when to stop.
        seed: of the noise, and of the order of the samples.

    Raises:
        FitError: a setting that is not allowed.

    Example:
        >>> RefineSettings(steps=30).sites
        'auto'
        >>> RefineSettings(held_back=1)
        Traceback (most recent call last):
        ...
        act_core.errors.FitError: held_back is 1; it must be a number from 0 to 0.9.
    """

    sites: str = "auto"
    steps: int = 80
    rate: float = 0.05
    batch_size: int = 16
    held_back: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_sites(self.sites)
        for name in ("steps", "batch_size"):
            object.__setattr__(self, name, as_integer(name, getattr(self, name), 1))
        object.__setattr__(self, "seed", as_integer("seed", self.seed, 0, MAX_SEED))
        object.__setattr__(self, "rate", as_number("rate", self.rate, 1e-6, 1))
        object.__setattr__(self, "held_back", as_number("held_back", self.held_back, 0, 0.9))


Settings = TypeVar("Settings", FitSettings, RefineSettings)


def changed(settings: Settings, changes: Mapping[str, Any]) -> Settings:
    """Settings with some of them changed, by name.

    Raises:
        FitError: there is no setting of that name, or its value is not allowed.

    Example:
        >>> changed(FitSettings(), {"sites": "norms"}).sites
        'norms'
    """
    known = {f.name for f in fields(settings)}
    for name in changes:
        if name not in known:
            raise FitError(f"A fit has no setting {name!r}; choose from {', '.join(sorted(known))}.")
    return replace(settings, **changes)


def check_sites(sites: object) -> None:
    """Raise an error if a choice of sites is not a text.

    Raises:
        FitError: it is not.

    Example:
        >>> check_sites("norms")
    """
    if not isinstance(sites, str):
        raise FitError(f"sites is {sites!r}; give one string, such as 'norms' or 'attention, mlp'.")


def as_strength(value: object) -> float:
    """A strength as a float: any real number of Python, numpy or torch.

    Raises:
        MapError: not a number, not finite, or beyond `MAX_STRENGTH`.

    Example:
        >>> as_strength(1)
        1.0
    """
    return as_number("The strength", value, -MAX_STRENGTH, MAX_STRENGTH, MapError)


# One for all components of a map, or one for each.
Strength = SupportsFloat | Mapping[str, SupportsFloat]
