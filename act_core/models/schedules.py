"""How the diffusion models of diffusers are told the noise level, and how noisy latents of each level are made."""

from __future__ import annotations

from typing import Any

from torch import Tensor


class FlowSchedule:
    """Rectified flow: noise and picture are mixed linearly, and the model predicts their difference.

    Args:
        shift: of the times that a sampler visits.
        steps: the longest time.
    """

    def __init__(self, shift: float, steps: int) -> None:
        self._shift = shift
        self.longest = steps

    def sampled(self, share: Tensor) -> Tensor:
        """Noise levels as often as a sampler visits them, for shares of its steps from 0 (the last) to 1."""
        return self._shift * share / (1 + (self._shift - 1) * share)

    def at(self, level: Tensor, clean: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Noisy latents, what the model should predict, and its time, at noise levels ``[rows]``."""
        weight = _beside(level, clean)
        return (1 - weight) * clean + weight * noise, noise - clean, level * self.longest


class DiffusionSchedule:
    """Variance-preserving diffusion, in which the model predicts the noise or the velocity.

    Args:
        alphas: shares of the picture's variance that are left at each time.
        predicts_velocity: or else the noise.
    """

    def __init__(self, alphas: Tensor, predicts_velocity: bool) -> None:
        self._alphas = alphas
        self._predicts_velocity = predicts_velocity
        self.longest = len(alphas) - 1

    def sampled(self, share: Tensor) -> Tensor:
        """As `FlowSchedule.sampled`."""
        return (share * len(self._alphas)).floor().clamp(max=self.longest) / self.longest

    def at(self, level: Tensor, clean: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `FlowSchedule.at`."""
        time = (level * self.longest).round().long()
        alpha = _beside(self._alphas[time], clean)
        signal, spread = alpha.sqrt(), (1 - alpha).sqrt()
        wanted = signal * noise - spread * clean if self._predicts_velocity else noise
        return signal * clean + spread * noise, wanted, time


def _beside(numbers: Tensor, rows: Tensor) -> Tensor:
    """One number for each row of ``[rows, ...]``."""
    return numbers.view(-1, *[1] * (rows.ndim - 1)).to(rows)


Schedule = FlowSchedule | DiffusionSchedule


def schedule_of(pipeline: Any) -> Schedule | None:
    """The schedule of a pipeline of diffusers; None if its scheduler is of an unknown kind."""
    scheduler = pipeline.scheduler
    config = scheduler.config
    if "FlowMatch" in type(scheduler).__name__:
        return FlowSchedule(float(getattr(config, "shift", None) or 1.0), config.num_train_timesteps)
    alphas: object = getattr(scheduler, "alphas_cumprod", None)
    predicts = getattr(config, "prediction_type", "epsilon")
    if isinstance(alphas, Tensor) and predicts in ("epsilon", "v_prediction"):
        return DiffusionSchedule(alphas, predicts == "v_prediction")
    return None


def counts(schedule: Schedule, time: Tensor) -> bool:
    """Whether the time of a first step is one of the schedule's, and not counted in another way, such as from 0 to 1.

    Example:
        >>> counts(FlowSchedule(3.0, 1000), torch.tensor([1.0]))
        False
    """
    return 1 < float(time.max()) <= schedule.longest
