"""The training loop shared by the autoencoder and the flow model.

Each part of a step is seeded by its number, so a training that was stopped continues as if it had not been.

The learning rate is constant after a short warm-up, then falls to zero over the last steps (warmup-stable-decay; Hu et
al., arXiv 2404.06395, section 4). The constant phase does not depend on the number of steps, so a longer training
continues from the checkpoint of a shorter one: `NAME.pt` holds the constant phase, `NAME.STEPS.pt` the decay of a
training of that length.
"""

from __future__ import annotations

import copy
import math
import os
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from .optimizer import Muon, is_hidden

SAVE_EVERY = 120  # seconds
WARMUP = 100  # steps

Module = TypeVar("Module", bound=nn.Module)
Curve = list[tuple[int, float]]


class Plan(NamedTuple):
    """How long to train and how fast.

    Attributes:
        steps: optimizer steps in all.
        decay_steps: the last steps, over which the learning rate falls to zero.
        rate: learning rate of AdamW.
        muon_rate: learning rate of Muon; 0 trains everything with AdamW.
        average: decay of the moving average of the weights per step.
        parts: into how many parts a batch is divided; as many threads as PyTorch has work on them.
    """

    steps: int
    decay_steps: int
    rate: float
    muon_rate: float
    average: float
    parts: int = 1

    def of_length(self, steps: int) -> Plan:
        """Return the plan with other steps, of which the decay has the same share."""
        return self._replace(steps=steps, decay_steps=round(self.decay_steps / self.steps * steps))

    def factor(self, step: int) -> float:
        """Return what the learning rates are multiplied by at a step."""
        return min(1.0, (step + 1) / WARMUP, (self.steps - step) / max(1, self.decay_steps))


class Chance(NamedTuple):
    """Random numbers of one part of a step; the same in every run."""

    words: random.Random
    numbers: torch.Generator


Loss = Callable[[nn.Module, Chance], Tensor]


class _Parts:
    """Replicas of a module that share its weights, one per thread; each keeps its own gradients.

    One thread per part rather than two threads per operation: while another program occupies a core, the other core
    takes over its parts, where each single operation would wait for the slower thread.
    """

    def __init__(self, module: nn.Module, count: int) -> None:
        self._module = module
        self._count = count
        workers = min(count, torch.get_num_threads())
        self._threads = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
        self._idle: SimpleQueue[nn.Module] = SimpleQueue()
        for _ in range(workers):
            replica = copy.deepcopy(module)
            for mine, shared in zip(replica.parameters(), module.parameters(), strict=True):
                mine.data = shared.data
            self._idle.put(replica)

    def gradients(self, loss: Loss, step: int) -> float:
        """Put the mean gradients of one step into the module; returns the mean loss."""

        def run_part(part: int) -> tuple[float, Sequence[Tensor | None]]:
            return self._part(loss, step, part)

        results = list(self._threads.map(run_part, range(self._count)))
        self.run(lambda: self._put([gradients for _, gradients in results]))
        return sum(value for value, _ in results) / self._count

    def _put(self, gradients: Sequence[Sequence[Tensor | None]]) -> None:
        for number, parameter in enumerate(self._module.parameters()):
            # Added in the order of the parts, whichever thread was first.
            present = [own for own in (part[number] for part in gradients) if own is not None]
            parameter.grad = torch.stack(present).sum(0) / self._count if present else None

    def _part(self, loss: Loss, step: int, part: int) -> tuple[float, Sequence[Tensor | None]]:
        seed = step * self._count + part
        chance = Chance(random.Random(seed), torch.Generator().manual_seed(seed))
        replica = self._idle.get()
        try:
            with torch.autocast("cpu", torch.bfloat16):
                value = loss(replica, chance)
            value.backward()
            gradients = [parameter.grad for parameter in replica.parameters()]
            for parameter in replica.parameters():
                parameter.grad = None
        finally:
            self._idle.put(replica)
        return float(value.detach()), gradients

    def run(self, call: Callable[[], None]) -> None:
        """Run something in one of the threads, so that its operations do not wait for a second one either."""
        self._threads.submit(call).result()

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown()


