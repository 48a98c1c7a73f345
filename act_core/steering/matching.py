"""Finds the sites of a map in a model, and checks that the two fit together."""

from __future__ import annotations

from collections.abc import Collection, Container, Iterator, Mapping

import torch
from torch import nn

from ..architectures import architecture_of, classes_of, family, kinds_of
from ..components import Component
from ..errors import MapMismatchError
from ..fingerprints import has_weights
from ..interception import find_submodules, has_names, token_reader
from ..layers import output_channels
from ..maps import ActMap
from ..records import Fingerprint
from ..sites import Site
from ..text import shorten
from .localised import Localised, shared_names


def find_sites(model: nn.Module | Mapping[str, nn.Module], local: Localised) -> dict[Site, nn.Module]:
    """The sites of a map that the model has, with their modules.

    Names that differ only by library version or wrapper count as the same, see
    `act_core.interception.find_submodules`.

    Args:
        model: as given to `act_core.steer`, for errors.
        local: the map with the names of the model.

    Raises:
        MapMismatchError: no site is in the model, or one has another number of channels.
    """
    act_map, roots = local.act_map, local.roots
    found: dict[Site, nn.Module] = {}
    for component, root in roots.items():
        sites = [site for site in act_map.transports if site.component == component and site not in local.absent]
        modules = find_submodules(root, [name for site in sites for name in _names(site)])
        found.update({s: modules[s.name] for s in sites if all(name in modules for name in _names(s))})
    differing = [site for site, module in found.items() if output_channels(module) not in (None, site.channels)]
    if found and not differing:
        return found
    bases = [f"{b.architecture} ({name})" for name, b in act_map.record.base.items()]
    base = shorten(" and ".join(bases), 200) or "another model"
    given = [model] if isinstance(model, nn.Module) else model.values()
    kinds = " and ".join(type(root).__name__ for root in given) or "no component of the map"
    advice = "use it with the model it was fitted on, or fit a map for this one"
    if not differing:
        how = f"none of its {len(act_map)} sites is in this model, {kinds}"
        for theirs, ours in local.libraries.values():
            how = (
                f"none of its {len(act_map)} sites carries over to this model, {kinds}, because {ours} does not "
                f"compute the same tensors as {theirs}"
            )
    else:
        site, channels = differing[0], output_channels(found[differing[0]])
        missing = sum(site.component in roots for site in act_map.transports) - len(found)
        how = (
            f"does not fit this model, {kinds}: of its {len(act_map)} sites {len(differing)} have other channels "
            f"({site.key}: {site.channels} in the map, {channels} here) and {missing} are missing"
        )
    raise MapMismatchError(f"{act_map.called} was fitted on {base} and {how}; {advice}.")


def _names(site: Site) -> tuple[str, ...]:
    """The submodules that a site needs."""
    return (site.name,) if site.segment is None else (site.name, site.segment.gauge)


def find_gauges(roots: Mapping[str, nn.Module], sites: Collection[Site]) -> list[tuple[Site, nn.Module]]:
    """The submodules that measure where the segments of sites begin or end."""
    found: list[tuple[Site, nn.Module]] = []
    for component, root in roots.items():
        own = [(site, site.segment) for site in sites if site.segment is not None and site.component == component]
        modules = find_submodules(root, {segment.gauge for _, segment in own}) if own else {}
        found += [(site, modules[segment.gauge]) for site, segment in own]
    return found


def find_token_readers(local: Localised, sites: Collection[Site]) -> list[tuple[Site, nn.Module]]:
    """The modules whose attention mask the gates of sites need, see `act_core.interception.token_reader`."""
    transports = local.act_map.transports
    found: list[tuple[Site, nn.Module]] = []
    for component, root in local.roots.items():
        own = [site for site in sites if site.component == component and transports[site].gate is not None]
        if own and (reader := token_reader(root)) is not None:
            found += [(site, reader) for site in own if site.layout == "tokens"]
    return found


def check_architectures(local: Localised, found: Container[str]) -> None:
    """Check that a map was fitted on the architecture of the model, unless the map permits any.

    Args:
        local: the map with the names of the model.
        found: those components in which a site was found.

    Raises:
        MapMismatchError: a component was fitted on another architecture.
    """
    if local.act_map.any_architecture:
        return
    for name, base, root in _compared(local, found):
        if not (_is_of_kind(base, root) or _has_weights(base, root)):
            raise _other_architecture(local.act_map, name, base.architecture, architecture_of(root).name)


