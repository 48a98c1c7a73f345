"""Finds the sites of a model: the patterns of presets, a dry run, and the layout of activations."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from .architectures import PRESETS
from .components import Component
from .errors import FitError
from .interception import intercepted, output_tensors, submodules
from .sites import Layout, Site, matches

_CHANNELS_FIRST = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.GroupNorm,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
)


def patterns_for(component: Component, sites: str) -> tuple[str, ...]:
    """Patterns on ``component/name`` for a preset name, ``auto``, ``all``, or comma-separated patterns.

    A preset that only other families have, such as the output of a text encoder, yields no patterns.

    Raises:
        FitError: a preset for an architecture that has none.

    Example:
        >>> from act_core.architectures import LLAMA
        >>> patterns_for(Component("language_model", nn.Identity(), LLAMA), "attention, */lm_head")
        ('language_model/*.self_attn.o_proj', '*/lm_head')
    """
    architecture = component.architecture
    patterns: list[str] = []
    for name in _listed(sites):
        if not _is_preset(name):
            patterns.append(name)
        elif architecture.presets:
            patterns += [f"{component.name}/{pattern}" for pattern in architecture.patterns(name)]
        else:
            raise FitError(
                f"There are no presets for the architecture {architecture.name!r}; "
                f"give patterns instead, such as '*norm*' or '*.layers.*.mlp'."
            )
    return tuple(patterns)


def discover(
    components: Sequence[Component],
    sites: str,
    run: Callable[[], object],
    rows: int,
    at_site: Callable[[], None] = lambda: None,
) -> list[Site]:
    """The sites that fire in a dry run, in the order in which they first fire.

    Args:
        components: parts of the pipeline.
        sites: preset or patterns, see `patterns_for`.
        run: runs the pipeline once, on `rows` samples.
        rows: first dimension of an output that counts as a site.
        at_site: called whenever one fires.

    Raises:
        FitError: a pattern matches nothing (the message lists the closest names), or none of its matches runs.

    Example:
        >>> from act_core.architectures import Architecture
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
        >>> component = Component("model", model, Architecture("toy"))
        >>> [site.key for site in discover([component], "model/0", lambda: model(torch.ones(4, 2)), rows=4)]
        ['model/0']
    """
    found: dict[str, Site] = {}
    passed = Counter[str]()

    def note(component: Component, name: str, module: nn.Module, patterns: tuple[str, ...], output: Any) -> Any:
        for index, tensor in output_tensors(output).items():
            layout = layout_of(module, name, tensor)
            if layout is None or tensor.shape[0] != rows:
                continue
            channels = tensor.shape[1 if layout == "spatial" else -1]
            site = Site(component.name, name, index, layout, channels)
            if not matches(patterns, site.key):
                continue
            passed[site.key] += 1
            if passed[site.key] > component.passes.get(name, 0):
                found.setdefault(site.key, site)
                at_site()
        return output

    handlers: dict[nn.Module, Callable[[Any], Any]] = {}
    everything: list[str] = []
    for component in components:
        patterns = patterns_for(component, sites)
        # Patterns may name an output, but outputs are known only once the module has run.
        modules = tuple(pattern.partition("#")[0] for pattern in patterns)
        for name, module in submodules(component.module).items():
            key = f"{component.name}/{name}"
            everything.append(key)
            if name and matches(modules, key):
                handlers[module] = partial(note, component, name, module, patterns)
    _check_names(sites, everything, any_module=bool(handlers))
    with intercepted(handlers):
        run()
    _check_found(sites, found)
    return list(found.values())


def _listed(sites: str) -> list[str]:
    return [part.strip() for part in sites.split(",") if part.strip()]


def _is_preset(name: str) -> bool:
    return name in ("auto", "all") or name in PRESETS


def _check_names(sites: str, names: Sequence[str], *, any_module: bool) -> None:
    """Raise an error for a pattern that matches no submodule of any component."""
    given = _listed(sites)
    misspelt = [
        pattern
        for pattern in given
        if not _is_preset(pattern) and not any(matches((pattern.partition("#")[0],), name) for name in names)
    ]
    if any_module and not misspelt:
        return
    if given and not misspelt:
        raise FitError(f"This model has no sites of the preset {given[0]!r}; choose another preset, or give patterns.")
    wrong = (misspelt or [sites])[0]
    kinds = dict.fromkeys(re.sub(r"\d+", "*", name) for name in names if not name.endswith("/"))
    close = difflib.get_close_matches(wrong.strip(), kinds, n=3, cutoff=0)
    raise FitError(f"No part of the model matches the sites {wrong!r}; the closest names are {', '.join(close)}.")


def _check_found(sites: str, found: Collection[str]) -> None:
    """Raise an error for a pattern that found no site; a preset may have none in one of several components."""
    silent = [
        pattern
        for pattern in _listed(sites)
        if not _is_preset(pattern) and not any(matches((pattern,), k) for k in found)
    ]
    if silent or not found:
        raise FitError(
            f"No part of the model that matches the sites {(silent or [sites])[0]!r} returns activations, one row for "
            "each prompt; choose parts that run and that return tensors."
        )


def layout_of(module: nn.Module, name: str, tensor: Tensor) -> Layout | None:
    """The layout of a module's output; None if it is not an activation that can be steered.

    The module that made the tensor decides, since the rank does not: ``[rows, 64, 8, 8]`` may be a feature map of 64
    channels, a grid of tokens with 8 channels, or 64 tokens in 8 attention heads. Heads are not steered.

    Args:
        module: the module that returned the tensor.
        name: dotted name of the module.
        tensor: one of its outputs.

    Example:
        >>> layout_of(nn.Conv2d(3, 64, 3), "conv", torch.zeros(2, 64, 8, 8))
        'spatial'
        >>> layout_of(nn.LayerNorm(8), "blocks.0.norm", torch.zeros(2, 64, 8, 8))
        'tokens'
        >>> layout_of(nn.RMSNorm(8), "blocks.0.self_attn.q_norm", torch.zeros(2, 64, 8, 8)) is None
        True
    """
    if not tensor.is_floating_point() or tensor.ndim < 2:
        return None
    if tensor.ndim == 2:
        return "vector"
    parts = list(module.modules())
    first, last = (any(map(test, parts)) for test in (_has_channels_first, _has_channels_last))
    if tensor.ndim == 3:
        return "spatial" if first and not last else "tokens"
    # Blocks of feature maps also have linear layers, for the noise level or over flattened positions.
    if first or (_scales(module, tensor.shape[1]) and not _scales(module, tensor.shape[-1])):
        return "spatial"
    return "tokens" if last and not _is_inside_attention(name) else None


def _has_channels_first(module: nn.Module) -> bool:
    return isinstance(module, _CHANNELS_FIRST)


def _has_channels_last(module: nn.Module) -> bool:
    # By class name, because libraries define their own norms, some without parameters.
    return isinstance(module, nn.Linear) or ("Norm" in type(module).__name__ and not _has_channels_first(module))


def _scales(module: nn.Module, channels: int) -> bool:
    """Whether the layer has exactly one weight per channel."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.shape == (channels,)


def _is_inside_attention(name: str) -> bool:
    return any("attn" in part.lower() or "attention" in part.lower() for part in name.split(".")[:-1])
