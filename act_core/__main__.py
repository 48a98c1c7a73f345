"""``python -m act_core`` is the command line, ``act-steering``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
