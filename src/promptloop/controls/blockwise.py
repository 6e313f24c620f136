"""Blockwise: streams of every sample go a few steps, are pushed up the reward, and are chosen from.

UniCoDe, arXiv 2512.12339. Without its gradient it is CoDe, blockwise best of N.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from promptloop.controls.ahead import foreseen_reward
from promptloop.controls.candidates import in_parts
from promptloop.controls.groups import (
    at_end,
    check_number,
    final_reward,
    grouped,
    members,
    stochastic,
    systematic,
)
from promptloop.controls.increments import ascent, check_differentiable
from promptloop.controls.noise import best
from promptloop.controls.strength import check_window, within
from promptloop.rewards.contract import Reward
from promptloop.sample import Control, Draw, State, answers


@final
@dataclass(frozen=True)
class UniCoDe(Control):
    """UniCoDe (2512.12339): `streams` of every sample, pushed up the reward and chosen from, block by block.

    After each `block` steps the estimate at every stream is scored, and the streams go on from those drawn by
    softmax(strength reward), strength inf from the best alone; at the end the best image is kept. After each
    `every` steps inside `window` (two fractions of the trajectory) every stream moves along its reward's
    gradient, the noise estimate held fixed, by `scale` times the noise that is in it. scale=0 is CoDe, for
    which the reward is a black box; block as long as the trajectory is best of N. The streams begin at the
    sample's own noise, or with `apart` each at another one.

    A search: neither move tells log p - log q. More than one stream needs a stochastic solver. Costs the
    streams' denoiser evaluations, one for each stream at every push and choice with a decode and reward, and
    no backward pass of the denoiser. scale=0 with one stream, or with strength=0, is the identity.
    """

    reward: Reward
    streams: int = 4
    block: int = 5
    strength: float = math.inf
    scale: float = 0.05
    every: int = 1
    window: tuple[float, float] = (0.0, 1.0)
    apart: bool = False

    kind = "search"

    def __post_init__(self) -> None:
        check_number("streams", self.streams, 1, "a number of streams from 1")
        check_number("block", self.block, 1, "a number of steps from 1")
        check_number("every", self.every, 1, "a number of steps from 1")
        check_number("strength", self.strength, 0, "a weight of the reward from 0, or inf for the best")
        check_window(self.window)
        if not 0 <= self.scale < math.inf:
            raise ValueError(f"scale is {self.scale}; give a finite number from 0 (CoDe, without gradients)")
        if self.scale:
            check_differentiable(self.reward, "give scale=0 (CoDe), which needs its values only")

    def start(self, state: State) -> State:
        return state if self._alone else grouped(state, self.streams, "UniCoDe", self.apart)

    def propose(self, draw: Draw, state: State) -> Draw:
        steps = len(state.run.levels) - 1
        return draw if self._alone or self.apart and self.block >= steps else stochastic(draw, "UniCoDe")

    def select(self, state: State) -> State:
        if at_end(state):
            if self._alone:
                return state
            found = final_reward(state, self.reward)
            return best(state.remember(reward=found), found, 1)
        together = len(state) if self._alone else len(members(state))
        if self.scale and state.step % self.every == 0 and within(self.window, state):
            x = in_parts(state, together, self._pushed)
            told = torch.full((len(state),), math.nan, device=x.device)
            state = replace(state, x=x).remember(log_weight=told)
        if self._alone or state.step % self.block:
            return state
        return self._chosen(state, in_parts(state, together, lambda part: foreseen_reward(part, self.reward)))

    def _pushed(self, state: State) -> Tensor:
        """[B, ...] the samples, moved by scale times the norm of their noise up the reward's gradient.

        With the noise held fixed the gradient by x is that by the estimate over alpha, whose length is not
        used.
        """
        level = state.level
        with torch.no_grad():
            clean = answers(state)(state.x, level, state.cond)
        _, slope = ascent(self.reward, state, clean)
        noise = state.x - level.alpha * clean
        return state.x + self.scale * _norm(noise) / _norm(slope).clamp(min=1e-12) * slope

    def _chosen(self, state: State, found: Tensor) -> State:
        """Every group's streams go on from those that are drawn by their rewards `found` [B]."""
        order = list(range(len(state)))
        for rows in members(state):
            if self.strength == math.inf:
                picks = [int(found[rows].argmax())] * len(rows)
            else:
                share = (self.strength * found[rows]).double().softmax(0).cpu()
                spot = torch.rand((), generator=state.generator(rows[0], "stream"), dtype=torch.float64)
                picks = systematic(share, len(rows), float(spot))
            for row, pick in zip(rows, picks, strict=True):
                order[row] = rows[pick]
        return state.take(order)

    @property
    def _alone(self) -> bool:
        """Whether there is nothing to choose from."""
        return self.streams == 1 or self.strength == 0


def _norm(x: Tensor) -> Tensor:
    """Norm of each sample, [B, 1, ...]."""
    return x.flatten(1).norm(dim=1).view(-1, *[1] * (x.ndim - 1))
