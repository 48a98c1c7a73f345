"""Hooks of apple/ml-act, the reference implementation of the paper: a folder with a ``.statedict`` file for each site.

The name of a file is that of the module, with its part of the pipeline in front, and ``:index`` for one of several
outputs. What a hook holds::

    linear_ot      net.w1, net.b1 [1, channels]: slope and offset
    gaussian_ot    mu1, std1, mu2, std2 [channels]: source and target; channels with less deviation than 1e-4 stay
    mean_ot        the same values; nothing distinguishes it from gaussian_ot
    all three      quantiles_src: the support, [low, high] as numbers (unbounded) or for each channel
    aura           auroc [channels] (older files: alpha [1, 1, channels]): how well each channel detects the concept

AurA scales channels and is not a transport, but it is affine: slope ``alpha``, offset 0.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor

from ..errors import MapFileError
from ..mapfile import fields
from ..maps import ActMap
from ..records import Card, FitRecord
from ..text import plain_text
from ..transport import Transport
from .ml_act_names import Place, base_of, place_of, sites_of
from .torch_files import read_torch, vector_of

SUFFIX = ".statedict"
HookEstimator = Literal["mean", "gaussian"]

_MAX_FILES = 10_000
# Its `std_eps`: channels with a smaller deviation are left alone.
_MIN_DEVIATION = 1e-4
# Support ends that mean "unbounded".
_UNBOUNDED = 1e6


class _Hook(NamedTuple):
    kind: str
    transport: Transport


def read_hooks(
    folder: Path,
    files: Sequence[Path],
    estimator: HookEstimator | None,
    architecture: str | None,
    model: Path | None,
) -> ActMap:
    """The map of the hooks in a folder.

    Args:
        folder: no file outside it is read, not even through a link.
        files: in the folder.
        estimator: of hooks that could be either; by default it is taken from the name of the folder.
        architecture, model: as for `act_core.interop.blocks.blocks_of`, for a language model.

    Raises:
        MapFileError: a file is damaged, has an unknown name, is a link out of the folder, or holds another hook.
        OSError: a file cannot be opened.
    """
    if len(files) > _MAX_FILES:
        raise MapFileError(f"it has {len(files)} files, more than any model has sites.")
    inside = os.path.realpath(folder)
    hooks: dict[Place, _Hook] = {}
    for file in files:
        # Unlike Path.resolve, this does not raise for links in a loop.
        if not Path(os.path.realpath(file)).is_relative_to(inside) or not file.is_file():
            raise MapFileError(
                f"{plain_text(file.name)} is a link out of the folder or not a file; copy the file there."
            )
        try:
            place = place_of(fields.identifier("its name", file.name.removesuffix(SUFFIX)))
            if place in hooks:
                raise MapFileError("another file is for the same module.")
            hooks[place] = _hook(read_torch(file), estimator or _named(folder))
        except ValueError as error:
            raise MapFileError(f"{plain_text(file.name)}: {str(error).rstrip('.')}.") from error
    kinds = {hook.kind for hook in hooks.values()}
    if len(kinds) > 1:
        raise MapFileError(f"it holds hooks of several kinds ({', '.join(sorted(kinds))}); import them one by one.")
    order = sorted(hooks, key=lambda place: place.order)
    transports = {
        site: hooks[place].transport for place in order for site in sites_of(place, hooks[place].transport.channels)
    }
    kind = kinds.pop()
    base = base_of(order, architecture, model)
    return ActMap(transports, replace(_record(kind, folder), base=base), Card(title=plain_text(folder.name)))


def _record(kind: str, folder: Path) -> FitRecord:
    notes = (f"imported from hooks of apple/ml-act ({kind}) in {plain_text(folder.name)}",)
    if kind == "aura":
        return FitRecord(
            spatial="pointwise", notes=(*notes, "AurA scales each channel; it was not fitted by transport")
        )
    known = {"linear_ot": "linear", "mean_ot": "mean", "gaussian_ot": "gaussian"}
    return FitRecord(
        estimator=cast("Any", known[kind]),
        order="simultaneous" if "atonce" in folder.name else "causal",
        interval="pooled",
        moved="both",
        # Only linear hooks shift the mean of a feature map; gaussian hooks map every position.
        spatial="pointwise" if kind == "gaussian_ot" else "shift",
        notes=notes,
    )


def _named(folder: Path) -> HookEstimator | None:
    """The estimator in the name of a folder, such as ``incr-mean_ot-mean``."""
    found = re.search("(mean|gaussian)_ot", folder.resolve().name)
    return cast("HookEstimator", found[1]) if found else None


def _hook(content: object, estimator: HookEstimator | None) -> _Hook:
    if not isinstance(content, Mapping):
        raise MapFileError("it is not a hook of apple/ml-act.")
    state = cast("Mapping[object, object]", content)
    if "net.w1" in state:
        return _Hook("linear_ot", _linear(state))
    if "mu1" in state:
        if estimator is None:
            raise MapFileError("it does not say whether it is a mean or a gaussian hook; give --estimator.")
        return _Hook(f"{estimator}_ot", _gaussian(state, estimator))
    if "auroc" in state or "alpha" in state:
        return _Hook("aura", _aura(state))
    raise MapFileError("it is not a hook of apple/ml-act that can be imported (linear_ot, gaussian_ot, mean_ot, aura).")


def _linear(state: Mapping[object, object]) -> Transport:
    omega, beta = _vectors(state, "net.w1", "net.b1")
    return _bounded(Transport(omega, beta), state, torch.ones_like(omega, dtype=torch.bool))


def _gaussian(state: Mapping[object, object], estimator: HookEstimator) -> Transport:
    mu1, std1, mu2, std2 = (vector.double() for vector in _vectors(state, "mu1", "std1", "mu2", "std2"))
    moved = (std1 > _MIN_DEVIATION) & (std2 > _MIN_DEVIATION)
    slopes = std2 / std1 if estimator == "gaussian" else torch.ones_like(mu1)
    omega = torch.where(moved, slopes, 1.0)
    beta = torch.where(moved, mu2 - omega * mu1, 0.0)
    transport = Transport(omega.float(), beta.float())
    if not bool(transport.omega.isfinite().all() and transport.beta.isfinite().all()):
        raise MapFileError("its values are too large for a map.")
    return _bounded(transport, state, moved)


def _aura(state: Mapping[object, object]) -> Transport:
    if "auroc" in state:
        (auroc,) = _vectors(state, "auroc")
        alpha = torch.where(auroc > 0.5, 1 - 2 * (auroc - 0.5), 1.0)
    else:
        (alpha,) = _vectors(state, "alpha")
    return Transport(alpha, torch.zeros_like(alpha))


def _bounded(transport: Transport, state: Mapping[object, object], moved: Tensor) -> Transport:
    """The transport with the support that the hook was saved with, which may leave out channels that are not moved."""
    ends = state.get("quantiles_src", "q_all")
    if ends == "q_all":
        return transport
    if isinstance(ends, str):
        known = state.get("quantiles_dict_src")
        ends = cast("Mapping[object, object]", known).get(ends) if isinstance(known, Mapping) else None
    if not isinstance(ends, (list, tuple)) or len(cast("Sequence[object]", ends)) != 2:
        raise MapFileError("its support is not a pair of ends.")
    low, high = cast("Sequence[object]", ends)
    if not isinstance(low, Tensor) and not isinstance(high, Tensor):
        if (low, high) != (-_UNBOUNDED, _UNBOUNDED):
            raise MapFileError("its support is not a pair of vectors.")
        return transport
    edges: list[Tensor] = []
    for end, wide in ((low, -torch.finfo().max), (high, torch.finfo().max)):
        edge = vector_of("an end of its support", end)
        if len(edge) == transport.channels:
            edges.append(edge)
        elif len(edge) == int(moved.sum()):
            edges.append(torch.full_like(transport.omega, wide).masked_scatter(moved, edge))
        else:
            raise MapFileError(f"its support has {len(edge)} channels, and its coefficients {transport.channels}.")
    if bool((edges[0] > edges[1]).any()):
        raise MapFileError("its support ends before it begins.")
    return replace(transport, low=edges[0], high=edges[1])


def _vectors(state: Mapping[object, object], *names: str) -> list[Tensor]:
    vectors = [vector_of(name, state.get(name)) for name in names]
    if len({len(vector) for vector in vectors}) > 1:
        raise MapFileError(f"{' and '.join(names)} have different sizes.")
    return vectors
