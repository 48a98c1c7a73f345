"""The loop that both trainings run in.

Each step is seeded by its number, so that a training that was stopped goes on as if it had not been.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

SAVE_EVERY = 120  # seconds

Module = TypeVar("Module", bound=nn.Module)


class Plan(NamedTuple):
    """How long and how fast.

    Attributes:
        steps: of the optimiser.
        rate: the highest learning rate, after the first twentieth of the steps.
        decay: of the moving average of the weights, a step.
    """

    steps: int
    rate: float
    decay: float


class Chance(NamedTuple):
    """Where a step takes its random numbers from; the same for the same step of every run."""

    words: random.Random
    numbers: torch.Generator


def train(
    module: Module, loss: Callable[[nn.Module, Chance], Tensor], plan: Plan, checkpoint: Path, label: str
) -> tuple[Module, list[tuple[int, float]]]:
    """Train a module in bfloat16 autocast, from its checkpoint if there is one.

    Args:
        module: what is trained, in place.
        loss: of one batch, which it draws itself.
        plan: steps and rates.
        checkpoint: file that is written every two minutes and at the end.
        label: shown beside the progress bar.

    Returns:
        The moving average of the module, and its curve: steps, and the mean loss since the one before.
    """
    optimizer = torch.optim.AdamW(module.parameters(), plan.rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, plan.rate, total_steps=plan.steps + 1, pct_start=0.05, cycle_momentum=False, final_div_factor=100
    )
    average = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(plan.decay))
    parts = {"module": module, "average": average, "optimizer": optimizer, "schedule": schedule}
    curve: list[tuple[int, float]] = []
    first = 0
    if checkpoint.is_file():
        saved = torch.load(checkpoint, weights_only=True)
        first, curve = saved["step"], saved["curve"]
        for name, part in parts.items():
            part.load_state_dict(saved[name])

    def save(step: int) -> None:
        part = checkpoint.with_suffix(".part")
        state = {name: part.state_dict() for name, part in parts.items()}
        torch.save({"step": step, "curve": curve, **state}, part)
        os.replace(part, checkpoint)

    module.train()
    compiled = cast("nn.Module", torch.compile(module))
    losses: list[float] = []
    saved_at = time.monotonic()
    with tqdm(desc=label, total=plan.steps, initial=first, mininterval=5) as bar:
        for step in range(first, plan.steps):
            chance = Chance(random.Random(step), torch.Generator().manual_seed(step))
            with torch.autocast("cpu", torch.bfloat16):
                batch_loss = loss(compiled, chance)
            batch_loss.backward()
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            average.update_parameters(module)
            losses.append(float(batch_loss.detach()))
            if (step + 1) % 100 == 0 or step + 1 == plan.steps:
                curve.append((step + 1, sum(losses) / len(losses)))
                losses.clear()
                bar.set_postfix(loss=f"{curve[-1][1]:.4f}")
            bar.update()
            if time.monotonic() - saved_at > SAVE_EVERY or step + 1 == plan.steps:
                save(step + 1)
                saved_at = time.monotonic()
    return cast("Module", average.module.eval()), curve
