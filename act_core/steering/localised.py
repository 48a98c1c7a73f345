"""Gives the sites of a map the names of a model that another library built."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from torch import nn

from ..architectures import ARCHITECTURES, Architecture, architecture_of, family
from ..architectures.shared_names import SharedNames, Translator
from ..components import DIFFUSION_MODEL
from ..errors import MapError
from ..interception import find_submodules, submodules
from ..layers import output_channels
from ..maps import ActMap
from ..records import Fingerprint
from ..sites import Site

_RECORDS = {architecture.name: architecture for architecture in ARCHITECTURES}


@dataclass(frozen=True)
class Localised:
    """A map with the names of a model.

    Attributes:
        act_map: the map; sites that the model lacks keep their names.
        roots: the module of each component of the map that the model has.
        renamed: names of components in the model, by those in the map as it was given, where they differ.
        libraries: for each translated component, the library whose names the map has, and that of the model.
        absent: sites of the map that the model does not compute.
    """

    act_map: ActMap
    roots: Mapping[str, nn.Module]
    renamed: Mapping[str, str] = field(default_factory=dict[str, str])
    libraries: Mapping[str, tuple[str, str]] = field(default_factory=dict[str, tuple[str, str]])
    absent: frozenset[Site] = frozenset()

    @property
    def notes(self) -> Iterator[str]:
        """A sentence for each component that has other names in this model, with what does not carry over."""
        called = self.act_map.called
        for theirs, ours in self.renamed.items():
            yield f"{called} was fitted on a text encoder called {theirs}, which is {ours} here."
        for component, (theirs, ours) in self.libraries.items():
            sites = [site for site in self.act_map.transports if site.component == component]
            left = [site for site in sites if site in self.absent]
            text = f"{called} was fitted in {theirs} and is translated to the names of {ours} ({component})"
            if left:
                kinds = Counter(re.sub(r"(?<=[./])\d+(?=[.#@]|$)", "*", site.key.partition("/")[2]) for site in left)
                listed = ", ".join(f"{kind} ({count})" for kind, count in kinds.items())
                text += (
                    f"; {len(left)} of its {len(sites)} sites do not carry over, because {ours} does not compute the "
                    f"same tensors: {listed}"
                )
            yield f"{text}. Whether the weights are those of the fit is not compared."


def localised(model: nn.Module | Mapping[str, nn.Module], act_map: ActMap) -> Localised:
    """A map with the names that a model has for its components and sites.

    Args:
        model: as given to `act_core.steer`.
        act_map: the map.

    Raises:
        MapError: one module for a map of several components.
    """
    if isinstance(model, nn.Module):
        if len(act_map.components) > 1:
            raise MapError(
                f"{act_map.called} steers several components ({', '.join(act_map.components)}); give a module for each."
            )
        roots, renamed = dict.fromkeys(act_map.components, model), {}
    else:
        renamed = _renamed(model, act_map)
        act_map = _with_components(act_map, renamed)
        roots = {name: module for name, module in model.items() if name in act_map.components}
    sites = {site: site for site in act_map.transports}
    libraries: dict[str, tuple[str, str]] = {}
    absent: set[Site] = set()
    for name, root in roots.items():
        fitted, here = recorded(act_map.record.base.get(name)), architecture_of(root)
        shared = shared_names(act_map.record.base.get(name), root)
        if fitted is None or shared is None:
            continue
        libraries[name] = fitted.built_by, here.built_by
        translator = Translator(shared, here.built_by, submodules(root))
        for site in act_map.transports:
            if site.component == name:
                found = translator.site(site)
                sites[site] = found or site
                absent |= set() if found else {site}
    if libraries:
        act_map = replace(act_map, transports={sites[site]: t for site, t in act_map.transports.items()})
    return Localised(act_map, roots, renamed, libraries, frozenset(absent))


def recorded(base: Fingerprint | None) -> Architecture | None:
    """The record of the family that a map was fitted on, if there is one."""
    return None if base is None else _RECORDS.get(family(base.architecture))


def shared_names(base: Fingerprint | None, root: nn.Module) -> SharedNames | None:
    """The names that the model of a map and another model share, if two libraries built them from one family.

    None if they have one record, or if the map was fitted on another model that ComfyUI builds from the same class.
    """
    fitted, here = recorded(base), architecture_of(root)
    if base is None or fitted is None or fitted is here:
        return None
    shared = next((names for names in fitted.shared if names in here.shared), None)
    is_other = shared is not None and shared.variant and base.variants and shared.variant not in base.variants
    return None if is_other else shared


def _renamed(model: Mapping[str, nn.Module], act_map: ActMap) -> dict[str, str]:
    """Text encoders that another library calls otherwise, such as ``qwen3`` and ``qwen3_4b``.

    It must be clear which is meant: a single one of the same family that has all the sites.
    """
    renamed: dict[str, str] = {}
    free = {name: root for name, root in model.items() if name not in (*act_map.components, DIFFUSION_MODEL)}
    for name in act_map.components:
        base = act_map.record.base.get(name)
        if name in model or name == DIFFUSION_MODEL or base is None:
            continue
        sites = [site for site in act_map.transports if site.component == name]
        alike = [
            other
            for other, root in free.items()
            if architecture_of(root).name == family(base.architecture) and _has_sites(root, sites)
        ]
        if len(alike) == 1:
            renamed[name] = alike[0]
            del free[alike[0]]
    return renamed


def _has_sites(root: nn.Module, sites: list[Site]) -> bool:
    modules = find_submodules(root, [site.name for site in sites])
    return all(site.name in modules and output_channels(modules[site.name]) in (None, site.channels) for site in sites)


def _with_components(act_map: ActMap, renamed: Mapping[str, str]) -> ActMap:
    if not renamed:
        return act_map
    base = {renamed.get(name, name): known for name, known in act_map.record.base.items()}
    sites = {
        replace(site, component=renamed.get(site.component, site.component)): transport
        for site, transport in act_map.transports.items()
    }
    return replace(act_map, transports=sites, record=replace(act_map.record, base=base))
