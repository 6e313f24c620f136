"""How a recipe tells how far it is: called with what is being done, how many are done, how many there are."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]


def silent(*told: object) -> None:
    """Reports nothing."""
