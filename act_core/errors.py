"""The one error of the library."""


class MapError(ValueError):
    """What is wrong, with which file, site or setting, and what to do, in one plain sentence."""


def first_line(error: Exception) -> str:
    """What an error of another library says, short enough to end a sentence of ours."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(".:") + "."
