"""Runs the benchmarks of ``docs/evidence.md`` again, with the options that their saved results were made with.

    python -m tools.make_evidence

Hours on two cores. Files that are not part of the repository, such as a data set, are expected in the current folder.
"""

from __future__ import annotations

import shlex
import subprocess
import sys

from .make_tables import MARK
from .results import ROOT, load_result

PAGE = ROOT / "docs" / "evidence.md"


def benchmarks(page: str) -> list[str]:
    """The benchmarks whose tables a page shows, in its order.

    Example:
        >>> benchmarks("<!-- table: styles.pairs --><!-- end --><!-- table: summary.missed --><!-- end -->")
        ['styles']
    """
    names = (mark["name"].partition(".")[0] for mark in MARK.finditer(page) if mark["name"])
    return [name for name in dict.fromkeys(names) if name != "summary"]


def main() -> int:
    """Run them; the exit status."""
    for name in benchmarks(PAGE.read_text("utf-8")):
        _, *command = shlex.split(load_result(name).command)  # python is that of this environment
        print(f"python {shlex.join(command)}", flush=True)
        # 1: a target is not met, which the tables report.
        if subprocess.run([sys.executable, *command], check=False).returncode not in (0, 1):
            print(f"{name} did not end; the results of the others before it are saved.", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
