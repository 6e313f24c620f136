"""Rewards behind HTTP: under load, killed, slow, asked for too much, asked wrongly."""

import base64
import http.client
import io
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_reward import brightness, broken

from promptloop.recipes.rewards import reward_named
from promptloop.recipes.serve_rewards import check
from promptloop.rewards import RemoteReward, frames, wire, worker
from promptloop.rewards.composite import scored_by_term
from promptloop.rewards.contract import RewardFailed, scored
from promptloop.rewards.crew import Crew, Terms
from promptloop.rewards.service import Bounds, Service

TESTS = Path(__file__).resolve().parents[1]
SMALL = Bounds(wire.Largest(2**20, 64, 32, 100), 4 * 2**20, 48, 1.0, 0.02)


@contextmanager
def serving(terms: Terms, pause: float = 0.0, key: str = "", bounds: Bounds = SMALL) -> Iterator[Service]:
    crew = Crew("light", [sys.executable, str(TESTS / "light_reward.py"), str(pause)], terms)
    service = Service({"light": crew}, bounds=bounds, key=key)
    crew.wait_ready()
    thread = threading.Thread(target=service.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield service
    finally:
        service.shutdown()
        crew.close()
        service.server_close()
        thread.join(5)


@pytest.fixture(scope="module")
def plain() -> Iterator[Service]:
    with serving(Terms(timeout=2, together=8)) as service:
        yield service


def asking(service: Service, **settings: Any) -> RemoteReward:
    given = {"timeout": 90.0, "backoff": 0.05, "patience": 180.0, **settings}
    return RemoteReward(service.url, "light", **given)


def told(service: Service) -> dict[str, Any]:
    return service.health()[1]["rewards"]["light"]


def test_load_and_a_killed_process_lose_nothing() -> None:
    """32 clients before a queue of 12 images and two processes, one of which is killed. Fails when a refused
    or a lost request is not asked again, values change places, or a request's room is not given back.
    """
    images = torch.rand(96, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    wanted = brightness_of(images)
    with serving(Terms(workers=2, queue=12), pause=0.01) as service:
        # fresh images in requests of 2, so the queue is full at once
        remote = asking(service, batch=2, concurrency=1)
        with ThreadPoolExecutor(32) as clients:
            runs = [clients.submit(remote, images[3 * k : 3 * k + 3], ["q"] * 3) for k in range(32)]
            time.sleep(0.15)
            os.kill(told(service)["workers"][0], signal.SIGKILL)
            found = torch.cat([run.result(180) for run in runs])
        assert torch.allclose(found, wanted, atol=1e-6)
        after = told(service)
        assert (after["images"], after["failed"], after["waiting"]) == (96, 0, 0)
        assert after["refused"] > 0 and after["restarts"] >= 1
        end = time.monotonic() + 60
        while not service.health()[0] and time.monotonic() < end:
            time.sleep(0.05)
        assert service.health()[0] and service.left == service.bounds.bytes


def brightness_of(images: torch.Tensor) -> torch.Tensor:
    return images.double().mean((1, 2, 3)).float()


def test_what_has_no_value_is_told(plain: Service, tmp_path: Path) -> None:
    """Late, dead once, dead twice, raised: with reward, place and query, and the next request is answered.
    Fails when a request that kills is asked for ever, or one that was lost by accident is not.
    """
    images = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    remote = asking(plain, batch=2)
    for query, says in (
        ("slow", "took longer than 2 s"),
        ("die", r"ended its process twice \(exit code 9\)"),
    ):
        with pytest.raises(RewardFailed, match=says) as why:
            scored(remote, images, ["a", "b", query, "d", "e"])
        assert why.value.index == 2 and why.value.reward == f"{plain.url}#light"
    with pytest.raises(RewardFailed, match=r"light of image 3 \('wrong'\) raised KeyError: no"):
        scored(remote, images, ["a", "b", "c", "wrong", "e"])
    values = scored(remote, images, ["a", "b", "c", f"die once {tmp_path / 'died'}", "e"])
    assert torch.allclose(values, brightness_of(images), atol=1e-6)


def test_together_the_guilty_one_alone_fails(plain: Service) -> None:
    """Fails when those that were scored with it fail too, or get another's value."""
    images = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    crew = plain.crews["light"]
    pixels = images.numpy()
    with ThreadPoolExecutor(8) as pool:
        runs = [
            pool.submit(crew.ask, pixels[k : k + 1], ["wrong" if k == 3 else "q"], 60.0) for k in range(8)
        ]
        for k, run in enumerate(runs):
            if k == 3:
                with pytest.raises(RewardFailed):
                    run.result(60)
            else:
                assert run.result(60) == pytest.approx([float(pixels[k].mean())], abs=1e-6)


def send(
    service: Service, content: bytes, path: str = "/score", method: str = "POST", **headers: str
) -> tuple[int, str]:
    connection = http.client.HTTPConnection(*service.server_address[:2], timeout=60)
    try:
        given = {"Content-Type": "application/json"} | {k.replace("_", "-"): v for k, v in headers.items()}
        connection.request(method, path, content, given)
        answer = connection.getresponse()
        said = json.loads(answer.read())
        return answer.status, said.get("error", {}).get("message", "")
    finally:
        connection.close()


def png(width: int, height: int, mode: str = "RGB") -> str:
    file = io.BytesIO()
    Image.new(mode, (width, height)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def npy(*shape: int, dtype: Any = np.uint8) -> str:
    return wire.npy(np.zeros(shape, dtype))


def request(images: Any, prompts: Any = ("q",), **more: Any) -> bytes:
    given = {"reward": "light", "images": images, "prompts": prompts, **more}
    return json.dumps({k: v for k, v in given.items() if v is not None}).encode()


CUT = base64.b64encode(base64.b64decode(npy(1, 3, 8, 8))[:-1]).decode()
DAMAGED = base64.b64encode(base64.b64decode(png(8, 8))[:45]).decode()


@pytest.mark.parametrize(
    ("content", "status", "says"),
    [
        (b"{", 400, "no JSON"),
        (b"[" * 100_000, 400, "no JSON"),
        (b"[]", 400, "where an object is wanted"),
        (b"\xff\xfe", 400, "no JSON"),
        (request(npy(1, 3, 8, 8), reward="lihgt"), 404, "did you mean 'light'?"),
        (request(npy(1, 3, 8, 8), sede=1), 400, "unknown field 'sede'"),
        (request(npy(2, 3, 8, 8)), 400, "2 images but 1 prompts"),
        (request(npy(1, 3, 8, 8), []), 400, "one for each image"),
        (request(npy(1, 3, 8, 8), ["q" * 101]), 413, "101 characters"),
        (request(npy(1, 3, 8, 8), patience=-1), 400, "patience"),
        (request(npy(1, 3, 8, 8), patience=True), 400, "patience"),
        (request(None), 400, "images must be"),
        (request("###"), 400, "no base64"),
        (request(base64.b64encode(b"text").decode()), 400, "no npy file"),
        (request(CUT), 400, "have 191 bytes, not 192"),
        (request(npy(1, 3, 65, 8)), 413, "8x65 pixels"),
        (request(npy(1, 4, 8, 8)), 400, "send [N, 3, H, W]"),
        (request(npy(1, 3, 8, 8, dtype=np.float64)), 400, "float64"),
        (request(wire.npy(np.full((1, 3, 8, 8), np.nan, np.float32))), 400, "not finite"),
        (request([1]), 400, "where base64 is wanted"),
        (request([png(8, 8), png(8, 9)], ["a", "b"]), 400, "send each size by itself"),
        (request([png(65, 8)]), 413, "65x8 pixels"),
        (request([png(8, 8, "RGBA")]), 400, "mode RGBA"),
        (request([DAMAGED]), 400, "damaged"),
        (request([base64.b64encode(b"GIF89a").decode()]), 400, "cannot be opened as PNG"),
        (request(npy(33, 3, 8, 8), ["q"] * 33), 413, "at most 32"),
        (b" " * (2**20 + 1), 413, "a request of 1048577 bytes"),
    ],
)
def test_what_is_wrong_is_said(plain: Service, content: bytes, status: int, says: str) -> None:
    """Fails when one of these ends a thread without an answer, or is unpacked before it is measured."""
    found = send(plain, content)
    assert found[0] == status and says in found[1], found


def test_the_rest_of_http(plain: Service) -> None:
    """Other paths and types, a body that does not come, a client that hangs up; then a good request. Fails
    when a place is not given back.
    """
    good = request([png(8, 8)])
    assert send(plain, good) == (200, "")
    assert send(plain, good, "/scores")[0] == 404 and send(plain, b"", "/no", "GET")[0] == 404
    assert send(plain, good, Content_Type="text/plain")[0] == 415
    assert send(plain, b"", "/health", "GET") == (200, "")
    for said, wanted in (
        (b"POST /score HTTP/1.1\r\nContent-Type: application/json\r\n\r\n", b" 411 "),
        (b"POST /score HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: -5\r\n\r\n", b" 411 "),
        (b"POST /score HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{", b" 408 "),
        (b"nonsense\r\n\r\n", b"400"),
    ):
        with socket.create_connection(plain.server_address[:2], timeout=60) as raw:
            raw.sendall(said)  # and no more: the third waits until the server has had enough
            assert wanted in raw.recv(2000), said
    for _ in range(SMALL.connections + 2):
        with socket.create_connection(plain.server_address[:2], timeout=60) as raw:
            raw.sendall(b"POST /score HTTP/1.1\r\nContent-Le")
    assert send(plain, good) == (200, "") and plain.left == SMALL.bytes
    page = http.client.HTTPConnection(*plain.server_address[:2], timeout=60)
    page.request("GET", "/")
    assert b"<td>light" in page.getresponse().read()
    page.close()


def test_a_full_server_says_when_to_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails when the queue grows beyond its bound, a client that has no patience waits, or who has no key is
    let in.
    """
    with serving(Terms(queue=1, timeout=20), pause=0.3, key="s3cret") as service:
        assert send(service, request([png(8, 8)]))[0] == 401
        monkeypatch.setenv("PROMPTLOOP_API_KEY", "s3cret")
        images = torch.zeros(1, 3, 8, 8)
        with ThreadPoolExecutor(8) as clients:
            hasty = asking(service, retries=0, patience=0.0)
            runs = [clients.submit(hasty, images, ["q"]) for _ in range(8)]
            failed = [run.exception(60) for run in runs]
        assert 1 <= sum(error is None for error in failed) <= 7
        assert all(error is None or "503" in str(error) for error in failed)
        with pytest.raises(ConnectionError, match=r"reward light of image 0 \('q'\)"):
            asking(service, timeout=0.2, retries=0, patience=0.0)(images, ["q"])


def test_the_values_are_those_of_the_reward_itself(plain: Service) -> None:
    """By name, in a sum, of images that are 8-bit and that are not. Fails when pixels are rounded."""
    fine = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    coarse = (fine * 255).round() / 255
    assert wire.least(coarse.numpy()).dtype == np.uint8 and wire.least(fine.numpy()).dtype == np.float32
    for images in (fine, coarse):
        both = reward_named(f"0.5*{plain.url}#light + tiny_reward:brightness")
        total, terms = scored_by_term(both, images, ["q"] * 5)
        exact = torch.from_numpy(images.numpy().mean(axis=(1, 2, 3), dtype=np.float64)).float()
        assert torch.equal(terms["light"], exact)
        assert torch.equal(total, 0.5 * exact + brightness(images, []))
    with pytest.raises(ValueError, match="did you mean 'light'"):
        reward_named(f"{plain.url}#lihgt")


def test_a_torch_reward_at_the_end_of_a_pipe() -> None:
    """What the process of a reward reads and writes. Fails when nan is sent as a value."""
    images = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(4))
    source, out = io.BytesIO(), io.BytesIO()
    header = {"shape": [3, 3, 8, 8], "dtype": "float32", "prompts": ["a", "b", "c"]}
    frames.write(source, header, images.numpy().data.cast("B"))
    for reward in (brightness, broken):
        source.seek(0)
        worker.serve(reward, source, out)
    out.seek(0)
    answers = [frames.read(out) for _ in range(3)]
    assert answers[0] is not None and answers[1] is not None and answers[2] is None
    assert torch.equal(torch.tensor(answers[0][0]["values"]), brightness(images, []))
    assert answers[1][0] == {"why": "is nan; it is not replaced by 0", "index": 2, "prompt": "c"}


def test_what_is_not_served() -> None:
    for names, host, says in (
        (["oracle"], "0.0.0.0", "put a key into"),
        (["rank(oracle)"], "127.0.0.1", "weigh them where they are asked"),
        (["orcale"], "127.0.0.1", "did you mean 'oracle'"),
        (["oracle", "oracle"], "127.0.0.1", "named twice"),
    ):
        with pytest.raises(ValueError, match=says):
            check(names, host, "")


def test_health_is_told_to_who_has_the_key() -> None:
    """Fails when names, limits and a loader's words are for anyone who reaches the port."""
    with serving(Terms(timeout=20), key="s3cret") as service:
        for key, status in (("", 401), ("s3cret", 200)):
            connection = http.client.HTTPConnection(*service.server_address[:2], timeout=10)
            connection.request("GET", "/health", headers={"Authorization": f"Bearer {key}"} if key else {})
            assert connection.getresponse().status == status
            connection.close()
