"""An extension of Griffe: shows the examples of docstrings, and their literal blocks, as code on the API pages."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object


class Examples(Extension):
    """Renames the section ``Example:``, which Griffe does not know as code, and ends ``::`` in one colon."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Change the docstring of an object that was loaded."""
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(text: str) -> str:
    """A docstring as the site shows it.

    Example:
        >>> as_markdown("As follows::" + chr(10) * 2 + "Example:")
        'As follows:\\n\\nExamples:'
    """
    return re.sub(r"::$", ":", re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE), flags=re.MULTILINE)
