"""JSON requests to a server: a deadline, retries, many at once, and an error that says what to do."""

from __future__ import annotations

import http.client
import json
import os
import random
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import Message
from email.utils import parsedate_to_datetime
from queue import SimpleQueue
from typing import Any, TypeVar, final
from urllib.parse import SplitResult, urlsplit

LARGEST = 4 * 2**20  # bytes of an answer: a prompt is a few hundred
PASSING = (408, 425, 429)  # refusals that a later try may not meet, as every 5xx
BUSY = (429, 503)  # refusals that may say when to come again
APART = random.SystemRandom()  # no seed is used up by waiting
Answer = TypeVar("Answer")


@final
class Refused(ValueError):
    """The server answered with a `status` that no later try can mend, and the body `said`."""

    def __init__(self, what: str, status: int, said: bytes = b"") -> None:
        super().__init__(what)
        self.status, self.said = status, said


@final
@dataclass(frozen=True)
class Server:
    """Where requests go and how patiently.

    `timeout` bounds one try, from connecting to the last byte, in seconds. What may pass (no connection, no
    answer in time, an answer cut off or not JSON, 408, 425, 429, 5xx) is tried `retries` times more, after
    `backoff` seconds, then twice as long, and so on, or after what the server's Retry-After says. A server
    that is busy and says for how long (429 or 503 with Retry-After) is waited for without counting that as a
    try, until `patience` seconds after the first. The key is read from the environment variable
    `key_variable` at each request and kept nowhere. Redirects are not followed: they would take the key
    elsewhere.
    """

    url: str
    timeout: float = 60.0
    retries: int = 3
    backoff: float = 1.0
    key_variable: str = "PROMPTLOOP_API_KEY"
    patience: float = 0.0

    def __post_init__(self) -> None:
        self._address  # noqa: B018  (it must be one)
        for name in ("timeout", "backoff"):
            if isinstance(getattr(self, name), str) or not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)!r}; give a positive number of seconds")
        if not isinstance(self.retries, int) or self.retries < 0:
            raise ValueError(f"retries is {self.retries!r}; give how often to try again, from 0")

    def post(
        self, path: str, body: Mapping[str, Any], stop: threading.Event | None = None, *, plain: bool = False
    ) -> Any:
        """The JSON that answers `body` at url/path; with `plain` a text that is none is an answer too.

        ConnectionError when the last try has failed, or at once when `stop` is set between tries; `Refused`
        for what no later try can mend (any other status). Both name the url and what to do.
        """
        content, stop = json.dumps(body).encode(), stop or threading.Event()
        tried, began = 0, time.monotonic()
        while tried <= self.retries:
            try:
                return self._once(path, content, plain)
            except _Passing as failure:
                last = failure
            waited = time.monotonic() - began
            if last.busy and last.wait is not None and waited + last.wait < self.patience:
                if stop.wait(max(last.wait, 0.1) * APART.uniform(0.5, 1)):  # not all clients in one moment
                    break
                continue
            tried += 1
            if last.wait is not None and last.wait > self.timeout:
                raise ConnectionError(
                    f"{self.url} asks to wait {last.wait:.0f} s, longer than timeout={self.timeout:g}: {last}"
                )
            wait = min(self.backoff * 2 ** (tried - 1), self.timeout) if last.wait is None else last.wait
            if tried <= self.retries and stop.wait(wait):
                break
        tries = "1 try" if tried == 1 else f"{tried} tries"
        raise ConnectionError(f"{self.url} gave no usable answer in {tries}: {last}; {last.advice}")

    def _once(self, path: str, content: bytes, plain: bool) -> Any:
        try:
            status, headers, said = self._exchange(path, content)
        except ssl.SSLCertVerificationError as error:
            raise ValueError(f"{self.url} is not trusted: {error.verify_message}") from error
        except TimeoutError as error:
            advice = "raise timeout, lower concurrency, or look whether the server is stuck"
            raise _Passing(f"no whole answer within {self.timeout:g} s", advice) from error
        except http.client.IncompleteRead as error:
            raise _Passing("the answer was cut off", "the server's log says why") from error
        except (OSError, http.client.HTTPException) as error:
            why = str(error) or type(error).__name__
            raise _Passing(f"no connection ({why})", "is the server running there?") from error
        if status in PASSING or status >= 500:
            advice = "lower concurrency, or wait" if status == 429 else "the server's log says why"
            wait = _wait(headers.get("Retry-After"))
            raise _Passing(f"status {status}{self._why(said)}", advice, wait, status in BUSY)
        if status != 200:
            what = f"{self.url} answered with status {status}{self._why(said)}; {self._advice(status)}"
            raise Refused(what, status, said)
        try:
            return json.loads(said)
        except (ValueError, RecursionError) as error:
            if plain:
                return said.decode("utf-8", errors="replace")
            advice = "is it an OpenAI-compatible server?"
            raise _Passing(f"an answer that is not JSON{self._why(said)}", advice) from error

    def _exchange(self, path: str, content: bytes) -> tuple[int, Message, bytes]:
        """Status, headers and body of one try. The deadline holds for the whole of it, not for each read."""
        end, at = time.monotonic() + self.timeout, self._address
        kind = http.client.HTTPSConnection if at.scheme == "https" else http.client.HTTPConnection
        connection = kind(at.hostname or "", at.port, timeout=self.timeout)
        try:
            connection.connect()
            socket = connection.sock  # the connection forgets it once the answer has begun
            socket.settimeout(_left(end))
            connection.request("POST", f"{at.path.rstrip('/')}/{path}", content, self._headers())
            socket.settimeout(_left(end))
            response = connection.getresponse()
            length, said = response.length, bytearray()
            while length is None or len(said) < length:
                socket.settimeout(_left(end))
                piece = response.read1(2**16)
                if not piece:
                    break
                said += piece
                if len(said) > LARGEST:
                    raise Refused(f"{self.url} gave an answer of more than {LARGEST} bytes; "
                                  "is it the server of a chat model?", response.status)  # fmt: skip
            if length is not None and len(said) < length:
                raise http.client.IncompleteRead(bytes(said), length - len(said))
            return response.status, response.headers, bytes(said)
        finally:
            connection.close()

    @property
    def _address(self) -> SplitResult:
        if "@" in self.url or "?" in self.url:  # not repeated here: a password may be in it
            raise ValueError(
                "the address of a server must hold no password and no ?query, for it is written into traces; "
                f"put the key into the environment variable {self.key_variable}"
            )
        try:
            at = urlsplit(self.url)
            at.port  # noqa: B018  (a number, or ValueError)
        except ValueError as error:
            raise ValueError(f"{self.url!r} is no address ({error}); give http://HOST:PORT/v1") from error
        if at.scheme not in ("http", "https") or not at.hostname or at.fragment:
            raise ValueError(f"{self.url!r} is no address of a server; give http://HOST:PORT/v1")
        return at

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "Connection": "close"}
        if key := self._key:
            if not (key.isascii() and key.isprintable()):
                raise ValueError(f"the environment variable {self.key_variable} holds a sign that no key has")
            headers["Authorization"] = f"Bearer {key}"
        return headers

    @property
    def _key(self) -> str:
        return os.environ.get(self.key_variable, "").strip()

    def quoted(self, said: str) -> str:
        """What the server said, in one short line, with the key taken out."""
        text = " ".join(said.split())
        if key := self._key:
            text = text.replace(key, "***")
        return text[:200]

    def _why(self, said: bytes) -> str:
        """The message of an error's body, in brackets."""
        text = said.decode("utf-8", errors="replace")
        try:
            told = json.loads(text)
            error = told.get("error", told)
            text = str(error.get("message", error) if isinstance(error, dict) else error)
        except (ValueError, AttributeError):
            pass
        return f" ({self.quoted(text)})" if text.strip() else ""

    def _advice(self, status: int) -> str:
        if status in (401, 403):
            return f"put the server's key into the environment variable {self.key_variable}"
        if 300 <= status < 400:
            return "give the address that it redirects to"
        if status == 404:
            return "the address should end in /v1, and the name after # be one that the server has"
        return "the server does not take this request (does its network see images?)"


