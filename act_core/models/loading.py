"""Loads models with interrupts that no library swallows, and with errors in one sentence."""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

from ..errors import MapError, first_line


@contextmanager
def interruptible() -> Generator[None, None, None]:
    """Let Ctrl-C end the block even if a library swallows the `KeyboardInterrupt` and continues.

    Importing and loading models runs callbacks, finalizers and bare ``except`` clauses in which Python or a library
    drops the exception. Outside the main thread, which alone receives signals, the block is left alone.

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
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    pressed: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        try:
            before(number, frame)
        except KeyboardInterrupt:
            pressed.append(number)
            raise

    signal.signal(signal.SIGINT, note)
    try:
        yield
    except BaseException as error:
        if pressed and not isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt


@contextmanager
def loading(what: object, advice: str = "") -> Generator[None, None, None]:
    """Turn errors of the model libraries into one sentence, and let Ctrl-C end the block.

    Args:
        what: the file or folder that is loaded.
        advice: what to do about it.

    Raises:
        MapError: the block failed.

    Example:
        >>> with loading("model.gguf"):
        ...     raise KeyError("tokens")
        Traceback (most recent call last):
        ...
        act_core.errors.MapError: model.gguf cannot be loaded: 'tokens'.
    """
    try:
        with interruptible():
            yield
    except MapError:
        raise
    except Exception as error:
        reason = first_line(error)
        raise MapError(f"{what} cannot be loaded: {reason}{advice and f' {advice}'}") from error
