"""Rewards behind HTTP: bounded in connections, bytes and time; what is wrong with a request is said.

GET / is a page for people, GET /health the same as JSON (503 until all is ready), POST /rewards what is
served, POST /score a request of `wire`. Python's own server does: every request is a few large reads and one
wait, the limits must hold before a body is read, and a reward whose dependencies clash gets no more of them.
"""

from __future__ import annotations

import contextlib
import hmac
import html
import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, final

from promptloop.names import nearest
from promptloop.rewards import wire
from promptloop.rewards.crew import Busy, Crew
from promptloop.rewards.failed import RewardFailed

PIECE = 2**16  # bytes read at once
LOCAL = ("127.0.0.1", "::1", "localhost")


@final
@dataclass(frozen=True)
class Bounds:
    """`largest` request, `bytes` of all requests that are held at once (bodies, and images unpacked),
    `connections` at once, `read` seconds in which a whole request must have come. A request for which there
    is no room waits `hold` seconds, unread, before it is told to come again: its body would be sent in vain.
    """

    largest: wire.Largest = field(default_factory=wire.Largest)
    bytes: int = 512 * 2**20
    connections: int = 256
    read: float = 60.0
    hold: float = 10.0

    def __post_init__(self) -> None:
        if self.bytes < 2 * self.largest.bytes:
            raise ValueError(
                f"{self.bytes} bytes for all requests is less than two times the largest "
                f"({self.largest.bytes}); one would never be let in"
            )


@final
class Service(ThreadingHTTPServer):
    """Serves the crews by name at (host, port); with a `key`, only to who sends it as a bearer token."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        crews: Mapping[str, Crew],
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        bounds: Bounds | None = None,
        key: str = "",
    ) -> None:
        self.bounds = bounds or Bounds()
        if ":" in host:
            self.address_family = socket.AF_INET6
        self.crews, self.key, self.began = dict(crews), key, time.time()
        self.places = threading.BoundedSemaphore(self.bounds.connections)
        self.left, self.changed = self.bounds.bytes, threading.Condition()
        super().__init__((host, port), Exchange)

    @property
    def url(self) -> str:
        host = str(self.server_address[0])
        return f"http://{f'[{host}]' if ':' in host else host}:{self.server_address[1]}"

    def process_request(self, request: Any, client_address: Any) -> None:
        self.places.acquire()  # who comes now waits in the listening queue
        try:
            super().process_request(request, client_address)
        except BaseException:
            self.places.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is nobody's error."""

    @contextmanager
    def room(self, size: int) -> Iterator[None]:
        """Holds so many bytes; Busy where they are not there."""
        with self.changed:
            if not self.changed.wait_for(lambda: size <= self.left, self.bounds.hold):
                raise Busy(f"{self.bounds.bytes - self.left} bytes of requests are held already", 1)
            self.left -= size
        try:
            yield
        finally:
            with self.changed:
                self.left += size
                self.changed.notify_all()

    def health(self) -> tuple[bool, dict[str, Any]]:
        """Whether all rewards are ready, and what there is to tell."""
        told = {name: crew.health() for name, crew in self.crews.items()}
        fine = all(crew["state"] == "ready" for crew in told.values())
        largest = {name: getattr(self.bounds.largest, name) for name in ("bytes", "side", "images", "chars")}
        return fine, {"ready": fine, "seconds": round(time.time() - self.began),
                      "bytes_held": self.bounds.bytes - self.left, "largest": largest,
                      "rewards": told}  # fmt: skip


