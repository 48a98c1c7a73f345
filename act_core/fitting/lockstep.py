"""The lockstep walk: many micro-batches pass the same sites together, one at a time.

Each micro-batch runs in a thread of its own. Only one of them moves at any moment: the scheduler hands it a baton
and takes it back at the next site. When all stand at a site, the scheduler has every prompt's activation there,
decides on the transport, and sends all of them on through it. One forward pass so does what otherwise takes
one pass for each site.
"""

from __future__ import annotations

import contextvars
import threading
from collections import Counter
from collections.abc import Callable, Generator, Sequence, Set
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..components import Component
from ..displacement import displace_at
from ..errors import FitError
from ..interception import intercepted, output_tensors, submodules, with_output
from ..settings import Interval, Spatial
from ..sites import Site
from ..transport import Transport
from .pooling import Values, extremes, pool
from .samples import MicroBatch, Side


class _Abandoned(BaseException):
    """Unwinds a worker whose walk is over. Not an Exception, so that no model code swallows it."""


class _Worker:
    """One micro-batch on its way, in a thread of its own."""

    def __init__(self, batch: MicroBatch, side: Side, resume_state: Callable[[], Any]) -> None:
        self.batch = batch
        self.side: Side = side
        self.position = -1
        self.passed = Counter[str]()
        self.values: Values | None = None
        self.error: BaseException | None = None
        self.abandoned = False
        self._resume_state = resume_state
        self._go = threading.Semaphore(0)
        self._stopped = threading.Semaphore(0)
        # A copied context, since progress bars and the like are context variables.
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._main,), daemon=True, name="act-walk")
        self._thread.start()

    def _main(self) -> None:
        self._go.acquire()
        try:
            if not self.abandoned:
                with self._resume_state():
                    self.batch.run()
        except _Abandoned:
            return
        except BaseException as error:  # noqa: BLE001  (the scheduler raises it in the caller's thread)
            self.error = error
        finally:
            self._stopped.release()

    def advance(self) -> None:
        """Let it run to the next site, from the scheduler's thread.

        Raises:
            BaseException: whatever ended its run.
        """
        self.values = None
        self._go.release()
        self._stopped.acquire()
        if self.error is not None:
            # Not kept: the traceback holds the activations of the failed run.
            error, self.error = self.error, None
            try:
                raise error
            finally:
                del error

    def wait_at_site(self, values: Values) -> None:
        """Stand still until the scheduler sends it on, from its own thread."""
        if self.abandoned:  # the model runs on while it unwinds
            raise _Abandoned
        self.values = values
        self.position += 1
        self._stopped.release()
        self._go.acquire()
        if self.abandoned:
            raise _Abandoned

    def is_current_thread(self) -> bool:
        return self._thread is threading.current_thread()

    def abandon(self) -> None:
        self.abandoned = True
        self._go.release()

    def join(self) -> None:
        self._thread.join()


