"""`promptloop serve-rewards`: named rewards in processes of their own, behind HTTP."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from promptloop.recipes import reward_words
from promptloop.recipes.rewards import check_name, shortened
from promptloop.rewards.crew import Crew, Terms
from promptloop.rewards.service import LOCAL, Bounds, Service

KEY = "PROMPTLOOP_API_KEY"


@contextmanager
def served(
    names: Sequence[str],
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    terms: Terms | None = None,
    bounds: Bounds | None = None,
    device: str = "cpu",
    cache: int = 0,
    key: str = "",
) -> Iterator[Service]:
    """The server, listening, when all rewards have loaded; its processes end with the block. Call its
    `serve_forever`.

    cache: how many values each process keeps by content (0: none; none either for stochastic rewards).
    ValueError for a name that is none, a reward that cannot be loaded, and an address beyond this machine
    without a key.
    """
    check(names, host, key)
    called = shortened(list(names))
    module = [sys.executable, "-m", "promptloop.recipes.reward_worker"]
    crews = {called[n]: Crew(called[n], [*module, n, device, str(cache)], terms or Terms()) for n in names}
    service = None
    try:
        service = Service(crews, host, port, bounds=bounds, key=key)
        for crew in crews.values():
            crew.wait_ready()
        yield service
    finally:
        for crew in crews.values():
            crew.close()
        if service is not None:
            service.server_close()


def check(names: Sequence[str], host: str, key: str) -> None:
    """ValueError for what cannot be served."""
    for name in names:
        if reward_words.is_composed(name):
            raise ValueError(f"{name!r} is made of several rewards; serve each, and weigh them where they "
                             "are asked: 0.5*http://HOST:PORT#A + http://HOST:PORT#B")  # fmt: skip
        check_name(name)
    if len(set(names)) < len(names):
        raise ValueError("a reward is named twice; --workers gives each several processes")
    if host not in LOCAL and not key:
        raise ValueError(f"{host} can be reached from other machines: put a key into the environment "
                         f"variable {KEY}, here and where the rewards are asked")  # fmt: skip


def serve(
    names: Sequence[str],
    *,
    host: str,
    port: int,
    terms: Terms,
    bounds: Bounds,
    device: str,
    cache: int,
    say: Callable[[str], None],
) -> None:
    """Serves until SIGINT or SIGTERM."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    key = os.environ.get(KEY, "").strip()
    settings = {"host": host, "port": port, "terms": terms, "bounds": bounds, "device": device}
    say(f"loading {', '.join(names)}")
    try:
        with served(names, cache=cache, key=key, **settings) as service:  # type: ignore[arg-type]
            for name in service.crews:
                say(f"ready: --reward {service.url}#{name}")
            say(f"health: {service.url}")
            service.serve_forever(0.1)
    except KeyboardInterrupt:
        say("ended")
