"""The noise that sampling starts from: the best of several."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import final

from torch import Tensor

from promptloop.controls.groups import (
    at_end,
    check_number,
    final_reward,
    grouped,
    members,
    reward_of_estimate,
)
from promptloop.rewards.contract import Reward
from promptloop.sample import Control, State


@final
@dataclass(frozen=True)
class BestOf(Control):
    """Best of N (Ma et al., arXiv 2501.09732, "random search"): every sample from `of` noises, the best kept.

    Of each group, the `kept` images of highest reward stay, best first; memory["reward"] [B] has their
    rewards. `prune`: step -> how many of a group go on after it, chosen by the reward of the estimate
    (TTSnap, 2511.22242, with the reward as it is). The first of a group is the sample's own noise and the
    others do not depend on `of`: more noises never give a worse reward, where nothing is pruned.

    A search. Works with every solver; the reward is a black box. Costs `of` times the denoiser evaluations
    (fewer where pruned), and a decode and a reward for each noise. of=1 is the identity.
    """

    reward: Reward
    of: int = 4
    kept: int = 1
    prune: Mapping[int, int] = field(default_factory=dict)

    kind = "search"

    def __post_init__(self) -> None:
        check_number("of", self.of, 1, "a number of noises from 1")
        if not 1 <= self.kept <= self.of:
            raise ValueError(f"kept is {self.kept} of {self.of}; give a number from 1 to {self.of}")
        left = self.of
        for step, count in sorted(self.prune.items()):
            if step < 1 or not self.kept <= count <= left:
                raise ValueError(
                    f"prune says {count} after step {step}; give steps from 1, and numbers from {left} down "
                    f"to {self.kept}"
                )
            left = count

    def start(self, state: State) -> State:
        late = [step for step in self.prune if step >= len(state.run.levels) - 1]
        if late:
            raise ValueError(f"prune names step {late[0]} of a run of {len(state.run.levels) - 1} steps")
        return state if self.of == 1 else grouped(state, self.of, "BestOf")

    def select(self, state: State) -> State:
        if self.of == 1:
            return state
        if at_end(state):
            found = final_reward(state, self.reward)
            return best(state.remember(reward=found), found, self.kept)
        if state.step in self.prune:
            return best(state, reward_of_estimate(state, self.reward), self.prune[state.step])
        return state


def best(state: State, values: Tensor, count: int) -> State:
    """The `count` samples of highest value [B] in every group, best first; of equals the first."""
    kept: list[int] = []
    for rows in members(state):
        order = values[rows].argsort(descending=True, stable=True)[:count]
        kept.extend(rows[int(k)] for k in order)
    return state.take(kept)
