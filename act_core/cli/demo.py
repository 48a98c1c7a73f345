"""``act-steering demo``"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from .arguments import Commands, add_command, command_name
from .load import language_model, quiet_libraries


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "demo", _run, "Fit maps on two small models and watch them work.", "")
    parser.add_argument("--output", type=Path, default=Path("demo_output"), help="folder for the results (%(default)s)")
    parser.set_defaults(model="default", dtype="float32", device="cpu")


def _run(args: argparse.Namespace) -> None:
    args.output.mkdir(parents=True, exist_ok=True)
    # Read when torch is first imported: its threads then sleep while they wait for each other. Beside other busy
    # processes, threads that spin instead take the cores from those that they wait for, and the demo takes ten times as
    # long.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    print("Loading the demo model ...", flush=True)
    quiet_libraries()
    from ..demo.show import show

    show(args.output, command_name(), lambda: language_model(args))
