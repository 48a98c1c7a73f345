"""Refines a map on the model's own loss: the coefficients of its sites follow the gradient, and nothing else does.

Where `fit` reads the coefficients off the activations of two sets of samples, this needs one set, a loss, and a model
that can be differentiated::

    for each step
        draw a batch of samples
        loss of the model, while every site adds `gain * a + offset`      intercepted: _Adjusted
        its gradient with respect to gains and offsets                    frozen: no weight gets any
        one step of Adam
    every few steps
        loss on the samples that were held back; the best coefficients so far are kept

The result is an ordinary map. Scaling activations by learned vectors is the form of (IA)^3 (Liu et al., arXiv
2205.05638, section 3.3).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import fields, replace
from typing import Any, Generic

import torch
from torch import Tensor, nn

from ..discovery import discover
from ..displacement import displace_at
from ..errors import FitError, first_line
from ..interception import intercepted, output_tensors, submodules, with_output
from ..interrupts import raise_deferred
from ..maps import ActMap
from ..settings import FitMethod, RefineSettings, Spatial
from ..sites import Site
from ..transport import Transport
from .fit import Progress
from .frozen import frozen
from .prepare import check_weights, prepared
from .record import record_of
from .samples import LossModel, Sample

# Every position of a feature map is moved: its mean alone would not follow a texture.
_SPATIAL: Spatial = "pointwise"
_CHECK_EVERY = 10  # steps
# Checks without an improvement after which a refinement ends.
_PATIENCE = 3
# Fewer samples than these are all trained on.
_MIN_HELD_BACK = 2


def _never() -> bool:
    return False


def _no_progress(done: int, total: int, state: str) -> None:
    pass


def refine(
    model: LossModel[Sample],
    samples: Sequence[Sample],
    settings: RefineSettings | None = None,
    *,
    start: ActMap | None = None,
    progress: Progress = _no_progress,
    stop: Callable[[], bool] = _never,
    **changes: Any,
) -> ActMap:
    """Fit a map under which the model's loss on samples is as low as possible.

    Args:
        model: an adapter with a loss, such as `act_core.models.picture_loss.PictureModel`.
        samples: at least two.
        settings: how to refine; the defaults of `RefineSettings` if None.
        start: a map whose coefficients it starts from; those of sites that it lacks start at no change.
        progress: called as ``progress(done, total, state)`` after each step. An exception it raises cancels.
        stop: asked after each step; if True, the refinement ends with the best coefficients so far.
        **changes: individual settings, by their names in `RefineSettings`.

    Raises:
        FitError: samples, sites or settings that cannot be used, weights that are not loaded, a loss that is not finite
            or does not depend on the sites, or a model that is already being fitted.

    Example::

        model = PictureModel(DiffusersModel.from_pretrained("demo_model"))
        act_map = refine(model, load_pictures("my_style"), steps=60)
    """
    settings = _settings(settings or RefineSettings(), changes)
    samples = list(samples)
    model.check_samples(samples)
    components = list(model.components)
    check_weights(components)
    record = record_of(model, FitMethod(spatial=_SPATIAL, seed=settings.seed), components, [], samples)
    roots = list(model.modules.values())
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(prepared(roots))
        stack.enter_context(frozen(roots))
        batch = model.batches(samples[:2], 2)[0]
        sites = discover(components, settings.sites, batch.run, batch.rows)
        refinement = _Refinement(model, sites, settings, start)
        # Some models change activations in place that their gradient needs.
        stack.enter_context(torch.autograd.graph.allow_mutation_on_saved_tensors())
        with torch.enable_grad():
            refinement.run(samples, progress, stop)
    transports = refinement.transports()
    used = {site.component for site in transports}
    base = {name: fingerprint for name, fingerprint in record.base.items() if name in used}
    notes = (*record.notes, *refinement.notes)
    return ActMap(transports, replace(record, fitted_by="refinement", base=base, notes=notes))


def _settings(settings: RefineSettings, changes: dict[str, Any]) -> RefineSettings:
    known = {f.name for f in fields(RefineSettings)}
    for name in changes:
        if name not in known:
            raise FitError(f"A refinement has no setting {name!r}; choose from {', '.join(sorted(known))}.")
    return replace(settings, **changes)


class _Adjusted:
    """Gain and offset of one site, which follow the gradient.

    Offsets are in units of the activation: its root mean square when the site first runs. So one learning rate suits
    sites of every scale.
    """

    def __init__(self, site: Site, start: Transport | None) -> None:
        self.site = site
        self._start = start
        self.gain = torch.zeros(site.channels)
        self.offset = torch.zeros(site.channels)
        self._scale = torch.ones(())
        self._measured = False
        for tensor in (self.gain, self.offset):
            tensor.requires_grad_()

    def measure(self, x: Tensor) -> None:
        """Take the scale and the device from an activation, and the values from the starting map."""
        with torch.no_grad():
            scale = x.float().square().mean().sqrt()
            self._scale = torch.where(scale > 0, scale, 1.0)
            for tensor in (self.gain, self.offset):
                tensor.data = tensor.data.to(x.device)
            if self._start is not None:
                self.gain.copy_(self._start.omega - 1)
                self.offset.copy_(self._start.beta.to(x.device) / self._scale)
        self._measured = True

    def __call__(self, x: Tensor) -> Tensor:
        if not self._measured:
            self.measure(x)
        return displace_at(x, self.site.layout, _SPATIAL, self.gain, self.offset * self._scale)

    def transport(self) -> Transport:
        """What it does now, in float32 on the CPU."""
        with torch.inference_mode(False), torch.no_grad():
            omega, beta = 1 + self.gain, self.offset * self._scale
            return Transport(omega.to("cpu", copy=True), beta.to("cpu", copy=True))


class _Refinement(Generic[Sample]):
    """One refinement: the coefficients, and the best ones so far.

    Attributes:
        notes: what happened, for the record.
    """

    def __init__(
        self, model: LossModel[Sample], sites: Sequence[Site], settings: RefineSettings, start: ActMap | None
    ) -> None:
        self._model = model
        self._settings = settings
        known = {} if start is None else {site.key: t for site, t in start.transports.items()}
        self._adjusted = {site: _Adjusted(site, known.get(site.key)) for site in sites}
        self._best: tuple[float, dict[Site, Transport]] | None = None
        self._since_best = 0
        self.notes: list[str] = []

    def run(self, samples: Sequence[Sample], progress: Progress, stop: Callable[[], bool]) -> None:
        """Follow the gradient."""
        settings = self._settings
        training, held_back = self._divided(samples)
        with intercepted(self._handlers()):
            self._check(held_back)
            parameters = [tensor for one in self._adjusted.values() for tensor in (one.gain, one.offset)]
            optimizer = torch.optim.Adam(parameters, settings.rate)
            done = 0
            for step in range(settings.steps):
                loss = self._follow(self._batch(training, step), step, parameters)
                optimizer.step()
                optimizer.zero_grad()
                done = step + 1
                ends = done == settings.steps or stop()
                if ends or done % _CHECK_EVERY == 0:
                    self._check(held_back)
                    ends = ends or self._since_best >= _PATIENCE
                raise_deferred()
                progress(done, settings.steps, f"loss {loss:.4f}")
                if ends:
                    break
        self.notes.append(f"refined for {done} steps on {len(training)} samples")

    def transports(self) -> dict[Site, Transport]:
        """The best coefficients on the samples that were held back, or the last ones if none were."""
        if self._best is not None:
            return self._best[1]
        return {site: adjusted.transport() for site, adjusted in self._adjusted.items()}

    def _divided(self, samples: Sequence[Sample]) -> tuple[list[Sample], list[Sample]]:
        """Samples to train on, and samples to check on."""
        shuffled = list(samples)
        random.Random(self._settings.seed).shuffle(shuffled)
        count = int(len(samples) * self._settings.held_back)
        return (shuffled[count:], shuffled[:count]) if count >= _MIN_HELD_BACK else (shuffled, [])

    def _batch(self, training: Sequence[Sample], step: int) -> list[Sample]:
        """The samples of a step: each is drawn once before any is drawn again."""
        size = min(self._settings.batch_size, len(training))
        numbers = range(step * size, (step + 1) * size)
        orders: dict[int, list[Sample]] = {}
        for epoch in {number // len(training) for number in numbers}:
            orders[epoch] = list(training)
            random.Random(self._settings.seed + epoch).shuffle(orders[epoch])
        return [orders[number // len(training)][number % len(training)] for number in numbers]

    def _follow(self, batch: Sequence[Sample], step: int, parameters: Sequence[Tensor]) -> float:
        """Put the gradient of a batch into the parameters, in parts that memory holds; returns the loss."""
        generator = torch.Generator().manual_seed(self._settings.seed + step)
        size = min(self._model.max_rows or len(batch), len(batch))
        total = 0.0
        for part in (batch[at : at + size] for at in range(0, len(batch), size)):
            try:
                loss = self._loss(part, generator) * (len(part) / len(batch))
                gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            except torch.OutOfMemoryError as error:
                raise FitError("The gradients do not fit into memory; use smaller pictures.") from error
            except RuntimeError as error:
                raise FitError(
                    f"This model cannot be differentiated here, so no map can be refined ({first_line(error)}); fit "
                    "from prompts instead."
                ) from error
            for parameter, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
            total += float(loss.detach())
        return total

    def _loss(self, batch: Sequence[Sample], generator: torch.Generator) -> Tensor:
        loss = self._model.loss(batch, generator)
        if not bool(loss.isfinite()):
            raise FitError("The loss is not finite; run the model in a wider dtype, or lower the learning rate.")
        return loss

    def _check(self, held_back: Sequence[Sample]) -> None:
        """Keep the coefficients if they are the best so far on the samples that were held back."""
        if not held_back:
            return
        # The same noise at each check, and other noise than that of the steps.
        generator = torch.Generator().manual_seed(self._settings.seed + self._settings.steps)
        size = min(self._model.max_rows or len(held_back), len(held_back))
        with torch.no_grad():
            parts = [held_back[at : at + size] for at in range(0, len(held_back), size)]
            loss = sum(float(self._loss(part, generator)) * len(part) for part in parts) / len(held_back)
        self._since_best += 1
        if self._best is None or loss < self._best[0]:
            self._best = loss, {site: adjusted.transport() for site, adjusted in self._adjusted.items()}
            self._since_best = 0

    def _handlers(self) -> dict[nn.Module, Callable[[Any], Any]]:
        named = {part.name: submodules(part.module) for part in self._model.components}
        places: dict[nn.Module, list[_Adjusted]] = {}
        for site, adjusted in self._adjusted.items():
            places.setdefault(named[site.component][site.name], []).append(adjusted)
        return {module: _handler(adjusted) for module, adjusted in places.items()}


def _handler(adjusted: Sequence[_Adjusted]) -> Callable[[Any], Any]:
    def adjust(output: Any) -> Any:
        for one in adjusted:
            output = with_output(output, one.site.output, one(output_tensors(output)[one.site.output]))
        return output

    return adjust
