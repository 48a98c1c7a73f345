"""The exceptions of the library.

Every error is one or two plain sentences: what is wrong, with which file, site or setting, and what to do::

    ValueError
    └── MapError              anything below; catch this one to catch them all
        ├── MapFileError      a map file, prompt set or folder that cannot be read or written
        ├── MapMismatchError  a map that does not fit the model, or had no effect on it
        └── FitError          prompts, settings or a model from which no map can be fitted
            ├── NotDifferentiableError    a model that no gradient passes, or no memory for the gradient
            └── ProcessError              another process of the same fit failed, ended, or does not answer
"""

# What to do about a damaged file.
AGAIN = "download or save it again."


class MapError(ValueError):
    """Base class of all errors of this library; raised directly for invalid arguments, such as a NaN strength."""


class MapFileError(MapError):
    """A file that cannot be read or written, or whose content is not what it should be."""


class MapMismatchError(MapError):
    """A map that does not fit the model, or that had no effect although it should have acted."""


class FitError(MapError):
    """Prompts, settings or a model from which no map can be fitted."""


class NotDifferentiableError(FitError):
    """A map cannot be refined: no gradient passes the model, or memory does not hold it. It can still be fitted.

    Attributes:
        reason: the first part of the message.
    """

    def __init__(self, reason: str, advice: str) -> None:
        super().__init__(f"{reason}; {advice}.")
        self.reason = reason


class ProcessError(FitError):
    """Another process of the same fit failed, ended, or does not answer."""


def first_line(error: Exception) -> str:
    """The first line of another library's error, to be appended to a message."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(".:") + "."
