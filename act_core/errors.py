"""The exceptions of the library.

Every error is one plain sentence: what is wrong, with which file, site or setting, and what to do::

    ValueError
    └── MapError              anything below; catch this one to catch them all
        ├── MapFileError      a map file, prompt set or folder that cannot be read or written
        ├── MapMismatchError  a map that does not fit the model, or had no effect on it
        └── FitError          prompts, settings or a model from which no map can be fitted
"""


class MapError(ValueError):
    """Base class of all errors of this library; raised itself for bad arguments, such as a strength that is NaN."""


class MapFileError(MapError):
    """A file that cannot be read or written, or that is not what it should be."""


class MapMismatchError(MapError):
    """A map and a model that do not go together, or a map that was due and had no effect."""


class FitError(MapError):
    """Prompts, settings or a model from which no map can be fitted."""


def first_line(error: Exception) -> str:
    """The first line of another library's error, short enough to end one of our sentences."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(".:") + "."
