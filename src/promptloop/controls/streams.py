"""Whose random numbers a sample draws: several samples may share their noise, their plan, or some drafts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

import torch

from promptloop.sample import Control, State

NOISE, PLAN = "step seeds", "plan seeds"  # in memory, where State.generator finds them
DRAFTS = "seeds of drafts"  # [B, N], for PromptLoop


@final
@dataclass(frozen=True)
class Streams(Control):
    """Common random numbers: from the seed of a sample to the seed that this purpose draws from instead.

    `noise`: the fresh noise of every stochastic step. `plan`: where refinements happen (plan "random").
    `drafts`: one seed for each of the drafts, in their order, or `LIKELIEST`. Samples of one noise seed
    differ by their prompts alone, however stochastic the solver; with their first drafts' seeds alike too,
    they are one sample up to the draft in which they differ. An empty mapping leaves the sample's own.

    Put it before PromptLoop. Copies of a sample (`State.take`) keep its streams.
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
