"""A server as the policy, against a real one on this machine that answers well, late, badly or not at all."""

from __future__ import annotations

import base64
import io
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_server import Reply, Scripted, dribble, hang_up, raw, say, serving, slowly, stall, status

from promptloop.policies.contract import LIKELIEST, Request
from promptloop.policies.endpoint import Endpoint
from promptloop.policies.message import SYSTEM, messages
from promptloop.policies.server import at_once
from promptloop.recipes import parts

ASKED = Request("two dogs", "two dogs on grass", progress=0.354)
SEEN = Request("a dog", "a red dog", torch.rand(3, 6, 4, generator=torch.Generator().manual_seed(0)), 0.5)
KEY = "PROMPTLOOP_API_KEY"


def asking(server: Scripted, **settings: Any) -> Endpoint:
    return Endpoint(server.url, "seer", **{"timeout": 5.0, "backoff": 0.01, "retries": 2} | settings)


def words(sent: Any) -> str:
    """The text of the user's turn."""
    content = sent["messages"][1]["content"]
    return content if isinstance(content, str) else content[-1]["text"]


def wanted(sent: Any) -> str:
    return words(sent).splitlines()[0].removeprefix("Wanted: ")


# --- what is asked, and how an answer is read


def test_the_request_is_the_message_of_every_policy() -> None:
    """Fails if the wording, the order of picture and text, or a pixel of the estimate is another."""
    with serving(say("x")) as server:
        asking(server, temperature=0.5, max_new_tokens=7, extra={"top_k": 5}).write(
            [ASKED, SEEN], [5, 2**40 + 9]
        )
    (path, _, plain), (_, _, seen) = sorted(server.seen, key=lambda row: row[2]["seed"])
    assert path == "/v1/chat/completions" and (plain["seed"], seen["seed"]) == (5, (2**40 + 9) % 2**31)
    assert plain["messages"][0] == {"role": "system", "content": SYSTEM}
    assert plain["messages"][1] == {"role": "user", "content": messages(ASKED)[1]["content"][0]["text"]}
    rest = {name: plain[name] for name in plain if name not in ("messages", "seed")}
    assert rest == {
        "model": "seer",
        "max_tokens": 7,
        "temperature": 0.5,
        "top_p": 1.0,
        "stream": False,
        "top_k": 5,
    }
    image, text = seen["messages"][1]["content"]
    assert text == messages(SEEN)[1]["content"][1] and image["type"] == "image_url"
    kind, _, code = image["image_url"]["url"].partition(",")
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(code))))
    assert SEEN.estimate is not None and kind == "data:image/png;base64"
    assert np.array_equal(shown, (SEEN.estimate * 255).round().byte().permute(1, 2, 0).numpy())


def test_the_likeliest_answer_is_asked_for_without_a_draw() -> None:
    with serving(say("x")) as server:
        asking(server, temperature=1.0).write([ASKED], [LIKELIEST])
    assert server.seen[0][2]["temperature"] == 0 and server.seen[0][2]["seed"] == 0


@pytest.mark.parametrize(
    ("content", "finish", "text", "kept"),
    [
        ("two brown dogs\nI changed the colour.", "stop", "two brown dogs", None),
        ("two brown dogs", None, "two brown dogs", None),
        ("keep", "stop", ASKED.prompt, "same"),
        ("", "stop", ASKED.prompt, "empty"),
        (None, "stop", ASKED.prompt, "empty"),
        ("?!", "stop", ASKED.prompt, "unparsable"),
        ("two brown do", "length", ASKED.prompt, "overlong"),
        ("two brown do", "abort", ASKED.prompt, "overlong"),
    ],
)
def test_an_answer_is_read_as_every_policys(
    content: str | None, finish: str, text: str, kept: str | None
) -> None:
    """Fails if half an answer becomes a prompt, or an answer that is no text is not counted."""
    with serving(say(content, finish)) as server:
        (draft,) = asking(server).write([ASKED], [0])
    assert (draft.text, draft.kept, draft.answer) == (text, kept, content or "")
    assert draft.request is ASKED and len(draft.tokens) == len(draft.log_probs) == 0


