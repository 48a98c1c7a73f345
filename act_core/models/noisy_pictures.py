"""Pictures at one noise level, for `act_core.fitting.fit_pictures`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial

from torch import nn

from ..components import Component
from ..errors import FitError
from ..fitting import FitModel, MicroBatch
from ..image_files import Picture, same_pictures
from .diffusers import DiffusersModel

# Runs the diffusion model on pictures, each with the noise of its seed.
Run = Callable[[Sequence[Picture], Sequence[int]], object]


class NoisyPictures(FitModel[Picture]):
    """The diffusion model of a pipeline on pictures with noise of one level; picture n of either side gets the same.

    Args:
        model: the pipeline.
        components, modules: see `FitModel`.
        run: runs the model.
    """

    def __init__(
        self, model: DiffusersModel, components: Sequence[Component], modules: Mapping[str, nn.Module], run: Run
    ) -> None:
        self._model = model
        self._components = components
        self._modules = modules
        self._run = run
        self.notes = model.notes

    @property
    def components(self) -> Sequence[Component]:
        return self._components

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        return self._modules

    def describe(self, sample: Picture) -> str:
        return sample.caption

    def batch_key(self, sample: Picture) -> Hashable:
        return self._model.batch_key(sample.caption)

    def batches(self, samples: Sequence[Picture], size: int) -> list[MicroBatch]:
        return self.some_batches(samples, range(len(samples)), size)

    def some_batches(self, samples: Sequence[Picture], numbers: Sequence[int], size: int) -> list[MicroBatch]:
        alike: defaultdict[Hashable, list[tuple[Picture, int]]] = defaultdict(list)
        for number in numbers:
            alike[self.batch_key(samples[number])].append((samples[number], number))
        found: list[MicroBatch] = []
        for group in alike.values():
            for at in range(0, len(group), size):
                pictures, seeds = zip(*group[at : at + size], strict=True)
                found.append(MicroBatch(len(pictures), partial(self._run, pictures, seeds)))
        return found

    def check(self, source: Sequence[Picture], target: Sequence[Picture]) -> None:
        if same_pictures(source, target):
            raise FitError("The source pictures and the target pictures are the same; change one of the two.")
