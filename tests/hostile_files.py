"""Files of other tools as tests build them, ways to damage them, and limits on what reading them may do."""

from __future__ import annotations

import contextlib
import io
import random
import resource
import struct
import sys
import zipfile
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from map_files import assert_is_a_sentence
from torch import Tensor

from act_core import MapError
from act_core.interop.importing import import_map

# Reading a file of a few kilobytes needs far less.
ALLOWED_BYTES = 256 << 20
_STATUS = "/proc/self/statm"
# Values at which lengths, counts and types are cut short, overflow or change their meaning.
_EXTREMES = (0, 1, 127, 128, 255, 65535, 1 << 30, 2**31 - 1, 1 << 31, 2**32 - 1, 2**63 - 1, 2**64 - 1)


def import_refused(path: Path, *words: str, **arguments: Any) -> str:
    """The sentence with which an import is refused, which contains these words."""
    arguments.setdefault("architecture", "llama")
    with limited_memory(), pytest.raises(MapError) as caught:
        import_map(path, **arguments)
    text = str(caught.value)
    assert_is_a_sentence(caught.value, path)
    for word in words:
        assert word in text
    return text


def torch_bytes(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def rezipped(data: bytes, changes: Mapping[str, bytes | None], method: int = zipfile.ZIP_STORED) -> bytes:
    """An archive with other content in entries whose names end so; None leaves one out."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(out, "w", method) as changed:
        for entry in archive.infolist():
            found = [end for end in changes if entry.filename.endswith(end)]
            content = changes[found[0]] if found else archive.read(entry)
            if content is not None:
                changed.writestr(entry.filename, content)
    return out.getvalue()


def _text(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text.encode())) + text.encode()


def hostile_pickles() -> dict[str, bytes]:
    """Sound opcodes that describe more than their bytes hold: each of a few bombs in each place of a pickle.

    A program that hashes, compares, prints or walks one of them crashes, runs for ever or fills the memory.
    """
    times = range(28)  # 2^28 items in 200 bytes
    bombs = {
        "deep tuple": b")" + b"\x85" * 300_000,
        "deep list": b"]" * 5000 + b"a" * 4999,
        "doubled tuple": b")" + b"".join(b"q%ch%c\x86" % (n, n) for n in times),
        "doubled list": b"]" + b"".join(b"q%c](h%ch%ce" % (n, n, n) for n in times),
        "list in itself": b"]q\x00h\x00a",
        "tuple in itself": b"]q\x00(h\x00ta",
    }
    rebuild, storage = b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nFloatStorage\n"
    places = {
        "key": b"}%sNs.",
        "one of two keys": b"}(%sNK\x01Nu.",
        "vector": b"}K\x01%ss.",
        "kind of layer": b"}" + _text("layer_type") + b"%ss.",
        "vectors": b"}" + _text("layer_activations") + b"%ss.",
        "hook": b"}(" + _text("net.w1") + b"%s" + _text("net.b1") + b"%su.",
        "support": b"}(" + _text("auroc") + b"N" + _text("quantiles_src") + b"%su.",
        "whole": b"%s.",
        "function": b"%s)R.",
        "arguments": rebuild + b"%sR.",
        "shape": rebuild + b"(NK\x00%s)NNtR.",
        "dictionary": b"ccollections\nOrderedDict\n%s\x85R.",
        "attributes": b"ccollections\nOrderedDict\n)R%sb.",
        "name of storage": b"(" + _text("storage") + storage + b"%s" + _text("cpu") + b"K\x01tQ.",
        "place of storage": b"%sQ.",
    }
    crossed = {
        f"{bomb} as {place}": b"\x80\x02" + frame.replace(b"%s", content)
        for bomb, content in bombs.items()
        for place, frame in places.items()
    }
    return {**crossed, "many lists": b"\x80\x02(" + b"]" * 500_000 + b"t."}


def gguf_bytes(
    vectors: Mapping[str, Tensor],
    values: Mapping[str, str] | None = None,
    *,
    version: int = 3,
    tensors: int | None = None,
    keys: int | None = None,
    kind: int = 0,
    shape: Sequence[int] | None = None,
    overlapping: bool = False,
) -> bytes:
    """A GGUF file written by the format's description rather than by the code under test, with any field wrong."""
    if values is None:
        values = {"general.architecture": "controlvector", "controlvector.model_hint": "llama"}

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    counts = (len(vectors) if tensors is None else tensors, len(values) if keys is None else keys)
    head = b"GGUF" + struct.pack("<IQQ", version, *counts)
    for name, value in values.items():
        head += text(name) + struct.pack("<I", 8) + text(value)
    body = b""
    for name, vector in vectors.items():
        sizes = list(vector.shape) if shape is None else shape
        head += (
            text(name)
            + struct.pack(f"<I{len(sizes)}Q", len(sizes), *reversed(sizes))
            + struct.pack("<IQ", kind, 0 if overlapping else len(body))
        )
        data = vector.numpy().astype("<f4").tobytes()
        if not (overlapping and body):
            body += data + bytes(-len(data) % 32)
    return head + bytes(-len(head) % 32) + body


def npy_bytes(header: str, data: bytes = b"") -> bytes:
    """A file of numpy with any header."""
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def mutated(data: bytes, seed: int) -> bytes:
    """A damaged copy: bits flipped, bytes replaced, numbers made extreme, parts cut out, doubled or swapped."""
    rng = random.Random(seed)
    damaged = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        if not damaged:
            break
        at = rng.randrange(len(damaged))
        length = rng.choice((1, 2, 4, 8, 32, 200))
        match rng.randrange(8):
            case 0:
                damaged[at] ^= 1 << rng.randrange(8)
            case 1:
                damaged[at] = rng.randrange(256)
            case 2 | 3:
                size = rng.choice((1, 2, 4, 8))
                number = rng.choice(_EXTREMES) & ((1 << 8 * size) - 1)
                damaged[at : at + size] = number.to_bytes(size, "little")
            case 4:
                del damaged[at : at + length]
            case 5:
                damaged[at:at] = damaged[at : at + length]
            case 6:
                other = rng.randrange(len(damaged))
                damaged[at : at + length] = damaged[other : other + length]
            case _:
                del damaged[at:]
    return bytes(damaged)


@contextlib.contextmanager
def limited_memory(allowed: int = ALLOWED_BYTES) -> Generator[None]:
    """In the block the process may not reserve more than this beyond what it has; not even untouched memory."""
    pages = int(Path(_STATUS).read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + allowed, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


class _Watch:
    """What the interpreter's audit events report while a folder is watched."""

    folder: Path | None = None
    seen: list[str] = []  # noqa: RUF012  (one hook for the whole process, which cannot be removed)
    installed = False


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _Watch.folder is None:
        return
    if event in ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect", "pickle.find_class"):
        _Watch.seen.append(f"{event} {arguments[:2]}")
    elif event == "open" and isinstance(arguments[0], str) and arguments[0] != _STATUS:
        opened = Path(arguments[0]).resolve()
        # Python and its packages import parts of themselves when they are first used.
        if not opened.is_relative_to(_Watch.folder) and opened.suffix not in (".py", ".pyc"):
            _Watch.seen.append(f"open {opened}")


@contextlib.contextmanager
def confined(folder: Path) -> Generator[None]:
    """In the block no program may be run, nothing unpickled by name, and no file opened outside the folder."""
    if not _Watch.installed:
        sys.addaudithook(_audit)
        _Watch.installed = True
    _Watch.seen.clear()
    _Watch.folder = folder.resolve()
    try:
        yield
    finally:
        _Watch.folder = None
    assert not _Watch.seen, _Watch.seen[:5]
