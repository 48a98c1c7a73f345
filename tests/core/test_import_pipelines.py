"""Hooks of apple/ml-act for pipelines steer the modules that they are named after, as they do there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile_files import torch_bytes
from pipelines import SIZE
from torch import Tensor, nn

from act_core.interop.importing import import_map
from act_core.models.diffusers import DiffusersModel

# As that code loads them: of a UNet all norms, of Flux the blocks.
PARTS: dict[str, Callable[[str, nn.Module], bool]] = {
    "unet": lambda name, module: isinstance(module, nn.LayerNorm | nn.GroupNorm),
    "transformer": lambda name, module: name.startswith("transformer_blocks.") and name.count(".") == 1,
    "text_encoder": lambda name, module: name.endswith(".mlp"),
}


def channels_of(module: nn.Module) -> int:
    if isinstance(module, nn.GroupNorm):
        return module.num_channels
    return module.normalized_shape[0] if isinstance(module, nn.LayerNorm) else 32


def hook(slope: Tensor, shift: Tensor, index: int | None) -> Callable[..., Any]:
    """What a linear hook of apple/ml-act does to an output: a feature map moves by the shift of its mean."""

    def moved(x: Tensor) -> Tensor:
        if x.ndim == 4:
            mean = x.mean((2, 3), keepdim=True)
            return x - mean + mean * slope[:, None, None] + shift[:, None, None]
        return x * slope + shift

    def acting(_: nn.Module, __: Any, output: Any) -> Any:
        if not isinstance(output, tuple):
            return moved(output)
        parts = list(output)
        parts[index or 0] = moved(parts[index or 0])
        return tuple(parts)

    return acting


@pytest.mark.parametrize("kind", ["stable diffusion", "sdxl", "flux"])
def test_hooks_of_pipeline_give_the_same_latents(tmp_path: Path, pipeline: Callable[[str], Any], kind: str) -> None:
    model = DiffusersModel(pipeline(kind), size=SIZE)
    generator = torch.Generator().manual_seed(1)
    handles: list[Any] = []
    plain = picture(model)
    for part, chosen in PARTS.items():
        root = getattr(model.pipeline, part, None)
        for name, module in root.named_modules() if root is not None else ():
            if not chosen(name, module):
                continue
            slope, shift = (torch.randn(channels_of(module), generator=generator) * 0.1 + at for at in (1.0, 0.0))
            place = f"{part}.{'' if name.startswith('text_model') or part != 'text_encoder' else 'text_model.'}{name}"
            state = {"net.w1": slope[None], "net.b1": shift[None], "quantiles_src": [-1e6, 1e6]}
            for index in (0, 1) if part == "transformer" else (0,):
                (tmp_path / f"{place}:{index}.statedict").write_bytes(torch_bytes(state))
                handles.append(module.register_forward_hook(hook(slope, shift, index)))
    expected = picture(model)
    for handle in handles:
        handle.remove()
    with model.steer(import_map(tmp_path), branch="both") as steering:
        steered = picture(model)
    assert not steering.coverage.missing
    assert not steering.coverage.silent
    displacement = (expected - plain).abs().max()
    assert displacement > 1e-4
    # The same arithmetic in another order: float32 rounding, through a few layers, on values of size 1.
    assert (steered - expected).abs().max() < 0.01 * displacement


def picture(model: DiffusersModel) -> Tensor:
    """The latents of a picture."""
    model._output_type = "latent"
    drawn: Any = model.generate(["a cat"], steps=1, guidance=1)
    return drawn[0]


def test_sites_of_hooks_are_in_the_order_in_which_they_run(tmp_path: Path) -> None:
    names = ["conv_in", "down_blocks.2", "down_blocks.10", "mid_block", "up_blocks.0", "conv_norm_out"]
    state = {"net.w1": torch.ones(1, 2), "net.b1": torch.ones(1, 2)}
    for name in names:
        (tmp_path / f"unet.{name}:0.statedict").write_bytes(torch_bytes(state))
    assert [site.name for site in import_map(tmp_path).transports] == names