def check_variant(act_map: ActMap, component: Component) -> None:
    """Check that a map was fitted on the variant of a component, or on a related one, unless the map permits any.

    Variants are related if they share a name: one is built on the other, or both on a third. Where the map or the
    component has none, they are not compared.

    Args:
        act_map: a map that has sites in the component.
        component: of the model.

    Raises:
        MapMismatchError: the component is another variant.
    """
    base = act_map.record.base.get(component.name)
    if act_map.any_architecture or base is None or not component.variants:
        return
    if not base.variants:
        shared = shared_names(base, component.module)
        if shared is not None and shared.variant and shared.variant not in component.variants:
            raise _other_architecture(act_map, component.name, base.architecture, component.variants[0])
        return
    if not {*base.variants} & {*component.variants}:
        raise _other_architecture(act_map, component.name, base.variants[0], component.variants[0])


def _other_architecture(act_map: ActMap, component: str, fitted: str, given: str) -> MapMismatchError:
    return MapMismatchError(
        f"{act_map.called} was fitted on {shorten(fitted, 60)} ({component}), but this model is {given}, another "
        "architecture whose sites have the same names; use the map with its own model, fit one for this model, or set "
        "allow_other_architecture on Load ACT Map (--allow-other-architecture on the command line, "
        "for_any_architecture() in Python)."
    )


def notes_for(local: Localised, found: Container[str]) -> Iterator[str]:
    """A sentence for each component with other names than in the map, or whose class is built on that of the map.

    Also where the class of the map is built on that of the model.

    Args:
        local, found: as for `check_architectures`.
    """
    act_map = local.act_map
    yield from local.notes
    for name, base, root in _compared(local, found):
        fitted, (given, *bases) = base.model_class or base.architecture, classes_of(root)
        if fitted != given and fitted in bases:
            yield (
                f"{act_map.called} was fitted on {fitted} ({name}); this model is {given}, which is built on it, so "
                "the map applies."
            )
        elif given in base.bases:
            yield (
                f"{act_map.called} was fitted on {shorten(fitted, 60)} ({name}), which is built on the class of this "
                f"model, {given}, so the map applies."
            )


def warnings_for(local: Localised, found: Container[str], missing: tuple[str, ...]) -> Iterator[str]:
    """Reasons to doubt that a map works well on a model, a sentence each.

    Args:
        local, found: as for `check_architectures`.
        missing: keys of the sites that the model does not have.
    """
    act_map = local.act_map
    if missing:
        yield (
            f"{act_map.called} has {len(act_map)} sites, of which {len(missing)} are not in this model "
            f"(first: {missing[0]}), so its effect here is weaker than on the model it was fitted on."
        )
    for name, base, root in _compared(local, found):
        same_weights = None if _has_other_names(local, name) else _has_weights(base, root)
        if not (_is_of_kind(base, root) or same_weights):
            yield (
                f"{act_map.called} was fitted on {shorten(base.architecture, 60)} ({name}), but this model is "
                f"{architecture_of(root).name}; it may have a different effect here, so fit a map for this model."
            )
        elif same_weights is False:
            # float16 has a smaller range than the bfloat16 of the hash.
            half = any(parameter.dtype == torch.float16 for parameter in root.parameters())
            yield (
                f"{act_map.called} was fitted on other weights of {shorten(base.architecture, 60)} ({name})"
                f"{', or on these in another precision' * half}; it may work less well here, so try low strengths "
                "first."
            )


def _compared(local: Localised, found: Container[str]) -> Iterator[tuple[str, Fingerprint, nn.Module]]:
    """The components of a map that can be compared with the model: name, what it was fitted on, and the module."""
    for name, base in local.act_map.record.base.items():
        if name in local.roots and name in found:
            yield name, base, local.roots[name]


def _has_other_names(local: Localised, component: str) -> bool:
    """Whether a component has other names than in the map, so that a hash over its names says nothing."""
    names = [site.name for site in local.act_map.transports if site.component == component]
    return component in local.libraries or not has_names(local.roots[component], names)


def _is_of_kind(base: Fingerprint, root: nn.Module) -> bool:
    """Whether a map was fitted on the family of a model, its class, a base of its class, or a class built on it.

    The class decides where an adapter names its architecture as it likes. Maps of version 0.1 do not have it; without
    a record of their architecture, only the weights can show that this is their model.
    """
    if family(base.architecture) == architecture_of(root).name or classes_of(root)[0] in base.bases:
        return True
    return bool({base.architecture, base.model_class} & {*kinds_of(root)}) or shared_names(base, root) is not None


def _has_weights(base: Fingerprint, root: nn.Module) -> bool | None:
    """Whether a model has the weights that a map was fitted on; None if that is not known."""
    return has_weights(root, base.weights) if base.weights else None
