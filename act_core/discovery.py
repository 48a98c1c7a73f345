"""Finds the sites of a model: the patterns of presets, a dry run, and the layout of activations."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from .architectures.by_rule import Call, record_by_rule
from .components import DECODER, ENCODER, LANGUAGE_MODEL, Component
from .interception import intercepted, output_tensors, submodules
from .joins import JoinWatch
from .layers import is_linear
from .site_errors import check_found, check_names, is_preset, listed
from .sites import Layout, Segment, Site, matches

# What `auto` selects by rule. Steering attention alone keeps texts fluent.
_AUTO, _AUTO_IN_TEXT = ("attention", "mlp"), ("attention",)
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

    Example:
        >>> from act_core.architectures import LLAMA
        >>> patterns_for(Component("language_model", nn.Identity(), LLAMA), "attention, */lm_head")
        ('language_model/*.self_attn.o_proj', '*/lm_head')
    """
    patterns: list[str] = []
    for name in listed(sites):
        own = [f"{component.name}/{pattern}" for pattern in component.architecture.patterns(name)]
        patterns += own if is_preset(name) else [name]
    return tuple(patterns)


def is_by_rule(component: Component, sites: str) -> bool:
    """Whether the sites of a component are found by rule, because its architecture has no presets of its own.

    Example:
        >>> from act_core.architectures import Architecture
        >>> toy = Component("model", nn.Identity(), Architecture("toy"))
        >>> is_by_rule(toy, "auto"), is_by_rule(toy, "model/*norm*")
        (True, False)
    """
    return not component.architecture.presets and any(map(is_preset, listed(sites)))


def discover(
    components: Sequence[Component],
    sites: str,
    run: Callable[[], object],
    rows: int,
    at_site: Callable[[], None] = lambda: None,
    *,
    apart: bool = False,
) -> list[Site]:
    """The sites that fire in a dry run, in the order in which they first fire.

    Args:
        components: parts of the pipeline.
        sites: preset or patterns, see `patterns_for`. For an architecture without presets they are found by rule, see
            `act_core.architectures.by_rule`.
        run: runs the pipeline once, on `rows` samples.
        rows: first dimension of an output that counts as a site.
        at_site: called whenever an output that may be a site is made.
        apart: whether the two parts of a joined stream, such as the tokens of text and picture, are two sites. A
            compiled graph does not show what it joins; see `prepared`.

    Raises:
        FitError: a pattern matches nothing (the message lists the closest names), or none of its matches runs.

    Example:
        >>> from act_core.architectures import Architecture
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
        >>> component = Component("model", model, Architecture("toy"))
        >>> [site.key for site in discover([component], "model/0", lambda: model(torch.ones(4, 2)), rows=4)]
        ['model/0']
    """
    handlers: dict[nn.Module, Callable[[Any], Any]] = {}
    matched = False
    everything: list[str] = []
    watch = _Watch(rows, at_site, JoinWatch(part.module for part in components) if apart else None)
    parts = [(component, submodules(component.module), is_by_rule(component, sites)) for component in components]
    for component, modules, by_rule in parts:
        # Patterns may name an output, but outputs are known only once the module has run.
        names = tuple(pattern.partition("#")[0] for pattern in patterns_for(component, sites))
        for name, module in modules.items():
            if matches(component.ignored, name):
                continue
            key = f"{component.name}/{name}"
            everything.append(key)
            chosen = bool(name) and (by_rule or matches(names, key))
            matched |= chosen
            # A module may have a second name, which is not chosen.
            if chosen or (apart and name and module not in handlers):
                handlers[module] = partial(watch.note, component, name, module)
    check_names(sites, everything, any_module=matched)
    with intercepted(handlers), watch.joins or nullcontext():
        run()
    patterns: list[str] = []
    for component, modules, by_rule in parts:
        if by_rule:
            calls = list(watch.calls[component.name].values())
            auto = _AUTO_IN_TEXT if component.name in (LANGUAGE_MODEL, ENCODER, DECODER) else _AUTO
            found = record_by_rule(component.architecture.name, modules, calls, auto)
            component = replace(component, architecture=found)
        patterns += patterns_for(component, sites)
    found = [site for key, site in watch.sites.items() if matches(patterns, key)]
    searched = {
        c.architecture.name: [f"{c.name}/{call}" for call in watch.calls[c.name]] for c, _, by_rule in parts if by_rule
    }
    check_found(sites, [site.key for site in found], watch.returned, rows, searched)
    return [part for site in found for part in watch.parts(site)]


class _Watch:
    """Notes what the submodules return in a dry run.

    Attributes:
        sites: every output that may be a site, in the order in which they first fire.
        calls: by component, the first call of each submodule, in the order in which they return.
        joins: where streams of tokens are joined; None if that is not needed.
        returned: by submodule that ran, the shapes that it returned if none of them may be a site, for errors.
    """

    def __init__(self, rows: int, at_site: Callable[[], None], joins: JoinWatch | None) -> None:
        self.sites: dict[str, Site] = {}
        self.calls: defaultdict[str, dict[str, Call]] = defaultdict(dict)
        self.returned: dict[str, str] = {}
        self._rows = rows
        self.joins = joins
        self._at_site = at_site
        self._passed = Counter[str]()
        self._segments: dict[str, tuple[Segment, ...]] = {}

    def note(self, component: Component, name: str, module: nn.Module, output: Any) -> Any:
        sizes: dict[int | None, tuple[int, int]] = {}
        rank = 0
        for index, tensor in output_tensors(output).items():
            layout = layout_of(module, name, tensor)
            if layout is None or tensor.shape[0] != self._rows:
                continue
            channels = tensor.shape[1 if layout == "spatial" else -1]
            # Attention weights, which some blocks also return, have another rank than the stream.
            rank = rank or tensor.ndim
            if layout != "vector" and tensor.ndim == rank and tensor.numel():
                sizes[index] = tensor[0].numel() // channels, channels
            site = Site(component.name, name, index, layout, channels)
            self._passed[site.key] += 1
            if self._passed[site.key] > component.passes.get(name, 0):
                if self.joins is not None and layout == "tokens" and site.key not in self.sites:
                    self._segments[site.key] = self.joins.segments(component.name, tensor)
                self.sites.setdefault(site.key, site)
                self._at_site()
            if self.joins is not None:
                self.joins.note(component.name, name, index, tensor)
        self.calls[component.name].setdefault(name, Call(name, sizes))
        shapes = " and ".join(str(list(tensor.shape)) for tensor in output_tensors(output).values())
        self.returned.setdefault(f"{component.name}/{name}", "" if rank else shapes or "no tensor")
        return output

    def parts(self, site: Site) -> list[Site]:
        """The site itself, or one for each part of its stream, if that is joined."""
        return [replace(site, segment=segment) for segment in self._segments.get(site.key, ())] or [site]


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
    return is_linear(module) or ("Norm" in type(module).__name__ and not _has_channels_first(module))


def _scales(module: nn.Module, channels: int) -> bool:
    """Whether the layer has exactly one weight per channel."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.shape == (channels,)


def _is_inside_attention(name: str) -> bool:
    return any("attn" in part.lower() or "attention" in part.lower() for part in name.split(".")[:-1])
