"""Finding the sites of a model: patterns for presets, one dry run, and where the channels of an activation lie."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Callable, Sequence
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

    A preset that only other families have, such as the output of a text encoder, gives no pattern.

    Raises:
        FitError: a preset for an architecture that has none.
    """
    architecture = component.architecture
    patterns: list[str] = []
    for name in (part.strip() for part in sites.split(",")):
        if name in ("auto", "all") or name in PRESETS:
            if not architecture.presets:
                raise FitError(
                    f"There are no presets for the architecture {architecture.name!r}; "
                    "give patterns instead, such as '*norm*' or '*/model.layers.*.mlp'."
                )
            patterns += [f"{component.name}/{pattern}" for pattern in architecture.patterns(name)]
        elif name:
            patterns.append(name)
    return tuple(patterns)


def discover(
    components: Sequence[Component],
    sites: str,
    run: Callable[[], object],
    rows: int,
    at_site: Callable[[], None] = lambda: None,
) -> list[Site]:
    """The sites that fire in a dry run, in the order in which they first do.

    Args:
        components: parts of the pipeline.
        sites: preset or patterns, see `patterns_for`.
        run: runs the pipeline once, on `rows` samples.
        rows: first dimension of an output that counts as a site.
        at_site: called whenever one fires.

    Raises:
        FitError: a pattern matches nothing (the closest names are given), or nothing that matches was run.
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
        # A pattern may name an output; which outputs there are shows only when the module runs.
        modules = tuple(pattern.partition("#")[0] for pattern in patterns)
        for name, module in submodules(component.module).items():
            key = f"{component.name}/{name}"
            everything.append(key)
            if name and matches(modules, key):
                handlers[module] = partial(note, component, name, module, patterns)
    _check_patterns(sites, everything, any_module=bool(handlers))
    with intercepted(handlers):
        run()
    if not found:
        raise FitError(
            f"Of the {len(handlers)} parts of the model that match the sites {sites!r} none returned an "
            "activation; choose parts that run and that return tensors."
        )
    return list(found.values())


def _check_patterns(sites: str, names: Sequence[str], *, any_module: bool) -> None:
    """Every pattern of the user's own must match a submodule, or it is misspelt."""
    given = [part.strip() for part in sites.split(",") if part.strip()]
    misspelt = [
        pattern
        for pattern in given
        if pattern not in ("auto", "all")
        and pattern not in PRESETS
        and not any(matches((pattern.partition("#")[0],), name) for name in names)
    ]
    if any_module and not misspelt:
        return
    wrong = (misspelt or [sites])[0]
    kinds = dict.fromkeys(re.sub(r"\d+", "*", name) for name in names if not name.endswith("/"))
    close = difflib.get_close_matches(wrong.strip(), kinds, n=3, cutoff=0)
    raise FitError(f"No part of the model matches the sites {wrong!r}; the closest names are {', '.join(close)}.")


def layout_of(module: nn.Module, name: str, tensor: Tensor) -> Layout | None:
    """How the channels lie in an output of a module; None if it is not an activation that can be steered.

    The rank alone does not tell: the module that made the tensor does. Heads inside an attention, ``[rows, tokens,
    heads, channels]``, are not steered.

    Args:
        module: what returned the tensor.
        name: of the module, dotted.
        tensor: one of its outputs.
    """
    if not tensor.is_floating_point() or tensor.ndim < 2:
        return None
    if tensor.ndim == 2:
        return "vector"
    if tensor.ndim == 3:
        return "spatial" if isinstance(module, _CHANNELS_FIRST) else "tokens"
    if any(isinstance(part, _CHANNELS_FIRST) for part in module.modules()):
        return "spatial"
    return None if _is_inside_attention(name) else "tokens"


def _is_inside_attention(name: str) -> bool:
    return any("attn" in part.lower() or "attention" in part.lower() for part in name.split(".")[:-1])
