"""Defers Ctrl-C while a model is being patched or restored.

Python may raise `KeyboardInterrupt` between any two instructions, even in the middle of the clean-up that restores a
model. Here the interrupt waits until the model is restored::

    begin() ... end()     in between, our SIGINT handler is installed
    @critical             an interrupt that arrives inside such a function, or inside what it calls, waits for `end`
    deferred()            the same for a block: it runs to its end, then the interrupt is raised
    interruptible()       a block that an interrupt ends even if a library swallows the exception

A function that is marked with `critical` is protected from its very first instruction, provided that `begin` was
called before. So clean-up that must never be skipped belongs into an ``__exit__``: derive from `Restoring`, or write
it in the same form.

Inside any such block, as inside `act_core.interception.intercepted` and `act_core.steer`, a ``finally`` clause can use
`deferred`. Create the object before the ``try``, so that no instruction lies between the two.

Python runs signal handlers only in the main thread, so in other threads all of this does nothing. It also does nothing
if the program has installed its own SIGINT handler, which is never replaced.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any, TypeVar

_Function = TypeVar("_Function", bound=Callable[..., Any])

_critical: set[CodeType] = set()


class _State:
    """State of the main thread.

    Attributes:
        open: number of `begin` calls without their `end`.
        deferring: number of `deferred` blocks that are running.
        pending: whether an interrupt has arrived and has not been raised yet.
        raised: number of interrupts that our handler has raised so far.
    """

    open = 0
    deferring = 0
    pending = False
    raised = 0


def critical(function: _Function) -> _Function:
    """Mark a function that an interrupt must not leave half done.

    It calls `end` (or `raise_deferred`) itself, where the interrupt may be raised.

    Example:
        >>> @critical
        ... def restore() -> str:
        ...     return "restored"
        >>> restore()
        'restored'
    """
    _critical.add(function.__code__)
    return function


def begin() -> bool:
    """Replace Python's SIGINT handler with ours, until `end` is called with the returned value.

    Returns:
        Whether there is anything to end: False outside the main thread, and where SIGINT has another handler.
    """
    if threading.current_thread() is not threading.main_thread():
        return False
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:
        _State.pending = False
        try:
            signal.signal(signal.SIGINT, _on_interrupt)
        except ValueError:  # an interpreter that is embedded in a thread of another program
            return False
    elif handler is not _on_interrupt:
        return False
    _State.open += 1
    return True


def end(began: bool) -> None:
    """Close one `begin`; after the last one, restore Python's handler.

    Raises:
        KeyboardInterrupt: one has arrived that was deferred, and no other critical function is running.
    """
    if not began:
        return
    _State.open -= 1
    if threading.current_thread() is not threading.main_thread():
        return  # the next block in the main thread tidies up
    if _State.open == 0 and signal.getsignal(signal.SIGINT) is _on_interrupt:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    _raise_unless_inside(sys._getframe(1).f_back)  # pyright: ignore[reportPrivateUsage]


def raise_deferred() -> None:
    """Raise an interrupt that has arrived, from inside a critical function that can undo what it did.

    Raises:
        KeyboardInterrupt: one has arrived that was deferred, and no other critical function is running.
    """
    if _State.pending and threading.current_thread() is threading.main_thread():
        _raise_unless_inside(sys._getframe(1).f_back)  # pyright: ignore[reportPrivateUsage]


class Restoring:
    """Base class of context managers that patch something on entering and restore it whatever happens.

    An interrupt that arrives meanwhile is raised once everything is as it was before.

    Example:
        >>> class lent(Restoring):
        ...     def _patch(self) -> None:
        ...         print("patched")
        ...
        ...     def _restore(self) -> None:
        ...         print("restored")
        >>> with lent():
        ...     print("used")
        patched
        used
        restored
    """

    @critical
    def __enter__(self) -> None:
        self._began = begin()
        try:
            self._patch()
            raise_deferred()
        except BaseException:
            self._restore()
            end(self._began)
            raise

    @critical
    def __exit__(self, *_: object) -> None:
        self._restore()
        end(self._began)

    def _patch(self) -> None:
        """What is done on entering. If it fails half way, `_restore` is called."""
        raise NotImplementedError

    def _restore(self) -> None:
        """Undo what `_patch` has done so far."""
        raise NotImplementedError


class deferred:  # noqa: N801  (used like a function)
    """A context manager that runs its block without interruption, then raises the interrupt, if there was one.

    Example:
        >>> with deferred():
        ...     print("cleaned up")
        cleaned up
    """

    @critical
    def __enter__(self) -> None:
        self._began = begin()
        _State.deferring += self._began

    @critical
    def __exit__(self, *_: object) -> None:
        _State.deferring -= self._began
        end(self._began)


class interruptible:  # noqa: N801  (used like a function)
    """A context manager that Ctrl-C ends even if a library swallows the `KeyboardInterrupt` and continues.

    Importing and loading models runs callbacks, finalizers and bare ``except`` clauses in which Python or a library
    drops the exception.

    Raises:
        KeyboardInterrupt: one was raised inside the block, even if it was swallowed there.

    Example:
        >>> try:
        ...     with interruptible(), contextlib.suppress(KeyboardInterrupt):  # as a library may
        ...         signal.raise_signal(signal.SIGINT)
        ... except KeyboardInterrupt:
        ...     print("interrupted")
        interrupted
    """

    @critical
    def __enter__(self) -> None:
        self._began = begin()
        self._raised = _State.raised

    @critical
    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        was_interrupted = self._began and _State.raised > self._raised
        end(self._began)
        if was_interrupted and not isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt from error


def _on_interrupt(signum: int, frame: FrameType | None) -> None:
    if _State.deferring or _is_inside_critical(frame):
        _State.pending = True
    else:
        _State.raised += 1
        signal.default_int_handler(signum, frame)


def _raise_unless_inside(frame: FrameType | None) -> None:
    if _State.pending and not _State.deferring and not _is_inside_critical(frame):
        _State.pending = False
        _State.raised += 1
        raise KeyboardInterrupt


def _is_inside_critical(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code in _critical:
            return True
        frame = frame.f_back
    return False
