"""Whose random numbers a sample draws: several samples may share their noise, their plan, or some drafts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import final

import torch
from torch import Tensor

from promptloop.sample import Control, Draw, State
from promptloop.transition import Transition

PLAN, DRAFTS, NOISE = "plan_seeds", "draft_seeds", "noise_seeds"  # in memory; PromptLoop reads the first two


@final
@dataclass(frozen=True)
class Streams(Control):
    """Common random numbers: from the seed of a sample to the seed that this purpose draws from instead.

    `noise`: the fresh noise of every stochastic step. `plan`: where refinements happen (plan "random").
    `drafts`: one seed for each of the drafts, in their order. Samples of one noise seed differ by their
    prompts alone, however stochastic the solver; with their first drafts' seeds alike too, they are one
    sample up to the draft in which they differ. An empty mapping leaves the sample's own.

    Put it before PromptLoop, and before controls that propose: it draws from the step's Gaussian as the loop
    does. Copies of a sample (`State.take`) keep its streams. A wrapped diffusers scheduler draws inside its
    own step, out of reach.
    """

    noise: Mapping[int, int] = field(default_factory=dict, repr=False)
    plan: Mapping[int, int] = field(default_factory=dict, repr=False)
    drafts: Mapping[int, Sequence[int]] = field(default_factory=dict, repr=False)

    def start(self, state: State) -> State:
        """ValueError for a sample whose seed has no number."""
        named = {NOISE: self.noise, PLAN: self.plan, DRAFTS: self.drafts}
        for name, given in named.items():
            if not given:
                continue
            unknown = [int(seed) for seed in state.seeds if int(seed) not in given]
            if unknown:
                raise ValueError(f"no {name} for the sample of seed {unknown[0]}")
            rows = torch.tensor([given[int(seed)] for seed in state.seeds], dtype=torch.long)
            state = state.remember(**{name: rows})
        return state

    def propose(self, draw: Draw, state: State) -> Draw:
        return common if self.noise else draw


def common(state: State, transition: Transition) -> tuple[Tensor, Tensor]:
    """The default draw, from the samples' noise seeds."""
    x = transition.mean
    if bool((transition.std > 0).any()):
        x = x + transition.std * replace(state, seeds=state.memory[NOISE]).noise("step")
    return x, torch.zeros(len(x), device=x.device)