def _moving_average(decay: float) -> Callable[[Sequence[Tensor], Sequence[Tensor], Tensor | int], None]:
    """Return the update of a moving average that is short at first, so that it soon forgets the random start."""

    @torch.no_grad()
    def update(averages: Sequence[Tensor], current: Sequence[Tensor], count: Tensor | int) -> None:
        number = int(count)
        short = min(decay, (1 + number) / (10 + number))
        for average, value in zip(averages, current, strict=True):
            average.lerp_(value, 1 - short)

    return update


class _State:
    """Everything that a checkpoint holds."""

    def __init__(self, module: nn.Module, plan: Plan) -> None:
        hidden = [p for n, p in module.named_parameters() if plan.muon_rate and is_hidden(n, p)]
        known = {id(parameter) for parameter in hidden}
        others = [parameter for parameter in module.parameters() if id(parameter) not in known]
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "adam": torch.optim.AdamW(others, plan.rate, betas=(0.9, 0.99), weight_decay=0.0)
        }
        if hidden:
            self.optimizers["muon"] = Muon(hidden, plan.muon_rate)
        self.average = AveragedModel(module, multi_avg_fn=_moving_average(plan.average))
        self.parts: dict[str, Any] = {"module": module, "average": self.average, **self.optimizers}
        self.rates = {"adam": plan.rate, "muon": plan.muon_rate}
        self.step = 0
        self.curve: Curve = []

    def load(self, checkpoint: Path) -> None:
        saved = torch.load(checkpoint, weights_only=True)
        self.step, self.curve = saved["step"], saved["curve"]
        for name, part in self.parts.items():
            part.load_state_dict(saved[name])

    def save(self, checkpoint: Path) -> None:
        partial = checkpoint.with_suffix(".part")
        state = {name: part.state_dict() for name, part in self.parts.items()}
        torch.save({"step": self.step, "curve": self.curve, **state}, partial)
        os.replace(partial, checkpoint)

    def update(self, module: nn.Module, factor: float) -> None:
        """One step of the optimizers and of the average, from the gradients in the module."""
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        for name, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = self.rates[name] * factor
            optimizer.step()
            optimizer.zero_grad()
        self.average.update_parameters(module)
        self.step += 1


def train(module: Module, loss: Loss, plan: Plan, checkpoint: Path, label: str) -> tuple[Module, Curve]:
    """Train a module in bfloat16 autocast, from its checkpoint if there is one.

    Args:
        module: trained in place.
        loss: loss of one part of a batch, which it draws itself.
        plan: steps and rates.
        checkpoint: file of the constant phase, written every two minutes; that of the decay lies beside it.
        label: shown beside the progress bar.

    Returns:
        The moving average of the module, and its curve: steps, and the mean loss since the previous entry.
    """
    module.train()
    state = _State(module, plan)
    decay_file = checkpoint.with_suffix(f".{plan.steps}.pt")
    decay_starts = plan.steps - plan.decay_steps
    found = next((path for path in (decay_file, checkpoint) if path.is_file()), None)
    if found:
        state.load(found)
    if found == checkpoint and state.step > decay_starts:
        raise ValueError(f"{checkpoint} is at step {state.step}, past the start of the decay at {decay_starts}.")
    parts = _Parts(module, plan.parts)
    losses: list[float] = []
    saved_at = time.monotonic()
    with tqdm(desc=label, total=plan.steps, initial=state.step, mininterval=5) as bar:
        while state.step < plan.steps:
            losses.append(parts.gradients(loss, state.step))
            if not math.isfinite(losses[-1]):
                raise FloatingPointError(f"{label}: the loss of step {state.step} is {losses[-1]}; lower the rates.")
            parts.run(lambda: state.update(module, plan.factor(state.step)))
            ends = state.step in (decay_starts, plan.steps)
            if state.step % 100 == 0 or state.step == plan.steps:
                state.curve.append((state.step, sum(losses) / len(losses)))
                losses.clear()
                bar.set_postfix(loss=f"{state.curve[-1][1]:.4f}")
            bar.update()
            if ends or time.monotonic() - saved_at > SAVE_EVERY:
                state.save(checkpoint if state.step <= decay_starts else decay_file)
                saved_at = time.monotonic()
    parts.close()
    return cast("Module", state.average.module.eval()), state.curve