class Walk:
    """Source and target micro-batches walking past the sites of a model in lockstep.

    Args:
        components: parts of the pipeline that hold the sites.
        sites: in execution order.
        source, target: micro-batches of either side.
        moved: sides that are moved by the transports as they walk on; empty for a simultaneous fit.
        keep: which intervals of the source's values to keep, if any.
        spatial: rule for feature maps.
    """

    def __init__(
        self,
        components: Sequence[Component],
        sites: Sequence[Site],
        source: Sequence[MicroBatch],
        target: Sequence[MicroBatch],
        *,
        moved: Set[Side],
        keep: Interval | None,
        spatial: Spatial,
    ) -> None:
        self._components = {component.name: component for component in components}
        self._sites = sites
        self._index = {site.key: index for index, site in enumerate(sites)}
        sides: dict[Side, Sequence[MicroBatch]] = {"source": source, "target": target}
        self._batches: list[tuple[MicroBatch, Side]] = [(b, side) for side, batches in sides.items() for b in batches]
        self._moved = moved
        self._keep = keep
        self._spatial: Spatial = spatial
        self._transports: list[Transport] = []
        self._running: _Worker | None = None

    def steps(self) -> Generator[tuple[Site, dict[Side, list[Values]], Callable[[Transport], None]], None, None]:
        """At each site: the site, the values of both sides, and a function that takes the transport.

        The transport must be given before the next step. Closing the iterator, or any error, ends all
        micro-batches and puts the model back.
        """
        state = _thread_state()
        with intercepted(self._handlers()):
            workers: list[_Worker] = []
            try:
                for batch, side in self._batches:
                    workers.append(_Worker(batch, side, state))
                for index, site in enumerate(self._sites):
                    values: dict[Side, list[Values]] = {"source": [], "target": []}
                    for worker in workers:
                        self._running = worker
                        worker.advance()
                        if worker.values is None or worker.position != index:
                            raise FitError(f"Some prompts never passed site {site.key}; choose other sites.")
                        values[worker.side].append(worker.values)
                    yield site, values, self._transports.append
            finally:
                for worker in workers:
                    worker.abandon()
                for worker in workers:
                    worker.join()

    def _handlers(self) -> dict[nn.Module, Callable[[Any], Any]]:
        by_module: dict[nn.Module, list[Site]] = {}
        modules = {name: submodules(component.module) for name, component in self._components.items()}
        for site in self._sites:
            by_module.setdefault(modules[site.component][site.name], []).append(site)
        return {module: partial(self._pass, sites) for module, sites in by_module.items()}

    def _pass(self, sites: Sequence[Site], output: Any) -> Any:
        for site in sites:
            tensor = output_tensors(output).get(site.output)
            if tensor is not None:
                output = with_output(output, site.output, self._visit(site, tensor))
        return output

    def _visit(self, site: Site, x: Tensor) -> Tensor:
        worker, index = self._running, self._index[site.key]
        if worker is None or not worker.is_current_thread():
            return x  # somebody else runs the model meanwhile, such as a progress callback that shows a preview
        if worker.position < index:
            if x.shape[0] == worker.batch.rows:
                worker.passed[site.key] += 1
            if worker.passed[site.key] <= self._components[site.component].passes.get(site.name, 0):
                return x
            if x.shape[0] != worker.batch.rows or index != worker.position + 1:
                raise FitError(f"Site {site.key} is not passed by all prompts alike; choose other sites.")
            worker.wait_at_site(self._measure(site, x, worker))
        # A later pass of the same site, as in a second denoising step, is moved and not measured again.
        if worker.side not in self._moved:
            return x
        t = self._transports[index]
        return displace_at(x, site.layout, self._spatial, t.omega - 1, t.beta, t.low, t.high)

    def _measure(self, site: Site, x: Tensor, worker: _Worker) -> Values:
        mask = worker.batch.mask
        if site.layout == "tokens" and mask is not None and mask.shape[1] != x.shape[1]:
            raise FitError(f"Site {site.key} has other tokens than its prompt; choose other sites.")
        mask = mask if mask is None else mask.to(x.device)
        pooled = pool(x, site.layout, mask)
        interval = None
        if self._keep is not None and worker.side == "source":
            means = site.layout == "spatial" and self._spatial == "shift"
            if self._keep == "pooled" or means:
                interval = pooled.amin(0), pooled.amax(0)
            else:
                interval = extremes(x, site.layout, mask)
        return Values(pooled, interval, x.dtype)


def _thread_state() -> Callable[[], Any]:
    """A context manager that puts another thread into this thread's inference mode, autocast and stream."""
    inference, grad = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
    autocasts = [
        (device, torch.get_autocast_dtype(device))
        for device in ("cpu", "cuda", "mps", "xpu")
        if torch.is_autocast_enabled(device)
    ]
    cached = torch.is_autocast_cache_enabled()
    stream = torch.cuda.current_stream() if torch.cuda.is_available() else None

    @contextmanager
    def resumed() -> Generator[None, None, None]:
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(inference))
            stack.enter_context(torch.set_grad_enabled(grad))
            for device, dtype in autocasts:
                stack.enter_context(torch.autocast(device, dtype=dtype, cache_enabled=cached))
            if stream is not None:
                stack.enter_context(torch.cuda.stream(stream))
            yield

    return resumed
