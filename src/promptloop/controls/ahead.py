"""Looking ahead from a state: where its samples would end, what reward that has, and its gradient."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from promptloop.controls.plan import place
from promptloop.ledger import count
from promptloop.rewards.contract import Reward, asked, checked, scored
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
    found = [_climbed(state.take(rows), reward) for rows in torch.arange(len(state)).split(together)]
    values, slopes = (torch.cat(parts) for parts in zip(*found, strict=True))
    return values, slopes


def _climbed(state: State, reward: Reward) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        x = state.x.detach().requires_grad_()
        images = decoded(state.run.denoiser, answers(state)(x, state.level, state.cond))
        values = checked(reward, asked(reward, images, state.queries).float(), state.queries)
        count(backwards=len(x))
        (slope,) = torch.autograd.grad(values.sum(), x)
    for row, query in zip(slope, state.queries, strict=True):
        if not bool(row.isfinite().all()):
            raise ValueError(
                f"the gradient of the reward for {query!r} is not finite; it is not replaced by 0"
            )
    return values.detach().to(state.x.device), slope
