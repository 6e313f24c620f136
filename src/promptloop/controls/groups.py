"""Groups of particles: samples that were made from one, compared with each other and with no one else."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from promptloop.controls.plan import place
from promptloop.controls.streams import NOISE
from promptloop.rewards.contract import Reward, scored
from promptloop.sample import Draw, State, Transition, decoded
from promptloop.state import GROUP

Pick = Literal["draw", "best", "all"]
Value = Callable[[State], Tensor]  # [B]: what the reward of the finished image will be, as far as known


def grouped(state: State, size: int, name: str, apart: bool = True) -> State:
    """Every sample as a group of `size`: itself, then copies that start from noise of their own, or, where
    not `apart`, from the sample's.

    memory["group"] [B] numbers the groups. Copy k's seed is a function of the sample's seed and k alone, so
    a larger group holds the smaller one.
    """
    if GROUP in state.memory:
        raise ValueError(f"{name} makes groups of samples, and another control has done so; keep one")
    if NOISE in state.memory:
        raise ValueError(f"Streams gives the copies of a sample one noise, so {name} has no choice; drop it")
    state = state.remember(group=torch.arange(len(state)))
    state = state.take([i for i in range(len(state)) for _ in range(size)])
    copies = torch.arange(len(state)) % size > 0
    if apart and bool(copies.any()):
        fresh = state.run.denoiser.noise(state.seeds[copies].tolist()).float()
        x = state.x.clone()
        x[copies.to(x.device)] = fresh.to(x) * state.run.solver.noise_scale(state.run.levels)
        state = replace(state, x=x)
    return state


def members(state: State) -> list[list[int]]:
    """The rows of each group, in order."""
    found: dict[int, list[int]] = {}
    for row, group in enumerate(state.memory[GROUP].tolist()):
        found.setdefault(group, []).append(row)
    return list(found.values())


def at_end(state: State) -> bool:
    """Whether the state's last step was the run's last one."""
    return place(state) == len(state.run.levels) - 1


def at_last_step(state: State) -> bool:
    """Whether the step that starts here is the run's last one."""
    return place(state) == len(state.run.levels) - 2


def final_reward(state: State, reward: Reward) -> Tensor:
    """[B] of the finished images, for the user's queries."""
    return scored(reward, decoded(state.run.denoiser, state.x), state.queries).to(state.x.device)


def reward_of_estimate(state: State, reward: Reward) -> Tensor:
    """[B] of the estimate that the last step was made from: no denoiser call."""
    assert state.transition is not None
    return scored(reward, decoded(state.run.denoiser, state.transition.clean), state.queries).to(
        state.x.device
    )


def stochastic(draw: Draw, name: str) -> Draw:
    """The draw; ValueError at a deterministic step that is not the last: copies would stay one for ever."""

    def checked(state: State, transition: Transition) -> tuple[Tensor, Tensor]:
        if transition.deterministic and not at_last_step(state):
            raise ValueError(
                f"{name} chooses between draws of a step, but step {state.step} of {state.run.solver} is "
                "deterministic (eta 0): all draws are the same point; use DDIM(eta=1), FlowSDE(), DanceSDE() "
                "or CPS(); on the command line --solver ddim:eta=1, flow-sde, dance-sde or cps"
            )
        return draw(state, transition)

    return checked


# --- weights


def weighed(state: State, log_potential: Tensor) -> State:
    """The state with log-potentials [B] on top of the weights that wait in memory["log_weight"]."""
    log_weight = state.memory["log_weight"] + log_potential
    if bool(log_weight.isnan().any()):
        raise ValueError(
            "a control moved samples without telling log p - log q (Demon, SVDD with strength inf), so they "
            "cannot be weighed; drop it, or give pick='best'"
        )
    return state.remember(log_weight=log_weight)


def resampled(state: State, threshold: float) -> State:
    """Systematic resampling in every group whose effective size is below `threshold` of its size.

    In the others the weights wait (released FK code drops them). memory["log_z"] [B] adds up the log-means
    of the weights that were spent, of each group by itself.
    """
    log_weight, log_z = state.memory["log_weight"].clone(), state.memory["log_z"].clone()
    order = list(range(len(state)))
    for rows in members(state):
        share = log_weight[rows].double().softmax(0).cpu()
        if 1 / float((share**2).sum()) >= threshold * len(rows) * (1 - 1e-6):
            continue
        spot = torch.rand((), generator=state.generator(rows[0], "resample"), dtype=torch.float64)
        for row, chosen in zip(rows, systematic(share, len(rows), float(spot)), strict=True):
            order[row] = rows[chosen]
        log_z[rows] = log_z[rows] + log_mean(log_weight[rows])
        log_weight[rows] = 0.0
    return state.remember(log_weight=log_weight, log_z=log_z).take(order)


def systematic(share: Tensor, count: int, spot: float) -> list[int]:
    """`count` rows in proportion to share [N], each taken floor or ceil of count * share times."""
    spots = (torch.arange(count, dtype=torch.float64) + spot) / count
    chosen = torch.searchsorted(share.double().cumsum(0), spots, right=True)
    return [int(row) for row in chosen.clamp(max=int(share.nonzero().max()))]


def log_mean(values: Tensor, dim: int = 0) -> Tensor:
    """Log of the mean of the exponentials."""
    return values.logsumexp(dim) - math.log(values.shape[dim])


def picked(state: State, pick: Pick, reward: Tensor) -> State:
    """One sample of every group: drawn by its weight, or the best by reward [B]; or all of them.

    memory["reward"] [B] keeps the rewards, and memory["log_z"] is complete.
    """
    state = state.remember(reward=reward)
    log_weight, log_z = state.memory["log_weight"], state.memory["log_z"].clone()
    kept = []
    for rows in members(state):
        log_z[rows] = log_z[rows] + log_mean(log_weight[rows])
        if pick == "best":
            kept.append(rows[int(reward[rows].argmax())])
        elif pick == "draw":
            spot = torch.rand((), generator=state.generator(rows[0], "pick"), dtype=torch.float64)
            kept.append(rows[systematic(log_weight[rows].double().softmax(0).cpu(), 1, float(spot))[0]])
        else:
            kept.extend(rows)
    return state.remember(log_z=log_z).take(kept)


def check_choice(name: str, value: str, known: Sequence[str]) -> None:
    """ValueError for a value that is none of the known ones."""
    if value not in known:
        raise ValueError(f"{name} is {value!r}; choose {', '.join(map(repr, known))}")


def check_number(name: str, value: float, least: float, what: str) -> None:
    """ValueError for a number below `least`, or nan; `what` says what to give."""
    if not value >= least:
        raise ValueError(f"{name} is {value}; give {what}")
