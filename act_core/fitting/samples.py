"""The interface that a fit needs: an adapter that turns samples into micro-batches.

A sample is whatever the adapter runs through the model: a prompt, a prompt with its conditioning, a picture. The walk
does not inspect it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, Literal, TypeVar, cast

import torch
from torch import Tensor, nn

from ..components import Component
from ..errors import FitError
from ..text import is_blank

Side = Literal["source", "target"]
Sample = TypeVar("Sample")
# Called as ``progress(done, total, what)``.
Progress = Callable[[int, int, str], object]


def no_progress(done: int, total: int, what: str) -> None:
    """Show nothing."""


@dataclass(frozen=True)
class MicroBatch:
    """Samples that run through the model together.

    Attributes:
        rows: number of samples; the first dimension of every activation.
        run: runs the model on them once.
        masks: by component, bool ``[rows, tokens]``: True at the tokens that count, False elsewhere, such as at
            padding. All tokens of the other components count.
        present: by component, bool ``[rows, tokens]``: the attention mask that the model is called with, False at
            padding. A gate reads all other tokens, whether they count or not, as it does in a live model.
        replica: which copy of the model runs them: 0 for the model itself, n for number n - 1 of
            `FitModel.replicas`.
    """

    rows: int
    run: Callable[[], object]
    masks: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    present: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    replica: int = 0


class FitModel(Generic[Sample]):
    """A model that can be fitted. Adapters derive from it; the defaults are right for samples that are prompts.

    Attributes:
        patches: other changes that act on the model, for the record of a map.
        notes: what the user should know about how the model is fitted, for the record and the console.
        replicas: the components of each further copy of the model, such as those on other devices. Micro-batches of
            different replicas walk at the same time.

    Example:
        >>> from functools import partial
        >>> import torch
        >>> from act_core import fit
        >>> from act_core.architectures import architecture_of
        >>> module = nn.Sequential(nn.Linear(1, 2), nn.Linear(2, 2))
        >>> class LengthModel(FitModel[str]):
        ...     components = (Component("model", module, architecture_of(module)),)
        ...
        ...     def batches(self, samples, size):
        ...         rows = torch.tensor([[float(len(text))] for text in samples])
        ...         return [MicroBatch(len(part), partial(module, part)) for part in rows.split(size)]
        >>> len(fit(LengthModel(), ["a", "ab"], ["a cat", "a red cat"], sites="model/*"))
        2
    """

    patches: Sequence[str] = ()
    notes: Sequence[str] = ()
    replicas: Sequence[Sequence[Component]] = ()

    @property
    def components(self) -> Sequence[Component]:
        """The parts that may hold sites, in the order in which they run."""
        raise NotImplementedError

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """Everything that runs in a fit, by name, including modules without sites."""
        return {component.name: component.module for component in self.components}

    def batches(self, samples: Sequence[Sample], size: int) -> list[MicroBatch]:
        """All samples, in micro-batches of at most `size`, ready to run."""
        raise NotImplementedError

    def some_batches(self, samples: Sequence[Sample], numbers: Sequence[int], size: int) -> list[MicroBatch]:
        """As `batches`, but only the samples with these numbers.

        A fit in groups calls it with all samples of a side. Adapters override it where what is run depends on the
        number of a sample, such as its noise.
        """
        return self.batches([samples[number] for number in numbers], size)

    def describe(self, sample: Sample) -> str:
        """A description of a sample for the record of a map; for a prompt, its text."""
        return cast("str", sample)

    def cost(self, sample: Sample) -> int:
        """How much memory a sample takes, relative to others of the same fit."""
        return len(self.describe(sample))

    def batch_key(self, sample: Sample) -> Hashable:
        """What must be equal for samples to share a micro-batch, such as the number of tokens.

        If it differs between the samples of a fit, the parts of a joined stream are pooled and steered apart, such as
        text and picture tokens: their shares of the tokens differ, and the mean over both would depend on that.
        """
        return None

    def check(self, source: Sequence[Sample], target: Sequence[Sample]) -> None:
        """Refuse samples that cannot be fitted, before anything runs.

        Raises:
            FitError: a sample that cannot be used, or sides that do not differ.
        """
        check_prompts(*([self.describe(sample) for sample in samples] for samples in (source, target)))


class LossModel(FitModel[Sample]):
    """A model with a loss that can be differentiated, see `act_core.fitting.refine`.

    Attributes:
        max_rows: the most samples whose gradients fit into memory at once; None for no limit.
        checkpoints: whether blocks run again for their gradient instead of keeping their activations, since memory is
            short. It takes a further forward pass in each step.

    Example:
        >>> import torch
        >>> from act_core.architectures import architecture_of
        >>> from act_core.fitting import refine
        >>> module = nn.Sequential(nn.Linear(1, 2), nn.Linear(2, 1))
        >>> class Line(LossModel[float]):
        ...     components = (Component("model", module, architecture_of(module)),)
        ...
        ...     def describe(self, sample):
        ...         return str(sample)
        ...
        ...     def loss(self, samples, generator):
        ...         return (module(torch.tensor(samples)[:, None]) - 1).square().mean()
        >>> len(refine(Line(), [0.0, 0.1, 0.2], sites="model/*", steps=2))
        2
    """

    max_rows: int | None = None
    checkpoints = False

    def loss(self, samples: Sequence[Sample], generator: torch.Generator) -> Tensor:
        """The mean loss of samples; every random number in it comes from `generator`."""
        raise NotImplementedError

    def check_samples(self, samples: Sequence[Sample]) -> None:
        """Refuse samples on which no map can be refined, before anything runs.

        Raises:
            FitError: fewer than two, or samples that cannot be used.
        """
        if len(samples) < 2:
            count = "is 1 sample" if samples else "are no samples"
            raise FitError(f"There {count}; a refinement needs at least two.")

    def batches(self, samples: Sequence[Sample], size: int) -> list[MicroBatch]:
        parts = [samples[at : at + size] for at in range(0, len(samples), size)]
        return [MicroBatch(len(part), partial(self._run, part)) for part in parts]

    def _run(self, samples: Sequence[Sample]) -> None:
        self.loss(samples, torch.Generator().manual_seed(0))


def check_prompts(source: Sequence[str], target: Sequence[str]) -> None:
    """Refuse prompts that cannot be fitted: not texts, empty, not encodable, or the same on both sides.

    Raises:
        FitError: they cannot be used; the message names the first one.

    Example:
        >>> check_prompts(["a cat", " "], ["a dog", "a cow"])
        Traceback (most recent call last):
        ...
        act_core.errors.FitError: Source prompt 2 is empty; write something there, or remove it.
    """
    _check_texts(source, "source")
    _check_texts(target, "target")
    if sorted(source) == sorted(target):
        raise FitError("The source prompts and the target prompts are the same; change one of the two lists.")


def check_number(samples: Sequence[object], side: Side) -> None:
    """Refuse fewer than two samples.

    Raises:
        FitError: there are fewer.

    Example:
        >>> check_number(["a cat"], "target")
        Traceback (most recent call last):
        ...
        act_core.errors.FitError: There is 1 prompt on the target side; a fit needs at least two on each side.
    """
    if len(samples) < 2:
        count = "is 1 prompt" if len(samples) == 1 else "are no prompts"
        raise FitError(f"There {count} on the {side} side; a fit needs at least two on each side.")


def _check_texts(prompts: Sequence[object], side: Side) -> None:
    for number, prompt in enumerate(prompts, start=1):
        where = f"{side.capitalize()} prompt {number}"
        if not isinstance(prompt, str):
            raise FitError(f"{where} is {prompt!r}; every prompt must be a text.")
        if is_blank(prompt):
            raise FitError(f"{where} is empty; write something there, or remove it.")
        try:
            prompt.encode()
        except UnicodeEncodeError as error:
            code = ord(prompt[error.start])
            raise FitError(f"{where} contains U+{code:04X}, which is half of a character; remove it.") from error
