"""What the command line shows: text, tables, progress. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, final

import typer

BAR = 85  # columns for the phase, its bar and its times; the rest says how it goes
LINES = 50  # told of a phase where there is no terminal to draw a bar on


def echo(shown: Any, err: bool = False) -> None:
    """Text as it is; tables through rich."""
    if isinstance(shown, str):
        typer.echo(shown, err=err)
        return
    from rich.console import Console

    Console().print(shown)


@contextmanager
def progress_bar() -> Iterator[Any]:
    """A bar for each phase on the terminal's error stream; yields the callback that moves it.

    What is told is a phase, or "phase: how it goes"; the latter is a line now and then where there is no
    terminal, so that a training's log says something.
    """
    quiet()
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeElapsedColumn as Elapsed
    from rich.progress import TimeRemainingColumn as Remaining
    from rich.table import Column

    console = Console(stderr=True)
    narrow = Column(no_wrap=True, overflow="ellipsis", max_width=max(console.width - BAR, 1))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Elapsed(), Remaining(),
               TextColumn("{task.fields[how]}", table_column=narrow))  # fmt: skip
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        tasks = {"starting": bar.add_task("starting", total=None, how="")}
        pace = Pace(0)

        def tell(what: str, done: int, total: int) -> None:
            nonlocal pace
            phase, _, how = what.partition(": ")
            if phase not in tasks:
                bar.update(tasks.popitem()[1], visible=False)
                tasks[phase] = bar.add_task(phase, total=total, how="")
                pace = Pace(done)
            bar.update(tasks[phase], how=how, completed=done, total=total)
            if bar.disable and how and done * LINES // total > (done - 1) * LINES // total:
                line = f"{what} ({done} of {total}{pace.left(done, total)})"
                console.print(line, soft_wrap=True, highlight=False, markup=False)

        yield tell


@final
class Pace:
    """How fast a phase goes, from when it was first told of, with `done` done by then."""

    def __init__(self, done: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.done, self.clock, self.began = done, clock, clock()

    def left(self, done: int, total: int) -> str:
        """ ", 0:01:40 left", as the pace so far has it; "" where there is none yet, or nothing is left."""
        if not self.done < done < total:
            return ""
        seconds = (self.clock() - self.began) / (done - self.done) * (total - done)
        return f", {timedelta(seconds=round(seconds))} left"


def quiet() -> None:
    """Silences what the libraries say while they load (downloads from the hub still show their bars)."""
    for library in ("TRANSFORMERS", "DIFFUSERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    import diffusers
    import transformers

    warnings.filterwarnings("ignore", module="huggingface_hub|diffusers|transformers")
    warnings.filterwarnings("ignore", "the text encoder reads")  # the report says it of the queries
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()


def warn(message: str) -> None:
    echo(f"warning: {message}", err=True)
