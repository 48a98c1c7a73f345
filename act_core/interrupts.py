"""Deferring Ctrl-C while a model is being patched or restored.

Python raises `KeyboardInterrupt` between any two steps of a program, also in the middle of the clean-up that puts a
model back. Here the interrupt waits until the model is whole again::

    begin() ... end()     while this is open, our handler of SIGINT is in place
    @critical             an interrupt that arrives inside such a function, or inside what it calls, waits for `end`
    deferred()            the same for a block: it runs to its end, then the interrupt is raised

A function that is marked with `critical` is protected from its very first instruction, provided that `begin` was
called before. So clean-up that must never be skipped belongs into an ``__exit__`` of this form::

    @critical
    def __enter__(self):
        self._began = begin()
        ...                        # patch the model
        raise_deferred()           # inside a `try` that undoes the patch and calls `end`

    @critical
    def __exit__(self, *_):
        ...                        # restore the model
        end(self._began)           # raises KeyboardInterrupt if one has arrived meanwhile

Inside any such block, as inside `act_core.interception.intercepted` and `act_core.steer`, a ``finally`` clause can use
`deferred`. Make the object before the ``try``, so that no instruction lies between the two.

Python runs signal handlers in the main thread alone, so in other threads all of this does nothing. It also does
nothing where the program has a handler of its own for SIGINT: that one is never replaced.
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
    """Of the main thread.

    Attributes:
        open: calls of `begin` without their `end`.
        deferring: blocks of `deferred` that are running.
        pending: whether an interrupt has arrived that is still to be raised.
    """

    open = 0
    deferring = 0
    pending = False


def critical(function: _Function) -> _Function:
    """Mark a Python function that an interrupt must not leave half done.

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
    """Put our handler in place of Python's own, until `end` is called with what this returns.

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
    """Close one `begin`; after the last one Python's own handler is back.

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


def _on_interrupt(signum: int, frame: FrameType | None) -> None:
    if _State.deferring or _is_inside_critical(frame):
        _State.pending = True
    else:
        signal.default_int_handler(signum, frame)


def _raise_unless_inside(frame: FrameType | None) -> None:
    if _State.pending and not _State.deferring and not _is_inside_critical(frame):
        _State.pending = False
        raise KeyboardInterrupt


def _is_inside_critical(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code in _critical:
            return True
        frame = frame.f_back
    return False
