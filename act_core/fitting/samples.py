"""What a fit asks of a model: an adapter that turns samples into micro-batches.

A sample is whatever the adapter runs through the model: a prompt, a prompt with its conditioning, a picture. The walk
does not look inside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar, cast

from torch import Tensor

from ..components import Component
from ..errors import FitError

Side = Literal["source", "target"]
Sample = TypeVar("Sample")


@dataclass(frozen=True)
class MicroBatch:
    """Samples that run through the model together.

    Attributes:
        rows: how many samples; the first dimension of every activation.
        run: runs the model on them once.
        mask: bool ``[rows, tokens]``, True at the tokens that count, not at padding; None if all do.
    """

    rows: int
    run: Callable[[], object]
    mask: Tensor | None = None


class FitModel(Generic[Sample]):
    """A model that can be fitted; adapters derive from it. The defaults are right for samples that are prompts.

    Attributes:
        patches: what else acts on the model, for the record of a map.
        notes: what the user should know of how the model is fitted, for the record and the console.
    """

    patches: Sequence[str] = ()
    notes: Sequence[str] = ()

    @property
    def components(self) -> Sequence[Component]:
        """The parts that may hold sites, in the order in which they run."""
        raise NotImplementedError

    def batches(self, samples: Sequence[Sample], size: int) -> list[MicroBatch]:
        """All samples, in micro-batches of at most `size`, ready to run."""
        raise NotImplementedError

    def describe(self, sample: Sample) -> str:
        """A sample in words, for the record of a map; for a prompt its text."""
        return cast("str", sample)

    def cost(self, sample: Sample) -> int:
        """How much memory a sample takes, relative to others of the same fit."""
        return len(self.describe(sample))

    def check(self, source: Sequence[Sample], target: Sequence[Sample]) -> None:
        """Refuse samples that cannot be fitted, before anything runs.

        Raises:
            FitError: a sample that cannot be used, or sides that do not differ.
        """
        sides: dict[Side, Sequence[Sample]] = {"source": source, "target": target}
        for side, samples in sides.items():
            check_prompts([self.describe(sample) for sample in samples], side)
        if sorted(map(self.describe, source)) == sorted(map(self.describe, target)):
            raise FitError("Source and target prompts are the same, so there is nothing to fit; change one list.")


def check_prompts(prompts: Sequence[object], side: Side) -> None:
    """Refuse prompts that are not texts, or are empty."""
    for number, prompt in enumerate(prompts, start=1):
        if not isinstance(prompt, str):
            raise FitError(f"Number {number} of the {side} prompts is {prompt!r}, not a text; write a prompt there.")
        if not prompt.strip():
            raise FitError(f"Number {number} of the {side} prompts is empty; fill it in or take it out.")
