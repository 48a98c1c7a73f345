"""Run by the host's own Python: imports the host and the pack once, then runs other scripts, each in a fork of its own.

Reads one JSON list a line: the script, its arguments, the file for what it prints, and its time limit in seconds.
Answers each with its exit status.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import sys
import threading
import time

import inside

# isort: split
import act_pack.nodes  # noqa: F401  # pyright: ignore[reportUnusedImport]


def run(script: str, arguments: list[str], output: str) -> None:
    """What a process that runs only this script would do."""
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = [script, str(inside.HOST), *arguments]
    inside.ARGUMENTS = arguments
    sys.path.insert(0, os.path.dirname(script))
    runpy.run_path(script, run_name="__main__")


def waited(process: int, seconds: float) -> int:
    """The exit status of a process, which is killed when its time is over."""
    end = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            os.kill(process, signal.SIGKILL)
            end = float("inf")
        time.sleep(0.02)


def main() -> None:
    # Threads do not survive a fork, and the locks that they hold stay locked.
    assert threading.active_count() == 1
    print("ready", flush=True)
    for line in sys.stdin:
        script, arguments, output, seconds = json.loads(line)
        process = os.fork()
        if not process:
            run(script, arguments, output)
            return
        print(waited(process, seconds), flush=True)


if __name__ == "__main__":
    main()
