"""Looking ahead from a state: where its samples would end, what reward that has, and its gradient."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from promptloop.controls.increments import ascent, pulled
from promptloop.controls.plan import place
from promptloop.rewards.contract import Reward, scored
from promptloop.sample import State, answers, decoded
from promptloop.solvers import DDIM


def foreseen(state: State, calls: int = 1) -> Tensor:
    """[B, ...] clean latents where the deterministic way from here ends, in so many denoiser calls.

    One call is the estimate at the state; more walk (DDIM, eta 0) over as many of the run's levels.
    """
    rest = range(place(state), len(state.run.levels) - 1)
    calls = min(calls, len(rest))
    for k in range(1, calls):
        step = rest[k * len(rest) // calls]
        level = state.run.levels[step]
        x = DDIM()(answers(state), state, level).mean
        state = replace(state, x=x, level=level, step=step)
    return answers(state)(state.x, state.level, state.cond)


def foreseen_reward(state: State, reward: Reward, calls: int = 1) -> Tensor:
    """[B] the reward of what is foreseen, for the user's queries."""
    images = decoded(state.run.denoiser, foreseen(state, calls))
    return scored(reward, images, state.queries).to(state.x.device)


def climbed(state: State, reward: Reward, together: int) -> tuple[Tensor, Tensor]:
    """The reward [B] of the estimate at the state, and its gradient [B, ...] by x, through the denoiser.

    `together`: how many samples at once. ValueError for a gradient that is not finite.
    """
    values, slopes = [], []
    for rows in torch.arange(len(state)).split(together):
        part = state.take(rows)

        def slope(clean: Tensor, part: State = part) -> Tensor:
            value, upward = ascent(reward, part, clean)
            values.append(value)
            return upward

        slopes.append(pulled(answers(part), part.x, part.level, part.cond, slope, through="network")[1])
    return torch.cat(values).to(state.x.device), torch.cat(slopes)
