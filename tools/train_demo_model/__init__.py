"""Trains the demo model; runs as ``python -m tools.train_demo_model``."""

from act_core.cli.main import quiet_libraries

quiet_libraries()
