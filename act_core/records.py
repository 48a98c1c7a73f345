"""What a map records beside its transports: how it was fitted and on what, and what its author says about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from .settings import FitMethod, FittedBy

Walk = Literal["exact", "streamed"]
# The texts of a card; in a file, each under ``modelspec.<name>``.
CARD_TEXTS = ("title", "author", "description", "license", "usage_hint", "tags")


@dataclass(frozen=True)
class Fingerprint:
    """Identifies a component of the model that a map was fitted on.

    Attributes:
        architecture: name of its family, such as ``llama``; see `act_core.architectures`.
        weights: SHA-256 over the one-dimensional parameters in bfloat16; empty if there are none.
        model_class: name of the model's class; empty in maps of version 0.1.
        bases: names of the classes of models that it is built on.
        variants: as in `act_core.components.Component`.

    Example:
        >>> Fingerprint("llama", "", "LlamaForCausalLM").architecture
        'llama'
    """

    architecture: str
    weights: str
    model_class: str = ""
    bases: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()


@dataclass(frozen=True)
class FitRecord(FitMethod):
    """How a map was fitted: its method, and what it was fitted on.

    Feature maps whose mean is shifted always have pooled intervals.

    Attributes:
        fitted_by: ``transport`` from the activations of two sets of samples, or ``refinement`` on the model's loss.
        walk: ``streamed`` if the samples fitted neither into memory nor could be parked, and ran group after group.
        source_prompts, target_prompts: what it was fitted on. A large set keeps only its first prompts;
            ``source_count``, ``target_count`` and ``prompts_sha256`` describe all of them.
        base: fingerprints of the base model, by component.
        versions: of the libraries that were loaded.
        patches: other changes that acted on the model during the fit.
        notes: where the fit departed from its settings.
        edits: how the map was changed after the fit.
        merged_from: titles of the maps that it was blended or composed from.

    Example:
        >>> FitRecord(estimator="mean", source_count=2).order
        'causal'
    """

    fitted_by: FittedBy = "transport"
    walk: Walk = "exact"
    source_prompts: tuple[str, ...] = field(default=(), repr=False)
    target_prompts: tuple[str, ...] = field(default=(), repr=False)
    source_count: int = 0
    target_count: int = 0
    prompts_sha256: str = ""
    base: Mapping[str, Fingerprint] = field(default_factory=dict[str, Fingerprint])
    versions: Mapping[str, str] = field(default_factory=dict[str, str])
    patches: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    edits: tuple[str, ...] = ()
    merged_from: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Nothing to validate: the reader checks types, and version 0.1 accepted any seed."""

    @property
    def model(self) -> str:
        """The architectures of the base model, such as ``clip_text_model + Flux``; empty if not known."""
        return " + ".join(dict.fromkeys(base.architecture for base in self.base.values()))


@dataclass(frozen=True)
class Card:
    """What the author of a map says about it.

    Attributes:
        title, author, description, license, usage_hint, tags: plain texts; empty if not given. Tags are separated by
            commas.
        strength_range: lower and upper end of the recommended strengths.
        cover: a picture, as the bytes of a JPEG file; empty if there is none.

    Example:
        >>> Card(title="Calm", strength_range=(-1.0, 1.0)).license
        ''
    """

    title: str = ""
    author: str = ""
    description: str = ""
    license: str = ""
    strength_range: tuple[float, float] | None = None
    cover: bytes = field(default=b"", repr=False)
    usage_hint: str = ""
    tags: str = ""


@dataclass(frozen=True)
class Evidence:
    """One effect of a map that was measured, with what would have shown the same if it were none.

    Attributes:
        measure: what was measured, such as "probability of the target style".
        value: with the map.
        low, high: ends of its interval of 95%.
        without: without the map.
        control: with a map of the same size that should do nothing, such as this one with its channels permuted.
        kept: share of the content that stays, from 0 to 1.
        strength: at which it was measured.
        samples: how many pictures or texts.
        model: on which it was measured.
        version: of this library.
        command: that measures it again.

    Example:
        >>> found = Evidence("probability of ink", 0.9, 0.85, 0.94, 0.01, 0.02, strength=1.0, samples=72, model="demo")
        >>> print(found)
        probability of ink 0.9 (0.85 to 0.94) at strength 1; without the map 0.01, control 0.02; demo, 72 samples
    """

    measure: str
    value: float
    low: float | None = None
    high: float | None = None
    without: float | None = None
    control: float | None = None
    kept: float | None = None
    strength: float = 1.0
    samples: int = 0
    model: str = ""
    version: str = ""
    command: str = ""

    def __str__(self) -> str:
        interval = "" if self.low is None or self.high is None else f" ({self.low:.3g} to {self.high:.3g})"
        known = {"without the map": self.without, "control": self.control, "content kept": self.kept}
        compared = ", ".join(f"{name} {value:.3g}" for name, value in known.items() if value is not None)
        samples = f"{self.samples} samples" if self.samples else ""
        measured = ", ".join(text for text in (self.model, samples, self.version) if text)
        parts = f"{self.measure} {self.value:.3g}{interval} at strength {self.strength:g}", compared, measured
        return "; ".join(part for part in parts if part)
