"""Finds out whether a model can be differentiated, see `act_core.fitting.refine` and `act_core.fitting.end_to_end`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import torch

from ..errors import NotDifferentiableError, first_line

# A loss is multiplied by this where activations are float16, so that small gradients do not vanish.
FLOAT16_SCALE = 2.0**16
# In the message of PyTorch's error.
_CHANGED_IN_PLACE = "modified by an inplace operation"


def try_gradient(differentiate: Callable[[], object], stack: ExitStack, purpose: str, advice: str) -> None:
    """Differentiate once, with the help of PyTorch where a model needs more than its own code.

    Args:
        differentiate: computes a gradient.
        stack: where that help stays.
        purpose: what the gradient is for, such as "no map can be refined".
        advice: what to do instead.

    Raises:
        NotDifferentiableError: the model cannot be differentiated.
    """
    try:
        try:
            differentiate()
        except RuntimeError as error:
            if _CHANGED_IN_PLACE not in str(error):
                raise
            # It makes each operation slower, so only for models that change activations that their gradient needs.
            stack.enter_context(torch.autograd.graph.allow_mutation_on_saved_tensors())
            differentiate()
    except torch.cuda.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise NotDifferentiableError(
            f"This model cannot be differentiated here, so {purpose} ({first_line(error)})", advice
        ) from error
