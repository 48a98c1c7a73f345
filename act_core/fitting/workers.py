"""Micro-batches that run in their own threads, one at a time, and wait at each site."""

from __future__ import annotations

import contextvars
import threading
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

import torch

from ..interrupts import Restoring
from .parking import Lot
from .pooling import Values
from .samples import MicroBatch, Side

GaugePlace = tuple[str, str, "int | None"]
THREAD_NAME = "act-walk"


class _Abandoned(BaseException):
    """Unwinds a worker whose walk is over. Not an Exception, so that no model code swallows it."""


class Worker:
    """One micro-batch and the thread that runs it through the model.

    Attributes:
        batch: the samples.
        side: whether they are source or target.
        position: index of the last site that it reached; -1 before the first.
        passed: by site key, how often it has passed the site.
        values: measured at that site; None while it runs and after it has ended.
        gauges: tokens that each gauge returned last, by component, submodule and output; see `Segment`.
    """

    def __init__(
        self,
        batch: MicroBatch,
        side: Side,
        same_state: Callable[[], AbstractContextManager[None]],
        lot: Lot | None = None,
    ) -> None:
        self.batch = batch
        self.side: Side = side
        self.position = -1
        self.passed = Counter[str]()
        self.values: Values | None = None
        self.gauges: dict[GaugePlace, int] = {}
        self._error: BaseException | None = None
        self._abandoned = False
        self._same_state = same_state
        self._lot = lot
        self._go = threading.Semaphore(0)
        self._stopped = threading.Semaphore(0)
        # A copied context, since progress bars and other state may be in context variables.
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._main,), daemon=True, name=THREAD_NAME)

    def start(self) -> None:
        """Start the thread, which waits for `advance`."""
        self._thread.start()

    def advance(self) -> None:
        """Let it run towards the next site; called by the scheduler."""
        self.values = None
        self._go.release()

    def arrive(self) -> None:
        """Wait until it has reached the site; called by the scheduler.

        Raises:
            BaseException: whatever ended its run.
        """
        self._stopped.acquire()
        if self._error is not None:
            # Not kept: the traceback holds the activations of the failed run.
            error, self._error = self._error, None
            try:
                raise error
            finally:
                del error

    def wait_at_site(self, values: Values) -> None:
        """Wait until the scheduler resumes it; called in its own thread."""
        if self._abandoned:  # the model may still run while the exception unwinds
            raise _Abandoned
        if self._lot is not None:
            self._lot.park(keep=values.tensors)
        self.values = values
        self.position += 1
        self._stopped.release()
        self._go.acquire()
        if self._abandoned:
            raise _Abandoned
        if self._lot is not None:
            self._lot.unpark()

    def is_current_thread(self) -> bool:
        """Whether the caller runs in this worker's thread."""
        return self._thread is threading.current_thread()

    def abandon(self) -> None:
        """End its run at the current site."""
        self._abandoned = True
        self._go.release()

    def join(self) -> None:
        """Wait until its thread has ended."""
        if self._thread.ident is not None:
            self._thread.join()

    def _main(self) -> None:
        self._go.acquire()
        try:
            if not self._abandoned:
                with self._same_state(), self._lot or nullcontext():
                    self.batch.run()
        except _Abandoned:
            return
        except BaseException as error:  # noqa: BLE001  (the scheduler raises it in the caller's thread)
            self._error = error
        finally:
            self._stopped.release()


class started(Restoring):  # noqa: N801  (used like a function)
    """A context manager that starts workers, and ends all of them however its block ends.

    Example:
        >>> with started([]):
        ...     pass
    """

    def __init__(self, workers: Sequence[Worker]) -> None:
        self._workers = workers

    def _patch(self) -> None:
        for worker in self._workers:
            worker.start()

    def _restore(self) -> None:
        for worker in self._workers:
            worker.abandon()
        for worker in self._workers:
            worker.join()


def thread_state() -> Callable[[], AbstractContextManager[None]]:
    """Capture this thread's inference mode, autocast, default device and CUDA stream, for another thread to enter.

    Example:
        >>> with torch.inference_mode():
        ...     same_state = thread_state()
        >>> with same_state():
        ...     torch.is_inference_mode_enabled()
        True
    """
    inference, grad = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
    autocasts = [
        (device, torch.get_autocast_dtype(device))
        for device in ("cpu", "cuda", "mps", "xpu")
        if torch.is_autocast_enabled(device)
    ]
    cached = torch.is_autocast_cache_enabled()
    stream = torch.cuda.current_stream() if torch.cuda.is_available() else None
    default = torch.get_default_device()

    @contextmanager
    def resumed() -> Generator[None, None, None]:
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(inference))
            stack.enter_context(torch.set_grad_enabled(grad))
            for device, dtype in autocasts:
                stack.enter_context(torch.autocast(device, dtype=dtype, cache_enabled=cached))
            if stream is not None:
                stack.enter_context(torch.cuda.stream(stream))
            if default.type != "cpu":  # the default of a new thread
                stack.enter_context(default)
            yield

    return resumed
