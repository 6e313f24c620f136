"""SIGINT and SIGTERM, which may come at any moment, made to end a run in a state that can be gone on from."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any, final

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@final
class Stopped(KeyboardInterrupt):
    """A signal ended the run; `code` is the exit code that says so."""

    def __init__(self, number: int, said: str = "") -> None:
        super().__init__(said)
        self.number, self.code = number, 128 + number

    @property
    def name(self) -> str:
        return signal.Signals(self.number).name


@final
class Interrupt:
    """Inside the `with` block a signal raises `Stopped` where it finds the run; between `hold` and `release`
    at the release only. Later signals change nothing: whoever has launched several processes sends several.

    `patient`: it is never raised, `pending` alone says that it came. In a thread signals are left alone.
    """

    def __init__(self, *, patient: bool = False) -> None:
        self.pending: int | None = None
        self.held, self.patient = False, patient
        self._before: dict[Any, Any] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._came) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, then in self._before.items():
            signal.signal(number, then)

    def hold(self) -> None:
        """From here on the state of the run is not one that can be gone on from."""
        self.held = True

    def release(self) -> None:
        """Now it is again. Raises what came meanwhile."""
        self.held = False
        if self.pending is not None and not self.patient:
            raise Stopped(self.pending)

    def _came(self, number: int, frame: FrameType | None) -> None:
        if self.pending is None:
            self.pending = number
            if not self.held and not self.patient:
                raise Stopped(number)


def ended_by(number: int, run: Path, saved: int) -> str:
    """What is told of a run that a signal has ended."""
    there = f"checkpoint {saved} is in {run / 'checkpoints'}: go on by --resume" if saved else (
        "no update was whole, so nothing is saved")  # fmt: skip
    return f"stopped by {signal.Signals(number).name}; {there}"
