"""One process trains in a folder: a lock that the operating system takes back, however the process ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, final

LOCK = ".lock"  # in the run's folder; it stays there, and holds the number of the last process


if sys.platform == "win32":
    import msvcrt

    FAR = 1 << 30  # what is locked cannot be read there, so not the number

    def take(file: IO[str]) -> None:
        """Locks the file; BlockingIOError where another has."""
        file.seek(FAR)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except PermissionError as error:
            raise BlockingIOError(*error.args) from None
else:
    import fcntl

    def take(file: IO[str]) -> None:
        """Locks the file; BlockingIOError where another has."""
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@final
class Lock:
    """Held from the start until it is released or the process has ended, by SIGKILL too.

    ValueError where another process holds it. `say` is told of a file system that knows no locks.
    """

    def __init__(self, run: Path, say: Callable[[str], None]) -> None:
        self._file = (run / LOCK).open("a+", encoding="utf-8")
        try:
            take(self._file)
        except BlockingIOError:
            self._file.seek(0)
            number = self._file.read().strip()
            self._file.close()
            told = f" (pid {number})" if number.isdigit() else ""
            raise ValueError(
                f"another process is training in {run}{told}; wait until it has ended, or give another --out"
            ) from None
        except OSError as error:
            say(f"{run} cannot be locked ({error.strerror}): see to it that no other process trains there")
        self._file.truncate(0)
        self._file.write(str(os.getpid()))
        self._file.flush()

    def release(self) -> None:
        """Lets another process train there."""
        self._file.close()

    def __enter__(self) -> Lock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
