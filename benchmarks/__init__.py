"""Measurements behind every figure that the project states; each module runs as ``python -m benchmarks.NAME``."""