def at_once(ask: Callable[..., Answer], rows: Sequence[tuple[Any, ...]], most: int) -> list[Answer]:
    """`ask(*row, stop)` of every row, `most` at a time; the answers in the rows' order.

    The first failure is raised at once, and `stop` set: nobody waits for another try after it, or after an
    interrupt, nor for the end of those that are running.
    """
    stop, told = threading.Event(), SimpleQueue[tuple[int, Answer | None, BaseException | None]]()
    places = iter(range(len(rows)))  # what nobody has taken yet
    lock, answers = threading.Lock(), dict[int, Any]()

    def work() -> None:
        while not stop.is_set():
            with lock:
                place = next(places, None)
            if place is None:
                return
            try:
                told.put((place, ask(*rows[place], stop), None))
            except BaseException as error:
                told.put((place, None, error))

    try:
        for _ in range(min(most, len(rows))):
            threading.Thread(target=work, daemon=True).start()  # a pool's are waited for, at the exit too
        while len(answers) < len(rows):
            place, answer, failure = told.get()
            if failure is not None:
                raise failure
            answers[place] = answer
    finally:
        stop.set()
    return [answers[place] for place in range(len(rows))]


@final
class _Passing(Exception):
    """A failure that a later try may not meet; what to do if it does; how long the server asks to wait."""

    def __init__(self, what: str, advice: str, wait: float | None = None, busy: bool = False) -> None:
        super().__init__(what)
        self.advice, self.wait, self.busy = advice, wait, busy


def _left(end: float) -> float:
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _wait(header: str | None) -> float | None:
    """Seconds in a Retry-After header, given as a number or as a date."""
    if header is None:
        return None
    try:
        if header.strip().isdecimal():
            return float(header)
        return max((parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds(), 0.0)
    except (ValueError, TypeError):
        return None
