"""TTSnap: best of many noises, most of which are dropped early, by a reward that knows how noisy it looks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, final

from torch import Tensor

from promptloop.controls.groups import at_end, check_number, members, reward_of_estimate
from promptloop.controls.noise import BestOf, best
from promptloop.controls.plan import place
from promptloop.rewards.contract import Reward
from promptloop.sample import Control, State
from promptloop.schedules import Level


class EarlyReward(Protocol):
    """Decoded estimates [B, 3, H, W] made at a level, and the user's queries, to [B]: what the reward of the
    finished image will be. Within a group it is the order that counts.
    """

    def __call__(self, images: Tensor, queries: Sequence[str], level: Level) -> Tensor: ...


@final
@dataclass(frozen=True)
class TTSnap(Control):
    """TTSnap (Yu et al., arXiv 2511.22242): best of N, pruned on the way by a noise-aware reward.

    Every sample is drawn from `of` noises. `keep`: step -> the share of a group that goes on after it (its
    number rounded, at least 1), by `early`, which is told the level of the estimate; None: by the reward
    itself, as if the estimate were the image. At the end the image of highest reward stays;
    memory["reward"] [B] has it. The defaults are the paper's for 20 steps.

    A search; the rewards are black boxes. A solver that draws makes estimates that belong less to their
    image. Costs (`cost`) fewer denoiser evaluations than `of` runs, and a decode and a reward for each noise
    that is left at each pruning and at the end. of=1 is the identity; shares of 1 are BestOf.
    """

    reward: Reward
    early: EarlyReward | None = None
    of: int = 10
    keep: Mapping[int, float] = field(default_factory=lambda: {2: 0.4, 6: 0.4, 11: 0.5})

    kind = "search"

    def __post_init__(self) -> None:
        check_number("of", self.of, 1, "a number of noises from 1")
        for step, share in self.keep.items():
            if step < 1 or not 0 < share <= 1:
                raise ValueError(f"keep says {share} after step {step}; give steps from 1 and shares up to 1")

    def start(self, state: State) -> State:
        steps = len(state.run.levels) - 1
        if late := [step for step in self.keep if step >= steps]:
            fit = {max(1, round(step * steps / (max(self.keep) * 1.8))): f"{share:g}"
                   for step, share in sorted(self.keep.items())}  # fmt: skip
            words = "+".join(f"{step}:{share}" for step, share in fit.items())
            raise ValueError(
                f"TTSnap's keep names step {late[0]}, and the run has {steps} steps (the default is for 20); "
                f"give earlier ones, on the command line ttsnap:keep={words}"
            )
        return self._whole.start(state)

    def select(self, state: State) -> State:
        share = self.keep.get(state.step, 1.0)
        if self.of == 1 or at_end(state) or share == 1:
            return self._whole.select(state)
        return best(state, self._expected(state), left(len(members(state)[0]), share))

    @property
    def _whole(self) -> BestOf:
        """What it is where nothing is pruned."""
        return BestOf(self.reward, self.of)

    def _expected(self, state: State) -> Tensor:
        """[B], of the estimate that the last step was made from."""
        if self.early is None:
            return reward_of_estimate(state, self.reward)
        early, level = self.early, state.run.levels[place(state) - 1]

        def told(images: Tensor, queries: Sequence[str]) -> Tensor:
            return early(images, queries, level)

        return reward_of_estimate(state, told)


def left(count: int, share: float) -> int:
    """How many of a group of `count` go on."""
    return max(1, round(count * share))


def cost(steps: int, of: int, keep: Mapping[int, float], *, step: float = 1.0, score: float = 0.0) -> float:
    """What one image costs, of a run of so many steps: `step` for each denoiser step, `score` for each decode
    with its reward. With the defaults it is the number of denoiser steps.
    """
    total, count, begun = 0.0, of, 0
    for until, share in [*sorted(keep.items()), (steps, 1.0)]:
        if share < 1 or until == steps:
            total += count * ((until - begun) * step + score)
            count, begun = left(count, share), until
    return total
