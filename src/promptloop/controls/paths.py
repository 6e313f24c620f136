"""Search over paths, above the loop: samples are noised again in the middle of their way, the best go on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor

from promptloop.controls.groups import check_number
from promptloop.controls.route import Route, route
from promptloop.ledger import counting
from promptloop.rewards.contract import Reward
from promptloop.sample import Sample, State, join, renoise
from promptloop.solvers import Scheduler
from promptloop.state import seed_of


@torch.no_grad()
def over_paths(
    denoiser: Any,
    prompts: Sequence[str],
    *,
    reward: Reward,
    seeds: Sequence[int],
    paths: int = 4,
    copies: int = 2,
    start: float = 0.3,
    back: float = 0.2,
    ahead: float = 0.3,
    **options: Any,
) -> Sample:
    """Search over paths (Ma et al., 2501.09732): `paths` of every sample, noised again and again.

    The paths start from noises of their own, the first from the sample's, and go to the fraction `start` of
    the trajectory. Then, until the end: `copies` of each are taken `back` by the forward process, with fresh
    noise, and all go `ahead` of there; those of highest reward go on, of the paths as they were and of the
    copies. Before the end it is the reward of the last step's estimate. The best image is the sample.
    `options` are those of `sample` (not `noise` and `decode`). memory["reward"] [B] has the rewards.

    A search. Works with every solver of ours, also deterministic ones; the reward is a black box. Costs
    (`evaluations`) paths * (steps + rounds * copies * ahead * steps) and a decode and a reward for each path
    and copy in every round. paths=1 with copies=0 is the plain sampler. ValueError for settings that make no
    search, for a diffusers scheduler, and for controls that make groups.
    """
    check_number("paths", paths, 1, "a number of paths from 1")
    check_number("copies", copies, 0, "a number of copies from 0")
    with counting() as tally:
        way = route(denoiser, prompts, seeds, **options)
        plan = _plan(way, start, back, ahead) if copies else [Round(way.steps, 0, way.steps)]
        wide = [prompt for prompt in prompts for _ in range(paths)]
        own = [_seed(int(seed), 0, k) for seed in seeds for k in range(paths)]
        state = way.onward(way.opened(wide, own, "over_paths"), plan[0].begun)
        for turn in plan:
            kept = 1 if turn.reach == way.steps else paths
            state = _kept(*_tried(way, state, turn, copies, paths, reward), len(prompts), kept)
        made = way.finished(state)
    return replace(made, ledger=tally.ledger)


@final
@dataclass(frozen=True)
class Round:
    """From step `begun`, copies go back to step `back`, and all go on to step `reach`."""

    begun: int
    back: int
    reach: int


def _plan(way: Route, start: float, back: float, ahead: float) -> list[Round]:
    """The rounds, until the end."""
    if not 0 < back <= start < 1 or not back < ahead <= 1:
        raise ValueError(
            f"start {start}, back {back}, ahead {ahead}: give fractions of the trajectory with "
            "0 < back <= start < 1 and back < ahead <= 1"
        )
    if isinstance(way.solver, Scheduler):
        raise ValueError("over_paths goes back, which a diffusers scheduler cannot; give a solver of ours")
    if way.steps < 2:
        raise ValueError("over_paths goes back and on, but the run has 1 step; give 2 or more, or copies=0")
    far = max(round(back * way.steps), 1)
    gain = max(round(ahead * way.steps) - far, 1)
    begun, rounds = min(max(round(start * way.steps), far), way.steps - 1), []
    while begun < way.steps:
        rounds.append(Round(begun, begun - far, min(begun + gain, way.steps)))
        begun = rounds[-1].reach
    return rounds


def _tried(
    way: Route, state: State, turn: Round, copies: int, paths: int, reward: Reward
) -> tuple[State, Tensor]:
    """The paths and their copies after a round, with their rewards [B, paths (1 + copies)] and rows so laid
    out.
    """
    before = len(state) // paths
    ways = way.onward(state, turn.reach)
    rows = torch.arange(len(state)).view(before, paths)
    if copies:
        fresh = _copied(state, copies)
        fresh = way.onward(renoise(fresh, way.levels[turn.back]), turn.reach)
        latest = max(ways.step, fresh.step)  # what was executed on the longest way: no noise is drawn twice
        ways = join([replace(ways, step=latest), replace(fresh, step=latest)])
        rows = torch.cat([rows, len(state) + torch.arange(len(fresh)).view(before, -1)], 1)
    ways = ways.take(rows.flatten())
    return ways, way.rewards(ways, reward)


def _copied(state: State, copies: int) -> State:
    """Every path so many times, with seeds of their own."""
    rows = [i for i in range(len(state)) for _ in range(copies)]
    known = state.seeds.tolist()
    own = [_seed(known[i], state.step, k + 1) for i in range(len(state)) for k in range(copies)]
    return replace(state.take(rows), seeds=torch.tensor(own, dtype=torch.long))


def _seed(seed: int, step: int, k: int) -> int:
    return seed_of(seed, step, f"path {k}") if k else seed


def _kept(state: State, reward: Tensor, samples: int, kept: int) -> State:
    """The `kept` of highest reward of every sample's ways, best first; of equals the first."""
    order = reward.view(samples, -1).argsort(dim=1, descending=True, stable=True)[:, :kept]
    rows = order + torch.arange(samples, device=order.device)[:, None] * (len(state) // samples)
    return state.remember(reward=reward).take(rows.flatten())
