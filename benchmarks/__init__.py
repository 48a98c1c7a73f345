"""The measurements behind every figure that the project states; each module runs as ``python -m benchmarks.NAME``."""

from act_core.cli.main import quiet_libraries

# Before any module imports these libraries: their hints do not belong in a report.
quiet_libraries()
