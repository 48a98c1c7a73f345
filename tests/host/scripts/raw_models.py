"""One tiny model in either library, run on given tensors, so that maps can be fitted on it and compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from act_core import ActMap, fit, steer
from act_core.architectures import architecture_of
from act_core.architectures.shared_names import Translator
from act_core.components import Component
from act_core.fitting import FitModel, MicroBatch
from act_core.interception import intercepted, output_tensor, output_tensors, submodules
from act_core.sites import Site

# Half of the rows are the source, half the target.
ROWS = 24
# A call of the model on some rows of the inputs.
Run = Callable[[Mapping[str, Tensor]], Tensor]
Inputs = Mapping[str, Tensor]


class RawModel(FitModel[int]):
    """A module that runs on rows of given tensors.

    Args:
        component: its name here.
        module: the model.
        run: calls it.
        inputs: by name, with one row for each sample; those of one name that ends in ``.target`` belong to the target.
    """

    def __init__(self, component: str, module: nn.Module, run: Run, inputs: Inputs) -> None:
        self.part = Component(component, module, architecture_of(module))
        self._run = run
        self._inputs = inputs

    @property
    def components(self) -> list[Component]:
        return [self.part]

    def batch_key(self, sample: int) -> tuple[int, ...]:
        return tuple(tensor.shape[1] for tensor in self.rows([sample]).values() if tensor.ndim > 1)

    def batches(self, samples: Sequence[int], size: int) -> list[MicroBatch]:
        parts = [samples[at : at + size] for at in range(0, len(samples), size)]
        return [MicroBatch(len(part), partial(self.output, part)) for part in parts]

    def describe(self, sample: int) -> str:
        return str(sample)

    def rows(self, samples: Sequence[int]) -> dict[str, Tensor]:
        is_target = samples[0] >= ROWS // 2
        chosen = {
            name: self._inputs.get(f"{name}.target" if is_target else name, tensor)
            for name, tensor in self._inputs.items()
            if not name.endswith(".target")
        }
        return {name: tensor[list(samples)] for name, tensor in chosen.items()}

    def output(self, samples: Sequence[int]) -> Tensor:
        with torch.inference_mode():
            return self._run(self.rows(samples))

    def fitted(self, sites: str = "all") -> ActMap:
        return fit(self, list(range(ROWS // 2)), list(range(ROWS // 2, ROWS)), sites=sites)

    def drawn(self, act_map: ActMap | None = None) -> Tensor:
        """What the model returns for the source rows, steered or not."""
        on: AbstractContextManager[Any] = nullcontext()
        if act_map is not None:
            on = steer({self.part.name: self.part.module}, act_map)
        with on:
            return self.output(list(range(ROWS // 2)))

    def activations(self, named: Mapping[str, tuple[str, int | None]]) -> dict[str, Tensor]:
        """Outputs of submodules for the source rows, by the keys under which their names and indices are given."""
        found: dict[str, Tensor] = {}
        modules = submodules(self.part.module)

        def note(keys: Mapping[str, int | None], output: Any) -> Any:
            for key, index in keys.items():
                tensor = output_tensor(output, index)
                if tensor is not None and key not in found:
                    found[key] = tensor.clone()
            return output

        by_module: dict[nn.Module, dict[str, int | None]] = {}
        for key, (name, index) in named.items():
            if name in modules:
                by_module.setdefault(modules[name], {})[key] = index
        with intercepted({module: partial(note, keys) for module, keys in by_module.items()}):
            self.drawn()
        return found

    def shared_activations(self) -> dict[str, Tensor]:
        """What the parts return that have a name in ComfyUI, by name and index of the output.

        None where both libraries use the same names.
        """
        names = list(submodules(self.part.module))
        translators = [Translator(shared, "ComfyUI", names) for shared in self.part.architecture.shared]
        outputs: dict[str, list[int | None]] = {}

        def note(name: str, output: Any) -> Any:
            outputs[name] = list(output_tensors(output))
            return output

        with intercepted({m: partial(note, name) for name, m in submodules(self.part.module).items() if name}):
            self.drawn()
        places = [(name, index) for name, indices in outputs.items() for index in indices]
        shared = [place for place in places if any(t.site(Site("", *place, "tokens", 1)) for t in translators)]
        return self.activations({f"{name}#{index}": (name, index) for name, index in shared})


def filled(module: nn.Module) -> nn.Module:
    """The module with seeded noise as weights, of a scale at which activations neither vanish nor explode."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(noise / 10 + (name.endswith("weight") and "bias" not in name))
    return module.eval().requires_grad_(False)
