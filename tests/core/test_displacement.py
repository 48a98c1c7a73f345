"""Displacing activations of every layout by the coefficients of a transport."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from act_core.displacement import displace_at, has_layout
from act_core.settings import Spatial
from act_core.sites import Layout

GAIN, OFFSET = torch.tensor([0.5, -1.0, 2.0]), torch.tensor([1.0, 2.0, 3.0])


@pytest.mark.parametrize("spatial", ["shift", "pointwise"])
@pytest.mark.parametrize(("layout", "shape"), [("vector", (2, 3)), ("tokens", (2, 5, 3)), ("tokens", (2, 4, 5, 3))])
def test_vectors_and_tokens_are_mapped_value_by_value(layout: Layout, shape: Sequence[int], spatial: Spatial) -> None:
    x = torch.randn(shape)
    assert torch.allclose(displace_at(x, layout, spatial, GAIN, OFFSET), x + GAIN * x + OFFSET, atol=1e-6)  # float32


def test_pointwise_maps_every_position_of_feature_map() -> None:
    x = torch.randn(2, 3, 4, 5)
    expected = x + GAIN.view(3, 1, 1) * x + OFFSET.view(3, 1, 1)
    assert torch.allclose(displace_at(x, "spatial", "pointwise", GAIN, OFFSET), expected, atol=1e-6)  # float32


def test_shift_maps_mean_of_feature_map_and_keeps_its_pattern() -> None:
    x = torch.randn(2, 3, 4, 5)
    moved = displace_at(x, "spatial", "shift", GAIN, OFFSET)
    mean, after = x.mean((2, 3)), moved.mean((2, 3))
    # Sums of 20 float32 values.
    assert torch.allclose(after, mean + GAIN * mean + OFFSET, atol=1e-5)
    assert torch.allclose(moved - after[..., None, None], x - mean[..., None, None], atol=1e-5)


def test_support_of_feature_maps_gates_positions_or_mean() -> None:
    x = torch.stack([torch.full((3, 2, 2), 0.5), torch.tensor([0.5, 0.5, 0.5, 9.0]).view(1, 2, 2).expand(3, 2, 2)])
    low, high = torch.zeros(3), torch.ones(3)
    shifted = displace_at(x, "spatial", "shift", GAIN, OFFSET, low, high)
    assert (shifted != x).flatten(1).any(1).tolist() == [True, False]  # the mean of the second lies outside
    pointwise = displace_at(x, "spatial", "pointwise", GAIN, OFFSET, low, high)
    assert torch.equal(pointwise != x, ((x >= 0) & (x <= 1)))


@pytest.mark.parametrize("grad", [True, False])
def test_support_includes_its_ends(grad: bool) -> None:
    """The ends of an observed support are values of the source."""
    x, low, high = torch.tensor([[-0.5, 0.0, 1.0], [0.0, 1.0, 1.5]]), torch.zeros(3), torch.ones(3)
    with torch.set_grad_enabled(grad):
        moved = displace_at(x, "vector", "shift", GAIN, OFFSET, low, high)
    assert (moved != x).tolist() == [[False, True, True], [True, True, False]]


@pytest.mark.parametrize(
    ("shape", "layout", "expected"),
    [
        ((2, 3), "vector", True),
        ((2, 5, 3), "tokens", True),
        ((2, 4, 5, 3), "tokens", True),
        ((2, 3, 4, 5), "spatial", True),
        ((2, 3, 7), "spatial", True),
        ((2, 3, 4, 5), "vector", False),
        ((2, 3), "tokens", False),
        ((2, 3), "spatial", False),
        ((2, 5, 4), "tokens", False),
        ((2, 4, 5, 3), "spatial", False),
    ],
)
def test_has_layout_checks_rank_and_channels(shape: Sequence[int], layout: Layout, expected: bool) -> None:
    assert has_layout(torch.zeros(shape), layout, 3) is expected


def test_has_layout_refuses_whole_numbers() -> None:
    assert not has_layout(torch.zeros(2, 3, dtype=torch.long), "vector", 3)
