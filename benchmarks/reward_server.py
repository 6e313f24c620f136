"""The reward server under load, on loopback: what is lost, how long it takes, how much memory it holds.

python benchmarks/reward_server.py [--clients 32] [--requests 6]; prints a table. Linux (it reads /proc).
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final
from urllib.parse import urlsplit

import torch
from torch import Tensor

from promptloop.rewards import RemoteReward
from promptloop.rewards.contract import RewardFailed, scored

SIDE, EACH = 128, 4  # pixels; images of a request
NAME = "reward_server:Bright"


@final
class Bright:
    """The mean of an image; the query "slow" takes longer than the server allows."""

    def __call__(self, images: Tensor, queries: Sequence[str]) -> Tensor:
        time.sleep(300 if "slow" in queries else 0.01)
        return images.mean((1, 2, 3))


@contextmanager
def server(*options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`promptloop serve-rewards` in a process of its own, and its address."""
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, "-m", "promptloop", "serve-rewards", NAME, "--port", "0", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr is not None
    try:
        url = ""
        for line in process.stderr:
            if line.startswith("health: "):
                url = line.split()[1]
                break
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield process, url
    finally:
        process.terminate()
        process.wait(20)


def memory(process: subprocess.Popen[str]) -> tuple[int, int]:
    """(peak MiB, threads now) of the server itself."""
    text = Path(f"/proc/{process.pid}/status").read_text()
    of = {line.split(":")[0]: line.split()[1] for line in text.splitlines() if len(line.split()) > 1}
    return int(of["VmHWM"]) // 1024, int(of["Threads"])


def health(url: str) -> dict[str, Any]:
    at = urlsplit(url)
    connection = http.client.HTTPConnection(at.hostname or "", at.port, timeout=30)
    connection.request("GET", "/health")
    found = json.loads(connection.getresponse().read())
    connection.close()
    return dict(found)


def load(url: str, clients: int, requests: int, slow: int = 0) -> tuple[list[float], dict[str, int]]:
    """Every client asks `requests` times; seconds of each, and how they ended. `slow`: one of so many asks
    for what takes too long.
    """
    seconds: list[float] = []
    ends = dict.fromkeys(("right", "wrong value", "named failure", "lost"), 0)
    lock = threading.Lock()

    def client(number: int) -> None:
        remote = RemoteReward(url, NAME, batch=EACH, timeout=120, patience=600, backoff=0.2)
        generator = torch.Generator().manual_seed(number)
        for turn in range(requests):
            images = torch.rand(EACH, 3, SIDE, SIDE, generator=generator)
            query = "slow" if slow and (number * requests + turn) % slow == 0 else "q"
            began = time.perf_counter()
            try:
                values = scored(remote, images, [query] * EACH)
                end = "right" if torch.equal(values, images.mean((1, 2, 3))) else "wrong value"
            except RewardFailed as error:
                end = "named failure" if query == "slow" and "longer" in str(error) else "lost"
            except Exception:
                end = "lost"
            with lock:
                ends[end] += 1
                seconds.append(time.perf_counter() - began)

    with ThreadPoolExecutor(clients) as pool:
        for run in [pool.submit(client, k) for k in range(clients)]:
            run.result()
    return seconds, ends


def killing(url: str, over: threading.Event) -> int:
    """Kills one of the reward's processes now and then; how often."""
    done = 0
    while not over.wait(2.0):
        if workers := health(url)["rewards"][NAME]["workers"]:
            os.kill(random.choice(workers), signal.SIGKILL)
            done += 1
    return done


def bad(url: str, count: int) -> dict[int, int]:
    """Requests that cannot be answered, from 16 threads: too large, cut, no JSON, hung up; status -> how many
    (0: the connection closed).
    """
    at = urlsplit(url)
    huge = b" " * (9 * 2**20)
    kinds: list[tuple[bytes, dict[str, str]]] = [
        (huge, {}),
        (b"{", {}),
        (b"[" * 10**6, {}),
        (b'{"reward": "x", "prompts": ["q"], "images": ["AAAA"]}', {}),
        (b"{}", {"Content-Length": "1000000"}),
    ]

    def one(k: int) -> int:
        content, headers = kinds[k % len(kinds)]
        connection = http.client.HTTPConnection(at.hostname or "", at.port, timeout=90)
        try:
            connection.request("POST", "/score", content, {"Content-Type": "application/json", **headers})
            if headers:
                return 0  # hangs up in the midst of it
            return connection.getresponse().status
        except OSError:
            return 0
        finally:
            connection.close()

    with ThreadPoolExecutor(16) as pool:
        found = [*pool.map(one, range(count))]
    return {status: found.count(status) for status in sorted(set(found))}


def row(what: str, url: str, process: subprocess.Popen[str], made: Callable[[], tuple[Any, Any]]) -> str:
    before, began = health(url)["rewards"][NAME], time.perf_counter()
    seconds, ends = made()
    wall = time.perf_counter() - began
    told = health(url)
    after = told["rewards"][NAME]
    peak, threads = memory(process)
    told_ends = ", ".join(f"{count} {end}" for end, count in ends.items() if count)
    s = sorted(seconds) or [0.0]
    changed = {name: after[name] - before[name] for name in ("refused", "restarts")}
    return (
        f"| {what} | {told_ends} | {wall:.1f} | {s[len(s) // 2]:.2f} / {s[-1 - len(s) // 20]:.2f} | "
        f"{changed['refused']} | {changed['restarts']} | {peak} | {threads} | {told['bytes_held']} |"
    )


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--clients", type=int, default=32)
    arguments.add_argument("--requests", type=int, default=4)
    given = arguments.parse_args()
    options = ["--workers", "2", "--queue", "32", "--timeout", "20", "--largest", "8", "--held", "24"]
    print("| phase | ends | s | median / 95 % s | refused | restarts | peak MiB | threads | held |")
    print("|---|---|---|---|---|---|---|---|---|")
    with server(*options) as (process, url):
        print(f"| at rest | | | | | | {memory(process)[0]} | {memory(process)[1]} | 0 |", flush=True)
        print(row("one client", url, process, lambda: load(url, 1, given.requests)), flush=True)
        usual = row(
            f"{given.clients} clients", url, process, lambda: load(url, given.clients, given.requests)
        )
        print(usual, flush=True)
        over = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            kills = pool.submit(killing, url, over)
            killed = row("a process killed every 2 s", url, process,
                         lambda: load(url, given.clients, given.requests))  # fmt: skip
            over.set()
            print(killed, f"({kills.result()} kills)", flush=True)
        slow = row("one request in 64 too slow", url, process,
                   lambda: load(url, given.clients, given.requests, 64))  # fmt: skip
        print(slow, flush=True)
        print(row("200 bad requests", url, process, lambda: ([], bad(url, 200))), flush=True)
        print(row("one client again", url, process, lambda: load(url, 1, given.requests)), flush=True)


if __name__ == "__main__":
    main()
