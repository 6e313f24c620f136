"""Messages on a pipe: a JSON header and raw bytes, each with its length before it."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import IO, Any

LENGTHS = struct.Struct(">QQ")
HEADER = 64 * 2**20  # bytes; more is no message of ours


def write(stream: IO[bytes], header: Mapping[str, Any], *payload: memoryview | bytes) -> None:
    """Sends one message; OSError where the other end has gone."""
    said = json.dumps(header).encode()
    stream.write(LENGTHS.pack(len(said), sum(len(part) for part in payload)))
    stream.write(said)
    for part in payload:
        stream.write(part)
    stream.flush()


def read(stream: IO[bytes]) -> tuple[dict[str, Any], bytes] | None:
    """The next message; None where the other end has gone, in the midst of one too."""
    lengths = exactly(stream, LENGTHS.size)
    if lengths is None:
        return None
    header, payload = LENGTHS.unpack(lengths)
    if header > HEADER:
        return None
    said = exactly(stream, header)
    content = None if said is None else exactly(stream, payload)
    return None if said is None or content is None else (json.loads(said), content)


def exactly(stream: IO[bytes], count: int) -> bytes | None:
    found = stream.read(count)
    return found if len(found) == count else None
