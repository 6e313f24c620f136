"""Candidates: several points of every step's Gaussian are looked at, and one goes on. Groups of one sample.

SVDD: Li et al., "Derivative-free guidance in continuous and discrete diffusion models with soft
value-based decoding", arXiv 2408.08252. Demon: Yeh et al., "Training-free diffusion model alignment with
sampling demons", arXiv 2410.05760.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, final

import torch
from torch import Tensor

from promptloop.controls.ahead import foreseen_reward
from promptloop.controls.groups import (
    Value,
    at_last_step,
    check_choice,
    check_number,
    log_mean,
    stochastic,
    systematic,
)
from promptloop.controls.plan import place
from promptloop.rewards.contract import Reward
from promptloop.sample import Control, Draw, Level, State, Transition
from promptloop.state import GROUP


@final
@dataclass(frozen=True)
class SVDD(Control):
    """Soft value-based decoding (2408.08252): each step draws `candidates` and goes on with one of them.

    Candidate j goes on with probability in proportion to exp(strength v_j). Without `value`, v_j is the
    reward of the estimate at the candidate (SVDD-PM): one denoiser call, decode and reward for each. With
    it, v_j = value(state at the candidate) (SVDD-MC: a trained value network). strength inf takes the best,
    as the authors' image code does; then it is a search (`kind`). The last step is drawn as usual.

    A soft choice is reported as log p - log q: the samples follow p exp(strength reward) when they are
    weighed by exp(memory["log_weight"] + strength reward), which FK behind it does; unweighed, they are
    biased towards the base with few candidates, and towards too much reward by the estimate's reward.

    Needs a stochastic solver; the reward is a black box. candidates=1 or strength=0 is the identity.
    """

    reward: Reward | None
    candidates: int = 20
    strength: float = math.inf
    value: Value | None = None

    def __post_init__(self) -> None:
        check_number("candidates", self.candidates, 1, "a number of candidates from 1")
        check_number("strength", self.strength, 0, "a weight of the reward from 0, or inf for the best")
        if (self.reward is None) == (self.value is None):
            raise ValueError("give SVDD a reward, or None and a value: a function of the state")

    @property
    def kind(self) -> Literal["sampler", "search"]:
        """Whether its weights are known, or its samples are merely good."""
        return "sampler" if self.strength < math.inf else "search"

    def propose(self, draw: Draw, state: State) -> Draw:
        if self.candidates == 1 or self.strength == 0:
            return draw
        return stochastic(self._chosen(draw), "SVDD")

    def _chosen(self, draw: Draw) -> Draw:
        def chosen(state: State, transition: Transition) -> tuple[Tensor, Tensor]:
            if at_last_step(state):
                return draw(state, transition)
            wide, x, log_ratio = candidates(draw, state, transition, self.candidates)
            found = self._values(wide, len(state)).view(len(state), -1)
            if self.strength == math.inf:
                column = found.argmax(1)
                told = torch.full_like(found[:, 0], math.nan)
            else:
                logits = self.strength * found
                column = torch.tensor([_one(state, i, row) for i, row in enumerate(logits)]).to(x.device)
                told = log_mean(logits, 1) - logits.gather(1, column[:, None])[:, 0]
            rows = torch.arange(len(state), device=x.device) * self.candidates + column
            return x[rows], log_ratio[rows] + told

        return chosen

    def _values(self, wide: State, together: int) -> Tensor:
        if self.value is not None:
            return in_parts(wide, together, self.value)
        assert self.reward is not None
        reward = self.reward
        return in_parts(wide, together, lambda part: foreseen_reward(part, reward))


def _one(state: State, i: int, logits: Tensor) -> int:
    spot = torch.rand((), generator=state.generator(i, "candidate"), dtype=torch.float64)
    return systematic(logits.double().softmax(0).cpu(), 1, float(spot))[0]


@final
@dataclass(frozen=True)
class Demon(Control):
    """Sampling demons (2410.05760): each step's noise is a mixture of `candidates` draws, weighed by reward.

    R_k is the reward that is foreseen behind candidate k: `ahead` denoiser calls along the deterministic way
    (1: the estimate; the paper solves the ODE in up to 20). "tanh" weighs the draws by
    tanh((R_k - mean R) / temperature), "boltzmann" by softmax(R_k / temperature); the mixture is scaled to
    norm sqrt(dimensions). temperature None is the standard deviation of R at every step (released code keeps
    the first step's for good). Equal rewards weigh 1. Where the step ends below `floor` noise for a unit of
    signal it is drawn as usual.

    A search: far from a typical draw, and no log p - log q is told (nan). Needs a stochastic solver; the
    reward is a black box. Costs for each step `candidates` times `ahead` denoiser evaluations and
    `candidates` decodes and rewards. candidates=1 is the identity.
    """

    reward: Reward
    candidates: int = 16
    weights: Literal["tanh", "boltzmann"] = "tanh"
    temperature: float | None = None
    ahead: int = 1
    floor: float = 0.11

    kind = "search"

    def __post_init__(self) -> None:
        check_number("candidates", self.candidates, 1, "a number of candidates from 1")
        check_number("ahead", self.ahead, 1, "a number of denoiser calls from 1")
        check_number("floor", self.floor, 0, "a ratio of noise to signal from 0")
        check_choice("weights", self.weights, ("tanh", "boltzmann"))
        if self.temperature is not None and not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}; give a positive number, or None")

    def propose(self, draw: Draw, state: State) -> Draw:
        return draw if self.candidates == 1 else stochastic(self._mixed(draw), "Demon")

    def _mixed(self, draw: Draw) -> Draw:
        def mixed(state: State, transition: Transition) -> tuple[Tensor, Tensor]:
            after = following(state)
            if at_last_step(state) or after.sigma < self.floor * after.alpha:
                return draw(state, transition)
            wide, x, _ = candidates(draw, state, transition, self.candidates)
            found = in_parts(wide, len(state), lambda part: foreseen_reward(part, self.reward, self.ahead))
            many = transition.take(torch.arange(len(x), device=x.device) // self.candidates)
            noise = (x - many.mean) / many.std
            each = noise.view(len(state), self.candidates, *x.shape[1:])
            mixture = mix(each, self._weighed(found.view(len(state), -1)))
            told = torch.full((len(state),), math.nan, device=x.device)
            return transition.mean + transition.std * mixture, told

        return mixed

    def _weighed(self, found: Tensor) -> Tensor:
        """The draws' weights [B, K] from their rewards [B, K]."""
        spread = found.std(1, correction=0, keepdim=True)
        temperature = spread if self.temperature is None else torch.full_like(spread, self.temperature)
        level = (found - found.mean(1, keepdim=True)) / temperature.clamp(min=1e-8)
        weights = level.tanh() if self.weights == "tanh" else level.softmax(1)
        return torch.where(spread < 1e-8, torch.ones_like(weights), weights)


def mix(noise: Tensor, weights: Tensor) -> Tensor:
    """[B, ...] the sum of noise [B, K, ...] by weights [B, K], scaled to norm sqrt(dimensions)."""
    mixture = torch.einsum("bk,bkd->bd", weights.to(noise), noise.flatten(2))
    mixture = mixture * (mixture.shape[1] ** 0.5 / mixture.norm(dim=1, keepdim=True))
    return mixture.view(noise.shape[0], *noise.shape[2:])


# --- what both share


def candidates(draw: Draw, state: State, transition: Transition, count: int) -> tuple[State, Tensor, Tensor]:
    """`count` draws for each sample, the first its own: the states there [B * count], x and log p - log q.

    A sample's draws stand together, in an order that does not depend on their number.
    """
    if GROUP not in state.memory:
        state = state.remember(group=torch.arange(len(state)))
    rows = [i for i in range(len(state)) for _ in range(count)]
    wide = state.take(rows)
    x, log_ratio = draw(wide, transition.take(torch.tensor(rows, device=state.x.device)))
    return replace(wide, x=x, level=following(state), step=state.step + 1), x, log_ratio


def following(state: State) -> Level:
    """The level that this step ends at; drivers walk along the run's levels too."""
    return state.run.levels[place(state) + 1]


def in_parts(state: State, together: int, value: Callable[[State], Tensor]) -> Tensor:
    """[B] value of the state, of so many samples at once: what fitted into memory before still does."""
    parts = torch.arange(len(state)).split(together)
    return torch.cat([value(state.take(part)) for part in parts])
