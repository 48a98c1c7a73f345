"""Runs a workflow in API form on a ComfyUI that is running, and fetches its pictures; Python's standard library only.

python run_headless.py api/style_slider.json --strength 0.6 --server http://127.0.0.1:8188
"""

from __future__ import annotations

import argparse
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any


def call(url: str, body: dict[str, Any] | None = None) -> bytes:
    """GET, or POST where there is a body."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.read()
    except urllib.error.HTTPError as error:  # ComfyUI says in the body which input of which node it does not take
        raise SystemExit(f"{url}: {error} {error.read().decode()}") from error
    except urllib.error.URLError as error:
        raise SystemExit(f"{url} does not answer ({error.reason}); is ComfyUI running there?") from error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workflow", type=Path, help="in API form")
    parser.add_argument("--strength", type=float, help="of every Apply ACT Steering node")
    parser.add_argument("--server", default="http://127.0.0.1:8188")
    parser.add_argument("--out", type=Path, default=Path())
    args = parser.parse_args()

    args.out.mkdir(parents=True, exist_ok=True)
    prompt = json.loads(args.workflow.read_text("utf-8"))
    for node in prompt.values():
        if node["class_type"] == "ApplyACTSteering" and args.strength is not None:
            node["inputs"].update(strength=args.strength, strength_clip=args.strength)
    number = json.loads(call(f"{args.server}/prompt", {"prompt": prompt}))["prompt_id"]
    while not (history := json.loads(call(f"{args.server}/history/{number}"))):
        time.sleep(0.2)
    ended = history[number]
    for kind, message in ended["status"]["messages"]:
        if kind == "execution_error":
            raise SystemExit(f"{message['node_type']}: {message['exception_message'].strip()}")
        if kind == "execution_interrupted":
            raise SystemExit("The run was interrupted.")
    for output in ended["outputs"].values():
        for image in output.get("images", ()):
            if image["type"] == "output":
                picture = call(f"{args.server}/view?{urllib.parse.urlencode(image)}")
                (args.out / image["filename"]).write_bytes(picture)
                print(args.out / image["filename"])


if __name__ == "__main__":
    main()
