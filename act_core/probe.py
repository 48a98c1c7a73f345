"""Measures how far a map moves each token at each of its sites: the same call of a model before and after."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from .errors import MapMismatchError
from .interception import find_submodules, intercepted, output_tensor
from .maps import ActMap
from .settings import Strength
from .sites import Site
from .steering import steer
from .steering.localised import localised

Moves = Mapping[Site, list[Tensor]]

# In the names of the submodules for text, in models that keep it apart from the picture.
_TEXT_STREAMS = ("context", "txt", "caption", "add_")


def probe(
    model: nn.Module | Mapping[str, nn.Module], act_map: ActMap, run: Callable[[], object], strength: Strength = 1.0
) -> Moves:
    """How far a map moves what a model computes at its sites.

    A site also moves by what the map does before it, so the last sites show the whole effect.

    Args:
        model: a module, or one for each component, such as ``DiffusersModel.modules``.
        act_map: a map of this model.
        run: calls the model, in the same way each time; it is called twice, and the second time it is steered.
        strength: of the map.

    Returns:
        By site that ran, for each time that it ran: float32 ``[rows, tokens]`` for tokens, ``[rows, height, width]``
        for feature maps, or ``[rows]`` for vectors. It is the root mean square of the change over the channels, in
        units of the activation: the root mean square of the unsteered values over the channels, of the median token.

    Raises:
        MapError: the map does not fit the model, or the two calls differ in what they compute.

    Example:
        >>> from act_core.transport import Transport
        >>> act_map = ActMap({Site("model", "0", None, "tokens", 2): Transport(torch.full((2,), 1.5), torch.zeros(2))})
        >>> model = nn.Sequential(nn.Identity())
        >>> moves = probe(model, act_map, lambda: model(torch.tensor([[[1.0, 1.0], [2.0, 2.0], [2.0, 2.0]]])))
        >>> moves[act_map.site("model/0")]
        [tensor([[0.2500, 0.5000, 0.5000]])]
    """
    watch = Probe(model, act_map)
    with watch.before():
        run()
    with steer(model, act_map, strength), watch.after():
        run()
    return watch.moves


class Probe:
    """Compares calls of a model; for a host that runs and steers the model itself, see `probe`.

    Each call is made twice: unsteered inside `before`, then steered inside `after`.

    Args:
        model, act_map: as for `probe`.

    Attributes:
        moves: as `probe` returns them, one entry for each call so far.
    """

    def __init__(self, model: nn.Module | Mapping[str, nn.Module], act_map: ActMap) -> None:
        local = localised(model, act_map)
        self.moves: dict[Site, list[Tensor]] = {}
        self._sites: dict[nn.Module, list[Site]] = {}
        self._gauges: dict[nn.Module, list[Site]] = {}
        self._measured: dict[Site, int] = {}
        self._before: dict[Site, list[Tensor]] = {}
        for component, root in local.roots.items():
            sites = [s for s in local.act_map.transports if s.component == component and s not in local.absent]
            gauges = [site.segment.gauge for site in sites if site.segment]
            modules = find_submodules(root, {*(site.name for site in sites), *gauges})
            for site in sites:
                if site.name in modules:
                    self._sites.setdefault(modules[site.name], []).append(site)
                if site.segment and site.segment.gauge in modules:
                    self._gauges.setdefault(modules[site.segment.gauge], []).append(site)

    @contextmanager
    def before(self) -> Generator[None, None, None]:
        """Record the activations of the calls inside."""
        self._before = {}
        with self._handled(lambda site, x: self._before.setdefault(site, []).append(x.detach().to("cpu", copy=True))):
            yield

    @contextmanager
    def after(self) -> Generator[None, None, None]:
        """Compare the activations of the calls inside with those of the same calls in `before`.

        Raises:
            MapMismatchError: a site returns another shape, or runs more or less often.
        """
        with self._handled(self._compare):
            yield
        if any(self._before.values()):
            raise _differing(next(site for site, left in self._before.items() if left))

    def _compare(self, site: Site, x: Tensor) -> None:
        before = self._before.get(site)
        if not before or before[0].shape != x.shape:
            raise _differing(site)
        unsteered = before.pop(0).to(x.device, torch.float32)
        size = partial(_root_mean_square, dim=1 if site.layout == "spatial" else -1)
        unit = size(unsteered).median().clamp(min=torch.finfo(torch.float32).tiny)
        moved = size(x.detach().float() - unsteered) / unit
        self.moves.setdefault(site, []).append(moved.cpu())

    def _handled(self, handle: Callable[[Site, Tensor], object]) -> intercepted:
        """A context in which the activation of each site goes to a function."""
        modules = (*self._gauges, *self._sites)
        return intercepted({module: partial(self._note, module, handle) for module in dict.fromkeys(modules)})

    def _note(self, module: nn.Module, handle: Callable[[Site, Tensor], object], output: Any) -> Any:
        for site in self._gauges.get(module, ()):
            assert site.segment is not None
            if (measured := output_tensor(output, site.segment.output)) is not None and measured.ndim == 3:
                self._measured[site] = measured.shape[1]
        for site in self._sites.get(module, ()):
            if (x := output_tensor(output, site.output)) is not None:
                handle(site, self._own_tokens(site, x))
        return output

    def _own_tokens(self, site: Site, x: Tensor) -> Tensor:
        if site.segment is None or site not in self._measured:
            return x
        return x[:, site.segment.of(x.shape[1], self._measured[site])]


def average(moves: list[Tensor]) -> Tensor:
    """The mean over the calls and rows of a site, without those whose tokens are counted otherwise than at first.

    Example:
        >>> average([torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]])])
        tensor([2., 3.])
    """
    return torch.cat([move for move in moves if move.shape[1:] == moves[0].shape[1:]]).mean(0)


def in_picture(moves: Moves, height: int, width: int) -> Tensor | None:
    """Where in a picture a map moves it: the mean over all sites that keep its positions, ``[height, width]``.

    Args:
        moves: of sites of a diffusion model.
        height, width: of the latent; tokens may join 2 x 2 of its positions, or more.

    Returns:
        None if no site keeps the positions.

    Example:
        >>> site = Site("model", "0", None, "tokens", 2)
        >>> in_picture({site: [torch.tensor([[0.0, 1.0, 0.0, 1.0]])]}, 2, 2)
        tensor([[0., 1.],
                [0., 1.]])
    """
    grids: list[Tensor] = []
    for site, calls in moves.items():
        values = average(calls)
        if values.ndim == 1:
            sizes = [(height // side, width // side) for side in (1, 2, 4, 8)]
            size = next((size for size in sizes if size[0] * size[1] == len(values)), None)
            # There may be as many tokens of text.
            if size is None or any(word in site.name for word in _TEXT_STREAMS):
                continue
            values = values.view(size)
        if values.ndim >= 2:
            values = values.flatten(0, -3).mean(0) if values.ndim > 2 else values
            grids.append(interpolate(values[None, None], (height, width), mode="nearest")[0, 0])
    return torch.stack(grids).mean(0) if grids else None


def _root_mean_square(x: Tensor, dim: int) -> Tensor:
    return x.square().mean(dim).sqrt()


def _differing(site: Site) -> MapMismatchError:
    return MapMismatchError(
        f"The model computes other activations at {site.key} when it is steered, so they cannot be compared; probe a "
        "single call of the model."
    )
