"""Folds the transport of one site into the weight and bias of its module.

A norm with parameters, a linear layer and a convolution return ``weight * n + bias`` for each channel, where `n` does
not depend on the two. Steering the output is therefore a change of both that is linear in the strength::

    weight' = weight + strength * (omega - 1) * weight
    bias'   = bias   + strength * ((omega - 1) * bias + beta)
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from .errors import MapError
from .settings import Spatial
from .sites import Site
from .transport import Transport

# By layout, the layers whose output has the channels in the right place.
_NORMS = (nn.LayerNorm, nn.RMSNorm)
_MAP_NORMS = (nn.GroupNorm,)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class NotFoldableError(MapError):
    """A transport that no change of weight and bias can stand in for; the message is only the reason."""


@dataclass(frozen=True, eq=False)
class Fold:
    """What a transport at strength 1 changes in the parameters of its module.

    Attributes:
        site: the site.
        gain: ``omega - 1``, by which each output channel of the weight is multiplied before it is added,
            float32 ``[channels]``.
        bias: what is added to the bias, float32 ``[channels]``; None if nothing is.
        weight: the weight that is multiplied, of any shape whose first dimension is the channels.
    """

    site: Site
    gain: Tensor
    bias: Tensor | None
    weight: Tensor

    @property
    def is_norm(self) -> bool:
        """Whether the weight has one number for each channel."""
        return self.weight.ndim == 1

    @property
    def is_quantised(self) -> bool:
        """Whether the weight does not hold the numbers of the layer, so that its change cannot be computed."""
        return not self.weight.is_floating_point() or self.weight.shape[0] != len(self.gain)

    @property
    def changes_weight(self) -> bool:
        return bool(self.gain.any())

    def weight_change(self) -> Tensor:
        """What is added to the weight at strength 1, float32, with the shape of the weight.

        Raises:
            NotFoldableError: the weight is quantised.
        """
        if self.is_quantised:
            raise NotFoldableError("its weight is quantised")
        gain = self.gain.to(self.weight.device).view(-1, *[1] * (self.weight.ndim - 1))
        return gain * self.weight.float()


def returned_layer(module: nn.Module) -> nn.Module:
    """The layer whose output a module returns as it is: that of a sequence or feed-forward, else the module itself.

    Example:
        >>> returned_layer(nn.Sequential(nn.Linear(2, 8), nn.GELU(), nn.Linear(8, 3), nn.Dropout()))
        Linear(in_features=8, out_features=3, bias=True)
    """
    inner = module
    if type(module).__name__ == "FeedForward":  # in diffusers, and in models that were ported from it
        inner = getattr(module, "net", module)
    if not isinstance(inner, (nn.Sequential, nn.ModuleList)):
        return module
    layers = [layer for layer in inner if not isinstance(layer, (nn.Dropout, nn.Identity))]
    return returned_layer(layers[-1]) if layers else module


def fold(
    site: Site,
    transport: Transport,
    spatial: Spatial,
    module: nn.Module,
    *,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
) -> Fold:
    """Fold a transport into the weight and bias of the module at its site.

    Args:
        site: the site.
        transport: of the site, without bins.
        spatial: how the map steers feature maps.
        module: the module at the site.
        weight, bias: its parameters, if those of the module are not the ones to start from.

    Raises:
        NotFoldableError: the transport does not act on all values alike, or the module has no parameters that could
            take its place; the message is the reason, to follow the name of the site.

    Example:
        >>> site, layer = Site("model", "norm", None, "tokens", 2), nn.LayerNorm(2)
        >>> folded = fold(site, Transport(torch.full((2,), 1.5), torch.ones(2)), "shift", layer)
        >>> folded.weight_change().tolist(), folded.bias.tolist()
        ([0.5, 0.5], [1.0, 1.0])
    """
    weight = getattr(module, "weight", None) if weight is None else weight
    bias = getattr(module, "bias", None) if bias is None else bias
    if reason := _reason_against(site, transport, spatial, module, weight):
        raise NotFoldableError(reason)
    assert isinstance(weight, Tensor)
    gain, beta = transport.omega.double() - 1, transport.beta.double()
    if bias is None:
        if bool(beta.any()):
            raise NotFoldableError("it has no bias that could take the shift")
        return Fold(site, gain.float(), None, weight.detach())
    if not (bias.is_floating_point() and bias.shape == beta.shape):
        raise NotFoldableError("its bias is quantised")
    change = (gain * bias.detach().to(gain) + beta).float()
    return Fold(site, gain.float(), change if bool(change.any()) else None, weight.detach())


def _reason_against(
    site: Site, transport: Transport, spatial: Spatial, module: nn.Module, weight: Tensor | None
) -> str:
    """Why a transport cannot be folded, whatever its numbers; empty if it can."""
    kind = type(module).__name__
    if transport.conditions or transport.bins:
        return f"it acts by {' and '.join(transport.conditions) or 'noise level'}, not on all values alike"
    if site.segment is not None:
        return "it acts on some of the tokens only"
    if site.output is not None:
        return f"a {kind} returns several tensors"
    if site.layout == "spatial":
        layers: tuple[type[nn.Module], ...] = (*_MAP_NORMS, *_CONVOLUTIONS)
        if isinstance(module, layers) and spatial == "shift" and bool((transport.omega != 1).any()):
            return "its slope acts on the mean of each picture (the spatial rule 'shift'), not on each position"
    else:
        layers = (*_NORMS, nn.Linear)
    if not isinstance(module, layers):
        return f"a {kind} has no weight and bias that its output is proportional to"
    if weight is None:
        return f"this {kind} has no parameters"
    if isinstance(module, (*_NORMS, *_MAP_NORMS)) and (weight.ndim != 1 or not weight.is_floating_point()):
        return f"the parameters of this {kind} are not one number for each channel"
    return ""
