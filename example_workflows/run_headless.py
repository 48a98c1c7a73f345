"""Run a workflow on a ComfyUI that is already running, and download its pictures. Needs only Python itself.

python run_headless.py api/style_slider.json --strength 0.6 --server http://127.0.0.1:8188
"""

from __future__ import annotations

import argparse
import http.client
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

_EXPORT = "In ComfyUI choose File > Export (API) and give the file that it saves."
_STRANGER = "does not answer as ComfyUI does; check the address and the port."
# Nodes that apply a map, and their strengths.
_STRENGTHS = {
    "ApplyACTSteering": ("strength", "strength_clip"),
    "ACTMapLoader": ("strength", "strength_clip"),
    "ApplyACTSteeringCLIP": ("strength_clip",),
    "CreateACTHook": ("strength",),
    "ACTSteeredText": ("strength",),
}


def call(url: str, body: dict[str, Any] | None = None) -> bytes:
    """GET, or POST if there is a body."""
    data = None if body is None else json.dumps(body).encode()
    try:
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            return answer.read()
    except urllib.error.HTTPError as error:  # the body names the node and the input that ComfyUI refuses
        raise SystemExit(f"{url}: {error} {error.read().decode()}") from error
    except urllib.error.URLError as error:
        raise SystemExit(f"{url} does not answer ({error.reason}); is ComfyUI running there?") from error
    except (ConnectionError, http.client.IncompleteRead) as error:
        raise SystemExit(f"{url} broke off the connection; does ComfyUI still run there?") from error
    except (ValueError, http.client.InvalidURL) as error:
        raise SystemExit(f"{url} is not an address: {error}. Give one such as http://127.0.0.1:8188.") from error


def call_json(url: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """As `call`, for an answer that is a JSON object."""
    try:
        answer = json.loads(call(url, body))
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise SystemExit(f"{url} {_STRANGER}")
    return answer


def load_workflow(path: Path) -> dict[str, Any]:
    """A workflow in API form: nodes by id; also from a file that wraps them in ``{"prompt": ...}``."""
    try:
        workflow = json.loads(path.read_text("utf-8-sig"))
    except OSError as error:
        raise SystemExit(f"{path} cannot be read: {error.strerror}. {_EXPORT}") from error
    except (ValueError, RecursionError) as error:
        raise SystemExit(f"{path} is empty or not a JSON file. {_EXPORT}") from error
    if isinstance(workflow, dict) and isinstance(workflow.get("prompt"), dict):
        workflow = workflow["prompt"]
    if isinstance(workflow, dict) and isinstance(workflow.get("nodes"), list):
        raise SystemExit(f"{path} is a workflow as the editor saves it, which cannot be run directly. {_EXPORT}")
    nodes = list(workflow.values()) if isinstance(workflow, dict) else []
    if not nodes or not all(
        isinstance(node, dict) and "class_type" in node and isinstance(node.get("inputs"), dict) for node in nodes
    ):
        raise SystemExit(f"{path} is not a workflow in API form. {_EXPORT}")
    return workflow


def set_strength(workflow: dict[str, Any], strength: float) -> None:
    """Set every strength at which a node applies a map, or the number node that it is connected to."""
    found = False
    for node in workflow.values():
        for name in _STRENGTHS.get(node["class_type"], ()):
            value = node["inputs"].get(name)
            source = workflow.get(value[0], {}) if isinstance(value, list) else {}
            if not isinstance(value, list):
                node["inputs"][name] = strength
            elif source.get("class_type") == "PrimitiveFloat":
                source["inputs"]["value"] = strength
            else:
                continue  # computed by another node
            found = True
    if not found:
        raise SystemExit("No node of this workflow takes --strength.")


def run(server: str, workflow: dict[str, Any]) -> dict[str, Any]:
    """Queue a workflow and wait for it; returns the outputs of its nodes."""
    url = f"{server}/prompt"
    number = call_json(url, {"prompt": workflow}).get("prompt_id")
    if number is None:
        raise SystemExit(f"{url} {_STRANGER}")
    while not (history := call_json(f"{server}/history/{number}")):
        time.sleep(0.2)
    ended = history[number]
    for kind, message in ended["status"]["messages"]:
        if kind == "execution_error":
            raise SystemExit(f"{message['node_type']}: {message['exception_message'].strip()}")
        if kind == "execution_interrupted":
            raise SystemExit("The run was interrupted.")
    return ended["outputs"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workflow", type=Path, help="a workflow in API form")
    parser.add_argument("--strength", type=float, help="of every map that the workflow applies")
    parser.add_argument("--server", default="http://127.0.0.1:8188", help="(%(default)s)")
    parser.add_argument("--out", type=Path, default=Path(), help="folder for the pictures (the current one)")
    args = parser.parse_args()

    workflow, server = load_workflow(args.workflow), args.server.rstrip("/")
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SystemExit(f"{args.out} is not a folder for pictures: {error.strerror}. Change --out.") from error
    if args.strength is not None:
        set_strength(workflow, args.strength)
    for output in run(server, workflow).values():
        for image in output.get("images", ()):
            if image["type"] == "output":
                picture = call(f"{server}/view?{urllib.parse.urlencode(image)}")
                (args.out / image["filename"]).write_bytes(picture)
                print(args.out / image["filename"])


if __name__ == "__main__":
    main()
