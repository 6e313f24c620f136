"""One arm of a study: a way of prompting one backbone, run on many queries, scored, with what it cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor

from promptloop.controls import CFG, PromptLoop
from promptloop.policies.contract import Policy
from promptloop.policies.shown import Blind, Shuffled
from promptloop.rewards.contract import Reward, scored
from promptloop.sample import Control, Sample, sample
from promptloop.solvers import Solver, default_solver


@final
@dataclass(frozen=True)
class Way:
    """How prompts are written and images sampled. `shown` "nothing" and "another's" are control arms."""

    refinements: int = 5
    window: tuple[float, float] = (0.15, 0.55)
    loop: Literal["closed", "open"] = "closed"
    shown: Literal["own", "nothing", "another's"] = "own"
    steps: int = 20
    guidance: float = 5.0
    delay: int = 0

    def control(self, policy: Policy) -> Control:
        wrapped = {"own": lambda p: p, "nothing": Blind, "another's": Shuffled}[self.shown](policy)
        return PromptLoop(wrapped, self.refinements, self.window, "even", self.loop, self.delay)


@final
@dataclass(frozen=True, eq=False)
class Found:
    """Scores [Q] by name, what one image cost (denoiser calls, policy tokens, seconds), and the images
    [Q, 3, H, W].
    """

    scores: dict[str, Tensor]
    cost: dict[str, float]
    images: Tensor


@torch.no_grad()
def measured(
    denoiser: Any,
    policy: Policy | None,
    way: Way,
    queries: Sequence[str],
    rewards: dict[str, Reward],
    *,
    seed: int,
    solver: Solver | None = None,
    steered: Sequence[Control] = (),
    run: Callable[..., Sample] = sample,
    max_batch: int = 100,
) -> Found:
    """Query i is sampled from seed `seed` + i, the same in every arm; policy None: the query as it is.

    `steered` are the controls behind guidance, `run` is `sample` or a search above it.
    """
    began = time.perf_counter()
    controls: list[Control] = [] if policy is None else [way.control(policy)]
    end = run(
        denoiser,
        queries,
        steps=way.steps,
        solver=default_solver(denoiser) if solver is None else solver,
        controls=[*controls, CFG(way.guidance), *steered],
        seeds=[seed + i for i in range(len(queries))],
        max_batch=max_batch,
    )
    assert end.images is not None
    seconds = time.perf_counter() - began
    scores = {name: scored(reward, end.images.float(), queries).cpu() for name, reward in rewards.items()}
    drafts = [draft for written in end.state.memory.get("drafts", ()) for draft in written]
    cost = {
        "denoiser calls": end.ledger.evaluations / len(queries),
        "backward passes": end.ledger.backwards / len(queries),
        "reward calls": end.ledger.rewards / len(queries),
        "policy tokens": sum(len(draft.tokens) for draft in drafts) / len(queries),
        "kept": sum(draft.kept is not None for draft in drafts) / max(len(drafts), 1),
        "seconds": seconds / len(queries),
    }
    return Found(scores, cost, end.images)
