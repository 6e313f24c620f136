"""Particles: every sample is a group that is weighed by its reward and resampled, by itself.

FK: Singhal et al., "Feynman-Kac steering", arXiv 2501.06848. DAS: Kim et al., "Test-time alignment of
diffusion models without reward over-optimization", arXiv 2501.05803. Both aim at
p(x) exp(strength reward(x)).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, final

import torch
from torch import Tensor

from promptloop.controls.ahead import climbed
from promptloop.controls.groups import (
    Pick,
    Value,
    at_end,
    check_choice,
    check_number,
    final_reward,
    grouped,
    members,
    picked,
    resampled,
    reward_of_estimate,
    stochastic,
    weighed,
)
from promptloop.controls.increments import check_differentiable
from promptloop.rewards.contract import Reward
from promptloop.sample import Control, Draw, State, Transition

PICKS = ("draw", "best", "all")


@final
@dataclass(frozen=True)
class FK(Control):
    """Feynman-Kac steering (2501.06848): `particles` of every sample, weighed and resampled every few steps.

    With R the reward of the estimate that a step was made from (or the `value` of the state after it),
    potential "diff" weighs by exp(strength (R - R before)), "max" by exp(strength max R so far), "sum" by
    exp(strength sum R so far). The last weight makes the product exp(strength reward of the finished image),
    so all three aim at p exp(strength reward); with "max" and "sum" few particles carry that weight, which
    makes them searches (`kind`).

    `every`: weighed after each so many steps and after the last. `threshold`: resampled where the effective
    size is below this part of the group; until then the weights wait. pick "draw" draws the sample of each
    group by weight, "best" takes the one of highest reward (a search), "all" keeps the group: its weights are
    memory["log_weight"], its estimate of log E exp(strength reward) memory["log_z"], its rewards
    memory["reward"].

    Needs a stochastic solver; the reward is a black box. Costs particles times the denoiser evaluations and
    one decode and reward a particle each time they are weighed. particles=1 or strength=0 is the identity.
    """

    reward: Reward
    particles: int = 4
    strength: float = 10.0
    potential: Literal["diff", "max", "sum"] = "diff"
    every: int = 5
    threshold: float = 0.5
    pick: Pick = "draw"
    value: Value | None = None

    def __post_init__(self) -> None:
        check_number("particles", self.particles, 1, "a number of particles from 1")
        check_number("every", self.every, 1, "a number of steps from 1")
        check_number("strength", self.strength, 0, "a weight of the reward from 0")
        check_number("threshold", self.threshold, 0, "a part of the group from 0 (never) to 1")
        check_choice("potential", self.potential, ("diff", "max", "sum"))
        check_choice("pick", self.pick, PICKS)

    @property
    def kind(self) -> Literal["sampler", "search"]:
        """Whether its samples follow p exp(strength reward), or are merely good."""
        return "sampler" if self.potential == "diff" and self.pick != "best" else "search"

    def start(self, state: State) -> State:
        if self._idle:
            return state
        state = grouped(state, self.particles, "FK")
        zero = torch.zeros(len(state), device=state.x.device)
        first = torch.full_like(zero, -math.inf) if self.potential == "max" else zero
        return state.remember(log_z=zero, spent=zero, seen=first)

    def propose(self, draw: Draw, state: State) -> Draw:
        return draw if self._idle else stochastic(draw, "FK")

    def select(self, state: State) -> State:
        if self._idle or not at_end(state) and state.step % self.every:
            return state
        if self.pick == "best":  # a search may be moved by controls that tell no log p - log q
            state = state.remember(log_weight=state.memory["log_weight"].nan_to_num(0.0))
        if at_end(state):
            reward = final_reward(state, self.reward)
            state = weighed(state, self.strength * reward - state.memory["spent"])
            return picked(state, self.pick, reward)
        return resampled(self._weighed(state), self.threshold)

    def _weighed(self, state: State) -> State:
        found = reward_of_estimate(state, self.reward) if self.value is None else self.value(state)
        spent, seen = state.memory["spent"], state.memory["seen"]
        if self.potential == "diff":
            log_potential = self.strength * found - spent
        elif self.potential == "max":
            seen = torch.maximum(seen, found)
            log_potential = self.strength * seen
        else:
            seen = seen + found
            log_potential = self.strength * seen
        return weighed(state, log_potential).remember(spent=spent + log_potential, seen=seen)

    @property
    def _idle(self) -> bool:
        return self.pick != "all" and (self.particles == 1 or self.strength == 0)


@final
@dataclass(frozen=True)
class DAS(Control):
    """Diffusion alignment as sampling (2501.05803): FK with steps pushed along the reward's gradient.

    After step i, V_i is the reward of the estimate at x_i and g_i its gradient through the denoiser. A step
    draws from N(mean + std^2 temper_{i+1} strength g_i, std^2) instead of N(mean, std^2); the weights take
    back what that changed, so however wrong the gradient, the aim is p exp(strength reward). The potentials
    are those of FK "diff" with temper_i V_i for R, temper_i = min((1 + gamma)^i - 1, 1); gamma None reaches 1
    at 87 % of the steps, as the authors' 0.008 does of 100. `limit`: no push moves a number by more than so
    many std.

    threshold, pick and memory are FK's. Needs a stochastic solver and a differentiable reward. Costs for each
    particle and step two denoiser evaluations, a backward pass, a decode and a reward. Gradients are taken
    of `together` particles at once (None: one of each group), which bounds their memory. particles=1 is
    guidance without correction; strength=0 is the identity.
    """

    reward: Reward
    particles: int = 4
    strength: float = 200.0
    gamma: float | None = None
    threshold: float = 0.5
    limit: float = math.inf
    pick: Pick = "draw"
    together: int | None = None

    def __post_init__(self) -> None:
        check_number("particles", self.particles, 1, "a number of particles from 1")
        check_number("strength", self.strength, 0, "a weight of the reward from 0")
        check_number("threshold", self.threshold, 0, "a part of the group from 0 (never) to 1")
        check_number("limit", self.limit, 0, "a number of standard deviations from 0")
        if self.gamma is not None:
            check_number("gamma", self.gamma, 0, "a growth for each step from 0, or None")
        check_choice("pick", self.pick, PICKS)
        check_differentiable(self.reward, "FK needs its values only")

    def temper(self, state: State, step: int) -> float:
        """How much of the reward counts when `step` steps are done."""
        steps = len(state.run.levels) - 1
        gamma = 2 ** (1 / (0.87 * steps)) - 1 if self.gamma is None else self.gamma
        return 1.0 if step >= steps else min((1 + gamma) ** min(step, 10_000) - 1, 1.0)

    def start(self, state: State) -> State:
        if self._idle:
            return state
        state = grouped(state, self.particles, "DAS")
        zero = torch.zeros(len(state), device=state.x.device)
        return state.remember(log_z=zero, spent=zero, slope=torch.zeros_like(state.x))

    def propose(self, draw: Draw, state: State) -> Draw:
        return draw if self._idle else stochastic(self._pushed(draw), "DAS")

    def _pushed(self, draw: Draw) -> Draw:
        def drawn(state: State, transition: Transition) -> tuple[Tensor, Tensor]:
            if transition.deterministic:  # the last step
                return draw(state, transition)
            push = self.strength * self.temper(state, state.step + 1) * state.memory["slope"] * transition.std
            push = push.clamp(-self.limit, self.limit)
            x, log_ratio = draw(state, replace(transition, mean=transition.mean + transition.std * push))
            # from the point as it is: what rounding did to it is in both densities
            z = (x - transition.mean) / transition.std
            return x, log_ratio + (0.5 * push**2 - z * push).flatten(1).sum(1)

        return drawn

    def select(self, state: State) -> State:
        if self._idle:
            return state
        if at_end(state):
            reward = final_reward(state, self.reward)
            state = weighed(state, self.strength * reward - state.memory["spent"])
            return picked(state, self.pick, reward)
        found, slope = climbed(state, self.reward, self.together or len(members(state)))
        aim = self.strength * self.temper(state, state.step) * found
        state = weighed(state, aim - state.memory["spent"])
        return resampled(state.remember(spent=aim, slope=slope), self.threshold)

    @property
    def _idle(self) -> bool:
        return self.pick != "all" and self.strength == 0
