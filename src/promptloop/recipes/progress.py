"""How a recipe tells how far it is: called with what is being done, how many are done, how many there are."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from promptloop.train import After, Line

Progress = Callable[[str, int, int], None]


def telling(progress: Progress | None, steps: int, metric: str) -> After:
    """A hook that shows how far a training of `steps` updates is, and its `metric`."""

    def tell(update: int, batch: Any, line: Line) -> Line:
        if progress is not None:
            progress(f"training: {metric} {line[metric]:.2f}", update, steps)
        return {}

    return tell


def silent(*told: object) -> None:
    """Reports nothing."""
