"""A real HTTP server on this machine that speaks OpenAI's chat protocol, well or badly, as it is told."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LIMIT = 200  # requests one server answers; a client that never stops is told so
Reply = Callable[["Chat"], None]  # what to do with one request


class Chat(BaseHTTPRequestHandler):
    """One request: `sent` is its JSON body."""

    server: Scripted
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        server = self.server
        self.sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            number = len(server.seen)
            server.seen.append((self.path, dict(self.headers), self.sent))
            server.now += 1
            server.most = max(server.most, server.now)
            self.open = True
        try:
            (server.replies[min(number, len(server.replies) - 1)] if number < LIMIT else status(500))(self)
        except OSError:
            pass  # the client has gone
        finally:
            self.close_connection = True
            self.over()

    def over(self) -> None:
        """Counts the request as over; before it is answered, since the client asks on at once."""
        with self.server.lock:
            self.server.now -= self.open
            self.open = False

    def write(self, content: bytes, code: int = 200, length: int | None = None, **headers: str) -> None:
        self.over()
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


class Scripted(ThreadingHTTPServer):
    """Answers request k with replies[k], and those after the last with the last."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, replies: Sequence[Reply]) -> None:
        super().__init__(("127.0.0.1", 0), Chat)
        self.replies, self.lock, self.over = replies, threading.Lock(), threading.Event()
        self.seen: list[tuple[str, dict[str, str], Any]] = []
        self.now = self.most = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


@contextmanager
def serving(*replies: Reply) -> Iterator[Scripted]:
    """The server, in a thread that ends with the block; whoever stalls is woken."""
    server = Scripted(replies)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        server.server_close()
        thread.join(5)


# --- replies


def say(content: Any, finish: str | None = "stop") -> Reply:
    """A whole answer; `content` may be a function of the request."""

    def reply(chat: Chat) -> None:
        text = content(chat.sent) if callable(content) else content
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
        chat.write(json.dumps({"object": "chat.completion", "choices": [choice]}).encode())

    return reply


def status(code: int, message: str = "as told", **headers: str) -> Reply:
    return lambda chat: chat.write(json.dumps({"error": {"message": message}}).encode(), code, **headers)


def raw(content: bytes, length: int | None = None) -> Reply:
    """These bytes; with a `length` that promises more, the connection then closes."""
    return lambda chat: chat.write(content, length=length)


def stall(chat: Chat) -> None:
    """No answer at all until the server ends."""
    chat.server.over.wait(10)


def hang_up(chat: Chat) -> None:
    """The connection closes without a word."""


def dribble(chat: Chat) -> None:
    """An answer that goes on for ever, a blank at a time."""
    chat.send_response(200)
    chat.end_headers()
    for _ in range(100):
        chat.wfile.write(b" ")
        if chat.server.over.wait(0.05):
            return


def slowly(reply: Reply, seconds: Callable[[Any], float]) -> Reply:
    def later(chat: Chat) -> None:
        time.sleep(seconds(chat.sent))
        reply(chat)

    return later
