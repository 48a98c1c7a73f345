"""Clients that lose their connection: the host's websocket and requests, over plain sockets."""

from __future__ import annotations

import base64
import json
import os
import socket
import struct
import uuid
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from tools.comfyui.server import Host

# Closing a socket with this option resets the connection, as if the machine at the other end were gone.
_RESET = struct.pack("ii", 1, 0)


class Client:
    """A page of the host, with its websocket.

    Attributes:
        id: to queue workflows with.
    """

    def __init__(self, host: Host) -> None:
        self.id = uuid.uuid4().hex
        key = base64.b64encode(os.urandom(16)).decode()
        self._socket = _connected(host)
        lines = (
            f"GET /ws?clientId={self.id} HTTP/1.1",
            f"Host: {urlsplit(host.url).netloc}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Key: {key}",
            "Sec-WebSocket-Version: 13",
        )
        self._socket.sendall("\r\n".join((*lines, "", "")).encode())
        self.wait_for("101 Switching Protocols")

    def wait_for(self, text: str) -> None:
        """Read until the host has sent a text."""
        seen = b""
        while text.encode() not in seen:
            received = self._socket.recv(65536)
            assert received, f"the host closed the connection before it sent {text}"
            seen = seen[-len(text) :] + received

    def drop(self) -> None:
        """Lose the connection."""
        _reset(self._socket)


def post_and_drop(host: Host, path: str, body: Mapping[str, Any], *, share: float = 1.0) -> None:
    """Send a request, or the first part of it, and lose the connection before the answer."""
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: {urlsplit(host.url).netloc}\r\nContent-Type: application/json\r\n"
    connection = _connected(host)
    connection.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data[: int(share * len(data))])
    _reset(connection)


def _connected(host: Host) -> socket.socket:
    address = urlsplit(host.url)
    return socket.create_connection((address.hostname or "", address.port or 0), timeout=60)


def _reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    connection.close()
