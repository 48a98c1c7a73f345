"""The command line, ``act-steering``: one file per command, with its arguments.

Importing this package does not import torch: commands import what they need when they run.
"""

from .load import quiet_libraries
from .main import main

__all__ = ["main", "quiet_libraries"]