@final
class Exchange(BaseHTTPRequestHandler):
    """One request and its answer; the connection then closes."""

    server: Service
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "promptloop", ""
    timeout = 30.0  # seconds for one read or write

    def setup(self) -> None:
        super().setup()
        self.unread = 0
        self._start_clock()

    def _start_clock(self) -> None:
        self.clock = threading.Timer(self.server.bounds.read, self._too_slow)
        self.clock.daemon = True
        self.clock.start()

    def finish(self) -> None:
        self.clock.cancel()
        with contextlib.suppress(OSError):
            super().finish()

    def log_message(self, *_: Any) -> None:
        """Nothing: the health page counts."""

    def _too_slow(self) -> None:
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RD)

    # --- what is asked

    def do_GET(self) -> None:
        if not self._has_key():
            self._say(401, {"error": {"message": "the key is missing or wrong"}})
            return
        fine, told = self.server.health()
        if self.path == "/health":
            self._say(200 if fine else 503, told)
        elif self.path == "/":
            self._send(200, page(told).encode(), "text/html; charset=utf-8")
        else:
            self._say(404, {"error": {"message": f"no page {self.path}; there are / and /health"}})

    def do_POST(self) -> None:
        try:
            self._say(200, self._answer())
        except Busy as error:
            self._refuse(503, {"message": str(error)}, error.seconds)
        except wire.Unfit as error:
            self._refuse(error.status, {"message": str(error), "index": error.index})
        except RewardFailed as error:
            self._refuse(422, {"message": str(error), "why": error.why, "index": error.index,
                               "prompt": error.query, "reward": error.reward})  # fmt: skip
        except OSError:
            raise
        except Exception as error:  # ours; the client must not wait for it
            self._refuse(500, {"message": f"the server failed: {type(error).__name__}: {error}"})

    def _answer(self) -> dict[str, Any]:
        length = self._length()
        if self.path not in ("/score", "/rewards"):
            raise wire.Unfit(f"nothing answers at {self.path}; there are /score and /rewards", 404)
        largest = self.server.bounds.largest
        if length > largest.bytes:
            raise wire.Unfit(f"a request of {length} bytes; it may have {largest.bytes}", 413)
        self.clock.cancel()  # what follows is not the client's waiting
        with contextlib.ExitStack() as held:  # until the values are there
            held.enter_context(self.server.room(3 * length))  # as it came, as texts, and decoded
            self._start_clock()
            content = self._read(length)
            if self.path == "/rewards":
                return self.server.health()[1]
            asked = wire.asked(content, largest, lambda size: held.enter_context(self.server.room(size)))
            del content
            if asked.reward not in self.server.crews:
                raise wire.Unfit(
                    f"no reward {asked.reward!r} here; {nearest(asked.reward, self.server.crews)}", 404
                )
            crew, hold = self.server.crews[asked.reward], self.server.bounds.hold
            values = crew.ask(asked.images, asked.prompts, asked.patience, hold)
        return {"reward": asked.reward, "values": values}

    def _length(self) -> int:
        """The body's, of a request that may be read."""
        said = self.headers.get("Content-Length", "")
        if not said.isdecimal() or len(said) > 15 or "Transfer-Encoding" in self.headers:
            raise wire.Unfit("a request must say its Content-Length, in bytes", 411)
        self.unread = int(said)
        if not self._has_key():
            raise wire.Unfit("the key is missing or wrong", 401)
        if self.headers.get_content_type() != "application/json":  # which no web page can send unasked
            raise wire.Unfit("the Content-Type must be application/json", 415)
        return self.unread

    def _has_key(self) -> bool:
        """Whether the request brings the server's key, if there is one."""
        key = f"Bearer {self.server.key}".encode()
        given = self.headers.get("Authorization", "").encode("utf-8", errors="replace")
        return not self.server.key or hmac.compare_digest(given, key)

    def _read(self, length: int) -> bytes:
        found = bytearray()
        while len(found) < length:
            try:
                piece = self.rfile.read1(min(length - len(found), PIECE))
            except TimeoutError:
                piece = b""
            if not piece:
                self.unread = 0
                raise wire.Unfit(f"{len(found)} of {length} bytes came, and then no more", 408)
            found += piece
            self.unread -= len(piece)
        self.clock.cancel()
        return bytes(found)

    # --- what is said

    def _refuse(self, status: int, error: dict[str, Any], wait: int | None = None) -> None:
        """Lets the rest of a body run out first, within bounds, or its sender would not hear the answer."""
        left = min(self.unread, 4 * self.server.bounds.largest.bytes)
        self.clock.cancel()
        self._start_clock()  # for all of the rest, however slowly it comes
        with contextlib.suppress(OSError):
            while left > 0 and (piece := self.rfile.read1(min(left, PIECE))):
                left -= len(piece)
        self._say(status, {"error": error}, wait)

    def _say(self, status: int, told: Mapping[str, Any], wait: int | None = None) -> None:
        self._send(status, json.dumps(told).encode(), "application/json", wait)

    def _send(self, status: int, content: bytes, kind: str, wait: int | None = None) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):  # the client has gone
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Connection", "close")
            if wait is not None:
                self.send_header("Retry-After", str(wait))
            self.end_headers()
            self.wfile.write(content)


def page(told: Mapping[str, Any]) -> str:
    """The health page: one row a reward."""
    rows = [{"reward": name, **crew} for name, crew in told["rewards"].items()]
    heads = list(dict.fromkeys(head for row in rows for head in row))
    cells = ["".join(f"<td>{html.escape(str(row.get(head, '')))}" for head in heads) for row in rows]
    names = "".join(f"<th>{head.replace('_', ' ')}" for head in heads)
    return (
        "<!doctype html><meta charset=utf-8><meta http-equiv=refresh content=5><title>rewards</title>"
        "<style>body{font:15px sans-serif}td,th{padding:.2em 1em .2em 0;text-align:left}</style>"
        f"<h1>Rewards: {'ready' if told['ready'] else 'not ready'}</h1><table><tr>{names}"
        + "".join(f"<tr>{row}" for row in cells)
        + f"</table><p>{told['bytes_held']} bytes of requests held; up for {told['seconds']} s"
    )