def test_many_at_a_time_in_order_each_for_itself() -> None:
    """Fails if drafts come in the order of the answers, or more are asked for at once than concurrency."""
    requests = [Request(f"dog {k}", "a dog") for k in range(24)]
    answer = say(lambda sent: f"{wanted(sent)} seed {sent['seed']}")
    with serving(slowly(answer, lambda sent: 0.02 + 0.03 * (sent["seed"] % 3))) as server:
        asked = asking(server, concurrency=4)
        drafts = asked.write(requests, list(range(24)))
        alone = asked.write(requests[7:8], [7])
        assert asked.write([], []) == []
    assert [draft.text for draft in drafts] == [f"dog {k} seed {k}" for k in range(24)]
    assert alone[0].text == drafts[7].text and 2 <= server.most <= 4


def test_the_key_comes_from_the_environment_and_goes_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if the key is in the policy's repr, or in an error that quotes what the server said of it."""
    monkeypatch.delenv(KEY, raising=False)
    with serving(say("x"), say("x"), status(401, "no such key: secret-1")) as server:
        policy = asking(server)
        policy.write([ASKED], [0])
        monkeypatch.setenv(KEY, "secret-1\n")
        policy.write([ASKED], [0])
        with pytest.raises(ValueError, match="status 401") as error:
            policy.write([ASKED], [0])
        other = asking(server, key_variable="OTHER_KEY")
        monkeypatch.setenv("OTHER_KEY", "a\nb")
        with pytest.raises(ValueError, match="OTHER_KEY holds a sign that no key has"):
            other.write([ASKED], [0])
    headers = [row[1].get("Authorization") for row in server.seen]
    assert headers == [None, "Bearer secret-1", "Bearer secret-1"]
    assert "secret" not in str(error.value) + repr(policy) and f"environment variable {KEY}" in str(
        error.value
    )


# --- what goes wrong and passes


@pytest.mark.parametrize(
    "bad",
    [
        status(500),
        status(503, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT"),
        status(429, Retry_After="0"),
        raw(b"{not json"),
        raw(b'{"choices": [{"message": {"content": "half"}}]}', length=500),
        raw(b"<html>starting</html>"),
        hang_up,
        stall,
        dribble,
    ],
    ids=["500", "503", "429", "malformed", "truncated", "html", "hang up", "stall", "dribble"],
)
def test_what_may_pass_is_tried_again_and_then_named(bad: Reply) -> None:
    """One bad answer, then a good one; and nothing but bad ones. Fails if a deadline is one of each read, a
    body that ends early is taken, or an answer that cannot be had becomes the query.
    """
    with serving(bad, say("two brown dogs")) as server:
        assert asking(server, timeout=0.3).write([ASKED], [0])[0].text == "two brown dogs"
        assert len(server.seen) == 2
    with serving(bad) as server:
        begin = time.monotonic()
        with pytest.raises(ConnectionError, match="no usable answer in 2 tries: .*; ") as error:
            asking(server, timeout=0.2, retries=1).write([ASKED], [0])
        assert server.url in str(error.value) and time.monotonic() - begin < 2.0
        assert len(server.seen) == 2


def test_the_server_says_how_long_to_wait() -> None:
    """Fails if Retry-After is not read, or the wait that it asks for is cut short."""
    with serving(status(429, Retry_After="1"), say("x")) as server:
        begin = time.monotonic()
        asking(server).write([ASKED], [0])
        assert time.monotonic() - begin >= 1.0
    with serving(status(429, "quota", Retry_After="3600")) as server:
        with pytest.raises(
            ConnectionError, match=r"asks to wait 3600 s, longer than timeout=5: status 429 \(quota"
        ):
            asking(server).write([ASKED], [0])
        assert len(server.seen) == 1


def test_each_wait_is_twice_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(status(500)) as server:
        begin = time.monotonic()
        with pytest.raises(
            ConnectionError, match=r"4 tries: status 500 \(as told\); the server's log says why"
        ):
            asking(server, retries=3, backoff=0.1).write([ASKED], [0])
        assert 0.7 <= time.monotonic() - begin < 1.4


def test_nobody_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(ConnectionError, match="no connection .*; is the server running there?"):
        Endpoint(url, "seer", retries=0).write([ASKED], [0])


# --- what does not pass


@pytest.mark.parametrize(
    ("bad", "wanted"),
    [
        (status(400, "no image input"), r"status 400 \(no image input\); .*does its network see images"),
        (status(404), "status 404 .*should end in /v1, and the name after # be one that the server has"),
        (status(302, Location="http://127.0.0.1:1/"), "status 302 .*give the address that it redirects to"),
        (raw(b'{"choices": []}'), r"without choices\[0\].message.content.*\{'choices': \[\]\}"),
        (raw(b'"two dogs"'), "without choices"),
        (say(["two", "dogs"]), "without choices"),
    ],
)
def test_what_cannot_pass_is_not_tried_again(bad: Reply, wanted: str) -> None:
    with serving(bad) as server:
        with pytest.raises(ValueError, match=wanted) as error:
            asking(server).write([ASKED], [0])
        assert server.url in str(error.value) and len(server.seen) == 1


def test_a_failed_draft_ends_the_others_waits() -> None:
    """Fails if rows that wait for another try go on waiting after one has failed for good."""
    replies: Callable[[Any], Reply] = lambda sent: status(400) if sent["seed"] == 3 else status(500)  # noqa: E731
    with serving(lambda chat: replies(chat.sent)(chat)) as server:
        begin = time.monotonic()
        with pytest.raises(ValueError, match="status 400"):
            asking(server, backoff=4.0, concurrency=2).write([ASKED] * 4, [0, 3, 0, 0])
        assert time.monotonic() - begin < 2.0 and len(server.seen) <= 3


def test_an_answer_has_a_largest_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("promptloop.policies.server.LARGEST", 1000)
    with serving(say("x" * 2000)) as server, pytest.raises(ValueError, match="more than 1000 bytes"):
        asking(server, retries=0).write([ASKED], [0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"url": "localhost:8000/v1"}, "is no address of a server; give http://HOST:PORT/v1"),
        ({"url": "http://host:port/v1"}, "is no address"),
        ({"url": "http://me:hidden@host/v1"}, f"must hold no password .* environment variable {KEY}"),
        ({"served": " "}, "write http://HOST:PORT/v1#MODEL"),
        ({"timeout": 0}, "timeout is 0"),
        ({"retries": -1}, "retries is -1"),
        ({"temperature": -1}, "temperature is -1"),
        ({"concurrency": 0}, "concurrency is 0"),
        ({"extra": {"seed": 1}}, "extra cannot replace seed"),
    ],
)
def test_settings_are_checked_before_anything_is_asked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        Endpoint(**{"url": "http://127.0.0.1:1/v1", "served": "seer"} | settings)
    assert "hidden" not in str(error.value)


