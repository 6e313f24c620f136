"""Before which steps prompts are written: as many as asked for, inside a window, none too late."""

from __future__ import annotations

import math

from promptloop.sample import State


def check_delay(delay: int, loop: str) -> None:
    """ValueError for a delay below 0, or where all prompts are written before the first step."""
    if delay < 0:
        raise ValueError(f"delay is {delay}; give a number of steps from 0")
    if delay and loop == "open":
        raise ValueError(f"delay is {delay}, but the open loop writes all prompts beforehand; give delay 0")


def inside(refinements: int, steps: int, window: tuple[float, float], delay: int) -> range:
    """The steps of the window before which a draft can be written that still comes into force.

    ValueError when the refinements do not fit into them and the first step.
    """
    places, room = room_for(steps, window, delay)
    if refinements > room:
        late = f" and delay {delay}" if delay else ""
        raise ValueError(
            f"{refinements} refinements do not fit: {steps} steps with window {window}{late} have room for "
            f"{room}; give fewer refinements, more steps or a wider window"
        )
    return places


def room_for(steps: int, window: tuple[float, float], delay: int = 0) -> tuple[range, int]:
    """The steps of the window before which a draft can be written, and how many fit with the first step's."""
    start, end = (math.ceil(round(fraction * steps, 6)) for fraction in window)
    places = range(start, min(end, steps - delay))
    return places, len(places) + (start > 0 and steps > delay)


def even_steps(
    refinements: int, steps: int, window: tuple[float, float] = (0.0, 1.0), delay: int = 0
) -> list[int]:
    """The steps before which plan "even" writes: step 0, and others equally spaced in the window.

    The end of the window is not one of them, as the end of the trajectory is not a step; with `delay` neither
    are the last steps, whose drafts would come too late.
    """
    places = inside(refinements, steps, window, delay)
    if refinements == 0:
        return []
    first = [] if places.start == 0 else [0]
    rest = refinements - len(first)
    return first + [places.start + k * len(places) // rest for k in range(rest)]


def place(state: State) -> int:
    """The step that starts at the state's level: state.step, unless a driver has taken the state back."""
    levels = state.run.levels
    if state.step < len(levels) and levels[state.step] == state.level:
        return state.step
    if state.level not in levels:
        raise ValueError(f"{state.level} is none of the run's levels; prompts are planned for those only")
    return levels.index(state.level)
