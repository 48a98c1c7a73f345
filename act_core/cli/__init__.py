"""The command line, ``act-steering``."""

from .main import main

__all__ = ["main"]
