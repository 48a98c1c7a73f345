"""The one error of the library."""


class MapError(ValueError):
    """What is wrong, with which file, site or setting, and what to do, in one plain sentence."""