def test_a_server_by_name() -> None:
    """As the command line names it. Fails if device or precision reach the server, or it is asked already."""
    name = "http://127.0.0.1:1/v1#owner/seer"
    policy = parts.load_policy(name, device="cpu", dtype=torch.float16, max_new_tokens=9)
    assert isinstance(policy, Endpoint)
    assert (policy.served, policy.url) == ("owner/seer", "http://127.0.0.1:1/v1")
    assert (policy.temperature, policy.max_new_tokens) == (0.0, 9)
    assert parts.locate(name, "policy") == (name, False)
    for wrong, said in (
        (name.partition("#")[0], "which model of"),
        ("http://#seer", "no address of a server"),
    ):
        with pytest.raises(ValueError, match=said):
            parts.locate(wrong, "policy")
    with pytest.raises(ValueError, match="it can be the policy, but not the backbone"):
        parts.locate(name, "backbone")
    with pytest.raises(ValueError, match="whose weights are not here"):
        parts.chat_model(name)
    with pytest.raises(ValueError, match="have no log-probs, so it cannot be trained"):
        policy.log_prob([])


def test_nobody_waits_for_a_try_that_is_running() -> None:
    """After a failure, and so after Ctrl-C. Fails if threads are joined: a stuck server would hold the error,
    and the end of the program, for its whole timeout.
    """
    free = threading.Event()

    def ask(number: int, stop: threading.Event) -> int:
        if number == 1:
            raise ConnectionError("gone")
        if number == 0:
            free.wait(20)
        return number

    begin = time.monotonic()
    with pytest.raises(ConnectionError, match="gone"):
        at_once(ask, [(0,), (1,), (2,)], 2)
    assert time.monotonic() - begin < 10
    free.set()
    assert at_once(ask, [(3,), (0,), (2,)], 2) == [3, 0, 2] and at_once(ask, [], 2) == []
