"""Linear layers as other libraries quantise them: doubles of the mechanism, which need none of these libraries.

Every weight refuses to be read except in the forward pass of its own layer, see `Sealed`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

# Queries that every tensor answers without its values.
_METADATA = {"__get__", "dim", "size", "is_floating_point", "element_size", "numel", "requires_grad_", "data_ptr"}


class Sealed(Tensor):
    """Packed bytes that raise an error if they are converted, copied or computed with; `bytes_of` opens them."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__ not in _METADATA:
            raise AssertionError(f"a quantised weight was read by {func.__name__}")
        return super().__torch_function__(func, types, args, kwargs or {})

    def detach(self) -> Sealed:  # ComfyUI-GGUF's tensor returns itself, too
        return self


def sealed(data: Tensor) -> nn.Parameter:
    return nn.Parameter(data.as_subclass(Sealed), requires_grad=False)


def bytes_of(weight: Tensor) -> Tensor:
    with torch._C.DisableTorchFunctionSubclass():
        return weight.as_subclass(Tensor)


class Int8Tensor(Tensor):
    """A tensor of one shape and dtype around int8 values, as ComfyUI's QuantizedTensor and torchao's weights are.

    The only thing that can be done with it is to multiply by it.
    """

    int8: Tensor
    scale: Tensor

    @staticmethod
    def __new__(cls, values: Tensor, scale: Tensor) -> Any:
        make = cast("Callable[..., Any]", Tensor._make_wrapper_subclass)
        return make(cls, values.shape, dtype=torch.float32, device=values.device)

    def __init__(self, values: Tensor, scale: Tensor) -> None:
        self.int8, self.scale = values, scale

    def data_ptr(self) -> int:
        return self.int8.data_ptr()

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is linear:
            x, weight, bias = args
            return linear(x, weight.int8 * weight.scale, bias)
        return super().__torch_function__(func, types, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return cls(args[0].int8, args[0].scale)
        raise AssertionError(f"a quantised weight was read by {func}")


def int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Values and one scale for each row."""
    scale = weight.abs().amax(1, keepdim=True) / 127
    return (weight / scale).round().to(torch.int8), scale


def nibbles(values: Tensor) -> Tensor:
    """Two whole numbers from -8 to 7 in each byte."""
    pairs = (values + 8).to(torch.uint8).unflatten(-1, (-1, 2))
    return pairs[..., 0] << 4 | pairs[..., 1]


def whole_numbers(packed: Tensor) -> Tensor:
    return torch.stack([packed >> 4, packed & 15], -1).flatten(-2).float() - 8


# Each class below has the name that its library gives it.


class MixedPrecisionOps:
    """ComfyUI: int8, fp8 and fp4 layers, which do not derive from `torch.nn.Linear`."""

    class Linear(nn.Module):
        def __init__(self, layer: nn.Linear) -> None:
            super().__init__()
            self.in_features, self.out_features = layer.in_features, layer.out_features
            self.weight = nn.Parameter(Int8Tensor(*int8(layer.weight.data)), requires_grad=False)
            self.bias = layer.bias
            self.input_scale = nn.Parameter(torch.ones(1), requires_grad=False)

        def forward(self, x: Tensor) -> Tensor:
            return linear(x.reshape(-1, self.in_features), self.weight, self.bias).view(*x.shape[:-1], -1)


class GGMLTensor(Sealed):
    """ComfyUI-GGUF: rows of bytes, each with its scale at the end, and the shape of what they stand for."""

    @property
    def shape(self) -> torch.Size:  # pyright: ignore[reportIncompatibleVariableOverride]
        return cast("Any", self).tensor_shape


class GGMLOps:
    class Linear(nn.Linear):
        def __init__(self, layer: nn.Linear) -> None:
            nn.Module.__init__(self)
            self.in_features, self.out_features = layer.in_features, layer.out_features
            values, scale = int8(layer.weight.data)
            packed: Any = torch.cat([values.view(torch.uint8), scale.view(torch.uint8)], 1).as_subclass(GGMLTensor)
            packed.tensor_shape = layer.weight.shape
            self.weight, self.bias = nn.Parameter(packed, requires_grad=False), layer.bias

        def forward(self, input: Tensor) -> Tensor:
            packed = bytes_of(self.weight)
            values, scale = packed[:, :-4].view(torch.int8), packed[:, -4:].contiguous().view(torch.float32)
            return linear(input, values * scale, self.bias)


class SVDQW4A4Linear(nn.Module):
    """Nunchaku: packed halves of bytes beside a product of low rank; there is no weight."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        weight = layer.weight.data
        scale = weight.abs().amax(1) / 7
        self.qweight = sealed(nibbles((weight / scale[:, None]).round()).view(torch.int8))
        self.wscales = nn.Parameter(scale[None])
        self.bias = layer.bias
        self.smooth_factor = nn.Parameter(torch.full((self.in_features,), 2.0))
        self.smooth_factor_orig = nn.Parameter(torch.full((self.in_features,), 2.0))
        seeded = torch.Generator().manual_seed(0)
        down, up = (torch.randn(n, 4, generator=seeded) / 9 for n in (self.in_features, self.out_features))
        self.proj_down, self.proj_up = nn.Parameter(down), nn.Parameter(up)

    def forward(self, x: Tensor) -> Tensor:
        rows, tokens, channels = x.shape
        x = x.reshape(rows * tokens, channels)
        weight = whole_numbers(bytes_of(self.qweight).view(torch.uint8)) * self.wscales.T
        y = linear(x / self.smooth_factor, weight * self.smooth_factor, self.bias)
        return (y + x @ self.proj_down @ self.proj_up.T).reshape(rows, tokens, -1)


class Linear4bit(nn.Linear):
    """bitsandbytes: all bytes of the weight in one column."""

    def __init__(self, layer: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.scale = float(layer.weight.data.abs().max() / 7)
        self.weight = sealed(nibbles((layer.weight.data / self.scale).round()).reshape(-1, 1))
        self.bias = layer.bias

    def forward(self, input: Tensor) -> Tensor:
        weight = whole_numbers(bytes_of(self.weight)).view(self.out_features, self.in_features) * self.scale
        return linear(input, weight, self.bias)


class QLinear(nn.Linear):
    """quanto: a linear layer with a quantised weight, and scales of its input and output."""

    input_scale: Tensor

    def __init__(self, layer: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight = nn.Parameter(Int8Tensor(*int8(layer.weight.data)), requires_grad=False)
        self.bias = layer.bias
        self.register_buffer("input_scale", torch.ones(1))

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


def torchao_linear(layer: nn.Linear) -> nn.Linear:
    """torchao: an unchanged linear layer with a quantised weight."""
    layer.weight = nn.Parameter(Int8Tensor(*int8(layer.weight.data)), requires_grad=False)
    return layer


QUANTISED: dict[str, Callable[[nn.Linear], nn.Module]] = {
    "ComfyUI": MixedPrecisionOps.Linear,
    "ComfyUI-GGUF": GGMLOps.Linear,
    "Nunchaku": SVDQW4A4Linear,
    "bitsandbytes": Linear4bit,
    "quanto": QLinear,
    "torchao": torchao_linear,
}


def quantise(root: nn.Module, library: str) -> nn.Module:
    """Replace every linear layer in the blocks of a model."""
    for name, layer in list(root.named_modules()):
        parent, _, leaf = name.rpartition(".")
        if isinstance(layer, nn.Linear) and leaf != "lm_head":
            setattr(root.get_submodule(parent), leaf, QUANTISED[library](layer))
    return root


def dense(root: nn.Module) -> nn.Module:
    """Replace the quantised layers of a model by plain ones with the same values."""
    for name, layer in list(root.named_modules()):
        parent, _, leaf = name.rpartition(".")
        if "Linear" not in type(layer).__name__ or leaf == "lm_head":
            continue
        size: Any = layer
        plain = nn.Linear(size.in_features, size.out_features, bias=size.bias is not None)
        with torch.no_grad():
            zero, rows = (layer(x[None])[0] for x in (torch.zeros(1, size.in_features), torch.eye(size.in_features)))
            plain.weight.copy_((rows - zero).T)
        plain.bias = size.bias
        setattr(root.get_submodule(parent), leaf, plain)
    return root
