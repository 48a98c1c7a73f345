"""What kind of layer a module is, also where another library has quantised or wrapped it.

Only classes, names and declared sizes are read. The shape of a quantised weight is that of its packed bytes, and asking
for more may dequantise it.
"""

from __future__ import annotations

from torch import Tensor, nn

# The attribute under which the layers of adapters (`peft`) keep the layer that they wrap.
WRAPPED = ("base_layer", "original_module")


def unwrapped(module: nn.Module) -> nn.Module:
    """The layer that the layers of adapters are wrapped around; the module itself if it is not wrapped.

    Example:
        >>> adapted = nn.Module()
        >>> adapted.base_layer = nn.Linear(2, 3)
        >>> unwrapped(adapted)
        Linear(in_features=2, out_features=3, bias=True)
    """
    inner = next((part for name, part in module.named_children() if name in WRAPPED), None)
    return module if inner is None else unwrapped(inner)


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer, by its class. Quantised ones need not derive from `torch.nn.Linear`.

    Example:
        >>> class PackedLinear(nn.Module):
        ...     pass
        >>> is_linear(PackedLinear()), is_linear(nn.LayerNorm(2))
        (True, False)
    """
    if isinstance(module, nn.Linear):
        return True
    # A block may be named after the linear attention that it holds.
    is_layer = isinstance(getattr(module, "out_features", None), int) or not any(module.children())
    return "Linear" in type(module).__name__ and is_layer


def output_channels(module: nn.Module) -> int | None:
    """Number of channels that a module returns, if its class determines it.

    Example:
        >>> output_channels(nn.Linear(2, 3)), output_channels(nn.LayerNorm(4)), output_channels(nn.ReLU())
        (3, 4, None)
    """
    layer = unwrapped(module)
    if is_linear(layer):
        declared = getattr(layer, "out_features", None)
        return declared if isinstance(declared, int) else None
    if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return layer.out_channels
    weight = getattr(layer, "weight", None)
    if "Norm" in type(layer).__name__ and isinstance(weight, Tensor) and weight.ndim == 1:
        return weight.numel() if weight.is_floating_point() else None
    return None
