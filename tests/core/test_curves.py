"""How much of their content pictures keep, as a calibration measures it."""

from __future__ import annotations

import pytest
import torch

from act_core.curves import content_kept


def test_content_is_compared_with_that_of_other_subjects() -> None:
    unsteered = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    turned = torch.tensor([[0.5, 0.75**0.5], [-0.5, -(0.75**0.5)]])
    # The correlation is 0.5 with the same subject and -0.5 with the other; what both share does not count.
    for latents in (turned, turned + 3):
        assert content_kept(latents, unsteered) == pytest.approx((0.5 + 0.5) / (1 + 0.5))
