"""Gates: how far a transport acts on a prompt, so that a map fires only where its source is.

A gate reads the mean of an activation over its tokens or positions, one for each row, and opens from 0 to 1 by a
logistic function of one linear score. Fitting it takes only what a walk sees at a site anyway: the means of the source
prompts and those of the target prompts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from .errors import FitError
from .sites import Layout

# A gate that is fitted on fewer prompts a side tells these prompts apart, not the sides.
MIN_GATE_SAMPLES = 4
# Share of the identity in the correlations between channels, which there are often more of than prompts.
SHRINKAGE = 0.1
# The score that an average prompt of a side has at most: prompts of the fit do not justify more than 99% of certainty.
MAX_SCORE = 5.0


@dataclass(frozen=True, eq=False)
class Gate:
    """A logistic function of the mean activation of a row.

    Attributes:
        weight: float32 ``[channels]``.
        bias: of the score.

    Example:
        >>> Gate(torch.tensor([1.0, 0.0]), -2.0).openness(torch.tensor([[2.0, 5.0]]))
        tensor([0.5000])
    """

    weight: Tensor
    bias: float

    def openness(self, means: Tensor) -> Tensor:
        """From 0 (closed) to 1 (open), for means ``[..., channels]``: ``sigmoid(weight . mean + bias)``."""
        return openness(means, self.packed())

    def packed(self) -> Tensor:
        """Weight and bias in one tensor, float32 ``[channels + 1]``, as files and live models hold them."""
        return torch.cat([self.weight, self.weight.new_tensor([self.bias])])

    @classmethod
    def unpacked(cls, packed: Tensor) -> Gate:
        """The gate that `packed` was made from."""
        return cls(packed[:-1].clone(), float(packed[-1]))


def openness(means: Tensor, packed: Tensor) -> Tensor:
    """The openness ``[...]`` of a packed gate for means ``[..., channels]``, in float32."""
    packed = packed.to(means.device)
    # Not a matrix product, which autocast and TF32 would round.
    return torch.sigmoid((means * packed[:-1]).sum(-1) + packed[-1])


def row_means(x: Tensor, layout: Layout, mask: Tensor | None = None) -> Tensor:
    """The mean of each row over its tokens or positions, in float32.

    Args:
        x: activation.
        layout: of the activation.
        mask: of the tokens to read, bool ``[rows, tokens]``; None for all. A row without any has the mean 0.

    Returns:
        ``[rows, channels]`` for vectors, ``[rows, 1, channels]`` for tokens, and ``[rows, channels, 1, ...]`` for
        feature maps.

    Example:
        >>> row_means(torch.tensor([[[1.0], [3.0]]]), "tokens")
        tensor([[[2.]]])
    """
    if layout == "vector":
        return x.float()
    if layout == "spatial":
        return x.mean(tuple(range(2, x.ndim)), keepdim=True, dtype=torch.float32)
    if x.ndim > 3:  # tokens on a grid, channels last
        x = x.flatten(1, -2)
    if mask is None:
        return x.mean(1, keepdim=True, dtype=torch.float32)
    total = _masked_sum(x, mask.unsqueeze(-1))
    return total / mask.sum(1).clamp(min=1).view(-1, 1, 1)


def _masked_sum(x: Tensor, mask: Tensor) -> Tensor:
    """The sum over tokens ``[rows, 1, channels]`` in float32, without those outside a mask ``[rows, tokens, 1]``."""
    # Not a matrix product, which autocast and TF32 would round.
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        total = (x * mask.to(x.dtype)).sum(1, keepdim=True, dtype=torch.float32)
        if bool(total.isfinite().all()):  # several times as fast as to fill, but padding may be NaN
            return total
    return x.masked_fill(~mask, 0).sum(1, keepdim=True, dtype=torch.float32)


def token_mask(attention_mask: object) -> Tensor | None:
    """Which tokens are not padding, by the attention mask that a model is called with: bool ``[rows, tokens]``.

    None if it has no such mask, or one of another form, such as one for each pair of tokens.

    Example:
        >>> token_mask(torch.tensor([[0, 1, 1]])), token_mask(None)
        (tensor([[False,  True,  True]]), None)
    """
    return attention_mask != 0 if isinstance(attention_mask, Tensor) and attention_mask.ndim == 2 else None


def mask_of(x: Tensor, mask: Tensor | None) -> Tensor | None:
    """The part of a mask of tokens that belongs to an activation; None if there is none.

    With cached keys and values, a model gets the mask of all tokens, and its activations are those of the last ones.

    Example:
        >>> mask_of(torch.zeros(1, 2, 8), torch.tensor([[False, True, True]]))
        tensor([[True, True]])
    """
    if mask is None or x.ndim != 3 or x.shape[0] != mask.shape[0] or x.shape[1] > mask.shape[1]:
        return None
    return mask[:, mask.shape[1] - x.shape[1] :].to(x.device)


def fit_gate(source: Tensor, target: Tensor) -> Gate:
    """The gate that opens for source values and closes for target values.

    Its direction is the linear discriminant of the two sides, with correlations shrunk towards 0 (Friedman,
    "Regularized Discriminant Analysis", 1989). Scale and offset come from the scores that each prompt has if the
    gate is fitted without it, since those that it was fitted on look far better separated than new ones.

    Args:
        source: mean activations ``[n, channels]``, one row for each prompt.
        target: mean activations ``[m, channels]``.

    Returns:
        A gate on the CPU. Where the two sides cannot be told apart, it is half open for both.

    Raises:
        FitError: fewer than two values on a side.

    Example:
        >>> gate = fit_gate(torch.tensor([[1.0], [1.1], [1.2]]), torch.tensor([[0.0], [0.1], [0.2]]))
        >>> gate.openness(torch.tensor([[1.1], [0.1]])).round(decimals=2)
        tensor([0.9900, 0.0100])
    """
    if min(len(source), len(target)) < 2:
        raise FitError("A gate needs at least two source and two target values; add prompts.")
    if source.device.type == "mps":  # which has no float64
        source, target = source.cpu(), target.cpu()
    counts = len(source), len(target)
    x = torch.cat([source, target]).detach().double()
    # Both sides weigh the same, whatever their numbers.
    weights = torch.cat([x.new_full((count,), 0.5 / count) for count in counts])
    sides = torch.cat([x.new_full((count,), side) for count, side in zip(counts, (0.5, -0.5), strict=True)])
    mean = weights @ x
    x = x - mean
    deviations = (weights @ x.square()).sqrt()
    # Channels that are constant but for rounding have nothing to say.
    varies = deviations > 4 * torch.finfo(torch.float32).eps * mean.abs()
    scale = torch.where(varies, 1 / deviations.masked_fill(~varies, 1.0), 0)
    scores, direction = _discriminant(x * scale, sides, weights)
    direction = direction * scale

    held_out = scores[: len(source)], scores[len(source) :]
    high, low = (side.mean() for side in held_out)
    variance = torch.stack([side.var(correction=0) for side in held_out]).mean()
    # Of two normal distributions of one variance, the logarithm of the odds is linear. Means in the wrong order are
    # noise.
    gap = (high - low).clamp(min=0)
    slope = gap / torch.maximum(variance, gap.square() / (2 * MAX_SCORE)).clamp(min=torch.finfo(torch.float64).tiny)
    weight = slope * direction
    bias = -slope * (high + low) / 2 - weight @ mean
    with torch.inference_mode(False):  # it outlives the caller's mode
        return Gate(weight.to("cpu", torch.float32, copy=True), float(bias))


def _discriminant(x: Tensor, sides: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Held-out scores ``[n]`` of standardised values ``[n, channels]``, and the direction ``[channels]`` of the scores.

    The shrunk discriminant is a ridge regression of the sides, of which the scores without one value are known without
    a second fit (Hastie et al., "The Elements of Statistical Learning", section 7.10).
    """
    roots = weights.sqrt()[:, None]
    z = x * roots
    # The smaller of the two systems; both have the same solution.
    is_wide = len(z) <= z.shape[1]
    moments = z @ z.T if is_wide else z.T @ z
    moments.diagonal().add_(SHRINKAGE / (1 - SHRINKAGE))
    solved = cast("Tensor", torch.linalg.solve(moments, z if is_wide else z.T))
    solution = solved.T if is_wide else solved
    direction = solution @ (sides * roots[:, 0])
    leverages = (z * solution.T).sum(1) + weights  # the mean is fitted, too
    return (x @ direction - leverages * sides) / (1 - leverages), direction
