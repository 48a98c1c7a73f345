"""The command line, ``act-steering``: one file for each command, its arguments beside it.

Importing this package imports no torch: commands import what they need when they run.
"""

from .load import quiet_libraries
from .main import main

__all__ = ["main", "quiet_libraries"]
