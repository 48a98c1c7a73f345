"""Loads models with interrupts that no library swallows, and with errors in one sentence."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from ..errors import MapError, first_line
from ..interrupts import interruptible


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
