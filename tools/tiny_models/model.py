"""One small model of the host: its sizes, random weights, and conditioning for it."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

# In the shape of a conditioning: as many as the prompt has tokens.
TOKENS = -1

Extra = Callable[[torch.Generator, int], Any]


@dataclass(frozen=True)
class Tiny:
    """A model class of the host at a small size.

    Attributes:
        kind: class in the host's ``comfy.supported_models``.
        config: arguments of its diffusion model.
        latent: shape of a latent.
        width: of the conditioning.
        tokens: of a short and of a long prompt; equal where the host pads prompts.
        extras: what a conditioning holds beside the prompt's tokens, by name.
        overrides: attributes of the class that its configuration does not set.
        sound: shape of a second latent, for the sound of a video.
        seconds: whether it embeds the length of a sound in seconds, with weights that its configuration needs.
    """

    kind: str
    config: Mapping[str, Any]
    latent: tuple[int, ...]
    width: int = 64
    tokens: tuple[int, int] = (12, 15)
    extras: Mapping[str, Extra] = field(default_factory=dict[str, Extra])
    overrides: Mapping[str, Any] = field(default_factory=dict[str, Any])
    sound: tuple[int, ...] = ()
    seconds: bool = False


def normal(*shape: int) -> Extra:
    """Normally distributed numbers; `TOKENS` stands for the number of tokens."""
    return lambda generator, tokens: torch.randn(_sized(shape, tokens), generator=generator)


def ones(*shape: int) -> Extra:
    """Whole numbers 1, as in an attention mask."""
    return lambda generator, tokens: torch.ones(_sized(shape, tokens), dtype=torch.long)


def ids(most: int, *shape: int) -> Extra:
    """Random token ids below `most`."""
    return lambda generator, tokens: torch.randint(1, most, _sized(shape, tokens), generator=generator)


def nothing() -> Extra:
    """An entry that is present, but None."""
    return lambda generator, tokens: None


def _sized(shape: tuple[int, ...], tokens: int) -> list[int]:
    return [tokens if size == TOKENS else size for size in shape]


def conditioning(tiny: Tiny, seed: int, tokens: int, shift: float = 0.0) -> tuple[Tensor, dict[str, Any]]:
    """Random conditioning of a prompt, as the host's text encoders return it.

    Args:
        tiny: the model.
        seed: of the prompt.
        tokens: how many it has.
        shift: mean of its numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    own = torch.randn(1, tokens, tiny.width, generator=generator) + shift
    return own, {name: extra(generator, tokens) for name, extra in tiny.extras.items()}


class StandInCLIP:
    """A CLIP for a random model: conditioning is random, longer for long prompts, and shifted for target prompts."""

    patcher: Any = SimpleNamespace(patches={}, get_attachment=dict[str, Any]().get, forced_hooks=None)
    cond_stage_model = nn.Module()

    def __init__(self, tiny: Tiny) -> None:
        self._tiny = tiny

    def tokenize(self, text: str) -> dict[str, Any]:
        return {"text": text}

    def encode_from_tokens(self, tokens: dict[str, Any], **_: Any) -> None:
        pass

    def encode_from_tokens_scheduled(self, tokens: dict[str, Any], **_: Any) -> list[Any]:
        text: str = tokens["text"]
        length = self._tiny.tokens[len(text.split()) > 4]
        return [conditioning(self._tiny, zlib.crc32(text.encode()), length, 0.5 * text.startswith("target"))]


def empty_latent(tiny: Tiny) -> Any:
    """An empty latent; nested if there is one for sound, too."""
    import comfy.nested_tensor

    latent = torch.zeros(tiny.latent)
    return comfy.nested_tensor.NestedTensor([latent, torch.zeros(tiny.sound)]) if tiny.sound else latent


def built(tiny: Tiny) -> Any:
    """A MODEL of the host with random weights, in float32 on the CPU."""
    import comfy.model_patcher
    import comfy.supported_models

    kind = type(tiny.kind, (getattr(comfy.supported_models, tiny.kind),), dict(tiny.overrides))
    config = kind(dict(tiny.config))
    config.set_inference_dtype(torch.float32, None)
    device = torch.device("cpu")
    model = config.get_model(_seconds() if tiny.seconds else {}, "", device=device)
    _fill(model.diffusion_model)
    model.eval()
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=device)


def _seconds() -> dict[str, Tensor]:
    from comfy.ldm.audio.embedders import NumberConditioner

    embedder = NumberConditioner(768, min_val=0, max_val=512)
    _fill(embedder)
    names = "seconds_start", "seconds_total"
    return {f"conditioner.conditioners.{name}.{key}": w for name in names for key, w in embedder.state_dict().items()}


def _fill(module: nn.Module) -> None:
    """Random weights that keep activations near their usual size."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in module.named_parameters():
        if not parameter.is_floating_point():
            continue
        values = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            values = values / max(1, parameter[0].numel()) ** 0.5
        else:
            values = 0.1 * values + name.endswith(("weight", "scale", "gamma"))
        parameter.data = values.to(parameter.dtype)
    for name, buffer in module.named_buffers():
        if name.endswith("pos_embed") and buffer.is_floating_point():
            buffer.copy_(0.02 * torch.randn(buffer.shape, generator=generator))
