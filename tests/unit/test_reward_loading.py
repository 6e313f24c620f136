"""A reward's process that never gets ready."""

import signal
import sys
import time
from pathlib import Path

import pytest

from promptloop.rewards.crew import Crew, Terms

LIGHT = Path(__file__).resolve().parents[1] / "light_reward.py"


def test_a_reward_that_never_loads_ends_the_start() -> None:
    """Its constructor sleeps for five minutes. Fails when nobody looks at the clock while a process loads
    (tried: `1e6` for `self.terms.loading` in `_hire`; after a minute), or the process is left behind.
    """
    crew = Crew("asleep", [sys.executable, str(LIGHT), "0", "300"], Terms(loading=0.5))
    try:
        while 0 not in crew.processes:
            time.sleep(0.001)
        process = crew.processes[0]
        assert process.wait(60) == -signal.SIGKILL
        said = r"reward asleep cannot be loaded: it has not loaded within 0.5 s; .*--loading-timeout SECONDS"
        with pytest.raises(ValueError, match=said):
            crew.wait_ready()
    finally:
        crew.close()


def test_one_that_loads_in_time_is_ready() -> None:
    """Fails when the clock of loading goes on after a process is ready, and ends it."""
    crew = Crew("slow", [sys.executable, str(LIGHT), "0", "0.2"], Terms(loading=30))
    try:
        crew.wait_ready()
        assert crew.health()["state"] == "ready" and crew.processes[0].poll() is None
    finally:
        crew.close()


def test_a_time_that_is_none_is_refused() -> None:
    for seconds in (0, -1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="loading is .*; give a positive number of seconds"):
            Terms(loading=seconds)
