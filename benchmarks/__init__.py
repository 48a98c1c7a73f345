"""Measurements behind every figure that the project states; each module runs as ``python -m benchmarks.NAME``."""

from act_core.cli.main import quiet_libraries

# Before a module imports them: their hints are no part of a report.
quiet_libraries()
