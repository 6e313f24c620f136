"""The processes of one reward, and the bounded queue before them.

A process that ends is replaced, and what it was asked goes to the next one; a request that ended its process
twice, or takes too long, is an error. No torch here.
"""

from __future__ import annotations

import contextlib
import math
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from promptloop.rewards import frames
from promptloop.rewards.failed import RewardFailed

LOOK = 0.5  # seconds between looks whether an idle process has ended
WAITS = (0.0, 1.0, 5.0, 15.0)  # seconds before each new start of a process; the last again and again


@final
class Busy(Exception):
    """No answer now; come again in `seconds`."""

    def __init__(self, what: str, seconds: int) -> None:
        super().__init__(what)
        self.seconds = seconds


@final
@dataclass(frozen=True)
class Terms:
    """How a crew works: `workers` processes, `queue` images that may wait, `timeout` seconds for a request in
    a process, `together` images of several requests at once (1: each request by itself, so that its values
    do not depend on who else asks), `loading` seconds for a process to start and load the reward.
    """

    workers: int = 1
    queue: int = 256
    timeout: float = 120.0
    together: int = 1
    loading: float = 1800.0

    def __post_init__(self) -> None:
        for name in ("workers", "queue", "together"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("timeout", "loading"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; give a positive number of seconds")


@final
class Job:
    """One request on its way: `answer` is set before `done`."""

    def __init__(self, images: np.ndarray, prompts: Sequence[str]) -> None:
        self.images, self.prompts = images, list(prompts)
        self.done, self.answer = threading.Event(), dict[str, Any]()
        self.tries, self.given_up = 0, False

    def __len__(self) -> int:
        return len(self.prompts)

    def finish(self, answer: dict[str, Any]) -> None:
        self.answer = answer
        self.done.set()

    def fail(self, why: str) -> None:
        self.finish({"why": why, "index": None, "prompt": None})


@final
class Crew:
    """Asks the processes that `command` starts; `name` is the reward's in errors."""

    def __init__(self, name: str, command: Sequence[str], terms: Terms) -> None:
        self.name, self.command, self.terms = name, list(command), terms
        self.jobs: deque[Job] = deque()
        self.changed = threading.Condition()
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        self.ready: set[int] = set()
        self.why = ""  # the last start that failed says
        self.closed = False
        self.told: dict[str, bool] = {}
        self.counts = dict.fromkeys(("images", "failed", "refused", "restarts"), 0)
        self.pace = 0.0  # seconds an image took, lately
        for place in range(terms.workers):
            threading.Thread(target=self._work, args=(place,), daemon=True).start()

    # --- asking

    def wait_ready(self) -> None:
        """Until all processes have loaded; ValueError with the first's words that cannot."""
        with self.changed:
            self.changed.wait_for(lambda: self.why or len(self.ready) == self.terms.workers or self.closed)
            if self.why:
                raise ValueError(f"reward {self.name} cannot be loaded: {self.why}")

    def ask(
        self, images: np.ndarray, prompts: Sequence[str], patience: float, hold: float = 0.0
    ) -> list[float]:
        """The values of images [N, 3, H, W]. Busy where the queue is full and stays so for `hold` seconds, or
        nothing comes within `patience` seconds; RewardFailed where there is no value, and will be none.
        """
        job = Job(images, prompts)
        with self.changed:
            if not self.changed.wait_for(lambda: self._fits(job), min(hold, patience)) or self.closed:
                self.counts["refused"] += 1
                waiting = self._waiting()
                raise Busy(f"reward {self.name} has {waiting} images waiting", self._wait(waiting))
            self.jobs.append(job)
            self.changed.notify_all()
        if not job.done.wait(patience):
            job.given_up = True
            raise Busy(
                f"reward {self.name} gave no answer within {patience:g} s", self._wait(self._waiting())
            )
        if "values" not in job.answer:
            index = job.answer["index"]
            with self.changed:
                self.counts["failed"] += 1
            raise RewardFailed(self.name, index or 0, prompts[index or 0], str(job.answer["why"]))
        return list(job.answer["values"])

    def health(self) -> dict[str, Any]:
        """What the health page tells."""
        with self.changed:
            pids = {place: process.pid for place, process in sorted(self.processes.items())}
            state = "ready" if len(self.ready) == self.terms.workers else "starting"
            return {"state": self.why or state, "workers": [pids[k] for k in sorted(self.ready) if k in pids],
                    "waiting": self._waiting(), "seconds_an_image": round(self.pace, 4), **self.told,
                    **self.counts}  # fmt: skip

    def close(self) -> None:
        """Ends the processes; who waits is told to come again."""
        with self.changed:
            self.closed = True
            self.changed.notify_all()
            for process in self.processes.values():
                process.kill()

    def _fits(self, job: Job) -> bool:
        waiting = self._waiting()
        return self.closed or not waiting or waiting + len(job) <= self.terms.queue

    def _waiting(self) -> int:
        return sum(len(job) for job in self.jobs if not job.given_up)

    def _wait(self, images: int) -> int:
        """Seconds until about so many images are done, from 1 to 30."""
        return int(min(max(math.ceil(images * self.pace / self.terms.workers), 1), 30))

    # --- working; one thread a process

    def _work(self, place: int) -> None:
        tried = 0
        while not self.closed:
            process = self.processes.get(place)
            if process is None or process.poll() is not None or place not in self.ready:
                tried = 0 if self._hire(place, WAITS[min(tried, len(WAITS) - 1)]) else tried + 1
            elif jobs := self._next():
                self._do(place, process, jobs)

    def _hire(self, place: int, wait: float) -> bool:
        """Starts the process of this place and waits until it has loaded."""
        with self.changed:
            if (ended := self.processes.pop(place, None)) is not None:
                self.counts["restarts"] += 1
                ended.kill()  # one that could not load may still be there
                for pipe in (ended.stdin, ended.stdout):
                    with contextlib.suppress(OSError):  # of what was still to be written
                        pipe.close() if pipe else None
            self.ready.discard(place)
            self.changed.wait_for(lambda: self.closed, wait)
            if self.closed:
                return False
            try:
                process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            except OSError as error:
                self.why = f"no process can be started: {error}"
                self.changed.notify_all()
                return False
            self.processes[place] = process
        assert process.stdout is not None
        with ended_after(process, self.terms.loading) as late:
            message = frames.read(process.stdout)
        said: dict[str, Any] = message[0] if message else {}
        if late.is_set():
            said = {"broken": f"it has not loaded within {self.terms.loading:g} s; where it needs more, give "
                              "--loading-timeout SECONDS"}  # fmt: skip
        elif not message:
            said = {"broken": f"its process ended with code {process.wait()}"}
        with self.changed:
            if "ready" in said:
                self.told, self.why = said["ready"], ""
                self.ready.add(place)
            else:
                self.why = str(said.get("broken"))
            self.changed.notify_all()
        return "ready" in said

    def _next(self) -> list[Job]:
        """The job that has waited longest, with those after it that may go together; none for a while."""
        with self.changed:
            self.changed.wait_for(lambda: self.jobs or self.closed, LOOK)
            found: list[Job] = []
            while self.jobs and not self.closed:
                job = self.jobs[0]
                if found and not self._goes_with(found, job):
                    break
                self.jobs.popleft()
                found += [job] if not job.given_up else []
            self.changed.notify_all() if found else None  # there is room in the queue
            return found

    def _goes_with(self, found: list[Job], job: Job) -> bool:
        alike = (found[0].images.shape[1:], found[0].images.dtype) == (job.images.shape[1:], job.images.dtype)
        fits = sum(map(len, found)) + len(job) <= self.terms.together
        return alike and fits and not found[0].tries and not job.tries

    def _do(self, place: int, process: subprocess.Popen[bytes], jobs: list[Job]) -> None:
        answer, late, seconds = self._exchange(process, jobs)
        if answer is None:
            self._lost(place, process, jobs, late)
        elif "values" in answer:
            with self.changed:
                count = sum(map(len, jobs))
                self.counts["images"] += count
                self.pace = seconds / count if not self.pace else 0.8 * self.pace + 0.2 * seconds / count
            values = iter(answer["values"])
            for job in jobs:
                job.finish({"values": [next(values) for _ in job.prompts]})
        elif len(jobs) == 1:
            jobs[0].finish(answer)
        else:  # one of them is to blame, and the others have values
            for k, job in enumerate(jobs):
                if process.poll() is not None:  # one of them has ended it: the others have no part in that
                    with self.changed:
                        self.jobs.extendleft(reversed(jobs[k:]))
                        self.changed.notify_all()
                    return
                self._do(place, process, [job])

    def _exchange(
        self, process: subprocess.Popen[bytes], jobs: list[Job]
    ) -> tuple[dict[str, Any] | None, bool, float]:
        """The process's answer (None: it has ended), whether it was ended for being late, the seconds."""
        first, began = jobs[0].images, time.monotonic()
        header = {"shape": [sum(map(len, jobs)), *first.shape[1:]], "dtype": first.dtype.name,
                  "prompts": [p for job in jobs for p in job.prompts]}  # fmt: skip
        message = None
        assert process.stdin is not None and process.stdout is not None
        with ended_after(process, self.terms.timeout) as late, contextlib.suppress(OSError, ValueError):
            payload = [np.ascontiguousarray(job.images).data.cast("B") for job in jobs]
            frames.write(process.stdin, header, *payload)
            message = frames.read(process.stdout)
        return (message and message[0]), late.is_set(), time.monotonic() - began

    def _lost(self, place: int, process: subprocess.Popen[bytes], jobs: list[Job], late: bool) -> None:
        """The process has ended in the midst of these."""
        process.kill()
        code = process.wait()
        with self.changed:
            self.ready.discard(place)
            for job in reversed(jobs):
                job.tries += 1
                if late and len(jobs) == 1:
                    job.fail(f"took longer than {self.terms.timeout:g} s, in a request of {len(job)} images")
                elif job.tries > 1 and len(jobs) == 1:
                    job.fail(f"ended its process twice (exit code {code}), in a request of {len(job)} images")
                elif not self.closed:
                    self.jobs.appendleft(job)
            self.changed.notify_all()


@contextlib.contextmanager
def ended_after(process: subprocess.Popen[bytes], seconds: float) -> Iterator[threading.Event]:
    """Ends the process where the block takes longer, and sets what it gives."""
    late = threading.Event()

    def end() -> None:
        late.set()
        process.kill()

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield late
    finally:
        timer.cancel()
