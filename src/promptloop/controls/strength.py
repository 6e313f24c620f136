"""How strong a guide is at each step, and in which part of the trajectory it acts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from promptloop.controls.plan import place
from promptloop.sample import State

Strength = float | Sequence[float] | Callable[[float], float]  # always; for each step; of progress in [0, 1)


def check_strength(name: str, given: Strength) -> None:
    """ValueError for a number, or one of the numbers, that is not finite."""
    if callable(given):
        return
    for number in given if isinstance(given, Sequence) else [given]:
        if not math.isfinite(number):
            raise ValueError(f"{name} is {number}; give a finite number")


def check_window(window: tuple[float, float]) -> None:
    """ValueError for a window that is empty or reaches outside the trajectory."""
    start, end = window
    if not 0.0 <= start < end <= 1.0:
        raise ValueError(f"window is {window}; give two fractions of the trajectory: (0.1, 0.6)")


def strength(name: str, given: Strength, state: State) -> float:
    """The number in force at the state's step; ValueError where there is none, or it is not finite."""
    if not callable(given) and not isinstance(given, Sequence):
        return given
    step, steps = place(state), len(state.run.levels) - 1
    if callable(given):
        number = float(given(step / steps))
    elif len(given) != steps:
        raise ValueError(f"{name} has {len(given)} numbers for a run of {steps} steps; give one for each")
    else:
        number = float(given[step])
    if not math.isfinite(number):
        raise ValueError(f"{name} is {number} at step {step}; give finite numbers")
    return number


def within(window: tuple[float, float], state: State) -> bool:
    """Whether the state's step begins inside the window: from its start on, before its end."""
    if window == (0.0, 1.0):
        return True
    steps = len(state.run.levels) - 1
    start, end = (math.ceil(round(fraction * steps, 6)) for fraction in window)
    return start <= place(state) < end
