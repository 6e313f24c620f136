"""The rollout loop: queries become whole trajectories with drafts, and these become rewards, in groups.

An episode is one full denoising trajectory in which the policy writes `refinements` prompts. A group is
`group` episodes of one query. Only the finished image is rewarded, for the user's query.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, final

import torch
from torch import Tensor

from promptloop.controls.guidance import CFG
from promptloop.controls.plan import check_delay, even_steps
from promptloop.controls.prompt import PromptLoop
from promptloop.controls.streams import Streams
from promptloop.denoisers.memory import lowering, told
from promptloop.denoisers.once import Once
from promptloop.policies.contract import LIKELIEST, Draft, Policy
from promptloop.policies.shown import Sometimes
from promptloop.rewards.composite import scored_by_term
from promptloop.rewards.contract import Reward, scored
from promptloop.sample import default_solver, sample
from promptloop.solvers import Solver
from promptloop.timing import Stopwatch, TimedPolicy


@final
@dataclass(frozen=True)
class Geometry:
    """How a batch of episodes is made.

    `queries` groups of `group` episodes, `refinements` drafts in each, inside `window` of `denoising_steps`
    steps; where they happen is drawn anew for every episode (plan "random", as in the paper) or even.
    noise "shared" gives all episodes of a group the same noise, at the start and in every stochastic step, so
    that a group's rewards differ by its prompts alone; "fresh" gives each its own. With probability
    `image_dropout` a draft is written without its estimate, so that open-loop inference stays in
    distribution. `delay` is PromptLoop's.

    Where the first draft is not the trained policy's (`first_given`), it is neither drawn nor credited.

    credit "episode" gives an episode's advantage to all of its drafts, as in the paper; "branch" lets the
    episodes of a group be one up to a draft (in one half of the groups the first, which decides most, in the
    other a later one, drawn at random), in which they part: that draft alone is drawn and credited, before it
    and after it the policy's likeliest answers are taken, as at inference.
    """

    queries: int = 12
    group: int = 8
    refinements: int = 5
    window: tuple[float, float] = (0.0, 1.0)
    plan: Literal["even", "random"] = "random"
    loop: Literal["closed", "open"] = "closed"
    denoising_steps: int = 20
    guidance: float = 5.0
    noise: Literal["shared", "fresh"] = "shared"
    image_dropout: float = 0.1
    credit: Literal["episode", "branch"] = "episode"
    first_given: bool = False
    max_batch: int = 96
    delay: int = 0

    def __post_init__(self) -> None:
        for name, least in {"queries": 1, "group": 2, "refinements": 1, "denoising_steps": 1}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if not 0 <= self.window[0] < self.window[1] <= 1:
            raise ValueError(
                f"window is {self.window}; give two parts of the trajectory in order, from 0 to 1: 0,0.75"
            )
        check_delay(self.delay, self.loop)
        even_steps(self.refinements, self.denoising_steps, self.window, self.delay)  # they must fit
        if self.max_batch < 1:
            raise ValueError(f"max_batch is {self.max_batch}; it must be at least 1")
        if not 0 <= self.image_dropout <= 1:
            raise ValueError(f"image_dropout is {self.image_dropout}; it is a probability")
        if not math.isfinite(self.guidance):
            raise ValueError(f"guidance is {self.guidance}; give a finite number (1 is without)")
        if self.noise not in ("shared", "fresh"):
            raise ValueError(f"noise is {self.noise!r}; choose 'shared' or 'fresh'")
        if self.credit not in ("episode", "branch"):
            raise ValueError(f"credit is {self.credit!r}; choose 'episode' or 'branch'")
        if self.first_given and self.refinements == 1:
            raise ValueError("refinements is 1 and the first draft is given, so none is trained; give 2")
        if self.credit == "branch" and self.noise == "fresh":
            raise ValueError("credit branch needs noise shared: a group is one trajectory up to its branch")

    @property
    def episodes(self) -> int:
        return self.queries * self.group


@final
@dataclass(frozen=True, eq=False)
class Rollout:
    """E episodes, group after group: their drafts in the order written, images [E, 3, H, W], rewards [E].

    `credited`: the numbers of each episode's drafts that its reward tells something of. `terms`: the raw
    values [E] of a weighted reward's terms.
    """

    queries: tuple[str, ...]
    seeds: tuple[int, ...]
    drafts: tuple[tuple[Draft, ...], ...]
    images: Tensor
    rewards: Tensor
    credited: tuple[range, ...]
    seconds: dict[str, float] = field(default_factory=dict)
    terms: dict[str, Tensor] = field(default_factory=dict)


@torch.no_grad()
def rollout(
    denoiser: Any,
    policy: Policy,
    reward: Reward,
    queries: Sequence[str],
    geometry: Geometry,
    *,
    seed: int,
    first: int = 0,
    solver: Solver | None = None,
) -> Rollout:
    """One group of episodes for each query. Episode (query i, member j) is a function of (seed, first + i,
    j).

    `first` is the place of queries[0] in the whole batch, where several processes share it.
    """
    group, denoiser = geometry.group, Once(denoiser)
    asked = [query for query in queries for _ in range(group)]
    places = [(first + i, j) for i in range(len(queries)) for j in range(group)]
    seeds = [derived(seed, "episode", i, j) for i, j in places]
    drawn = [noise_seed(geometry, seed, i, j) for i, j in places]
    streams, credited = streams_of(geometry, seed, places, seeds)
    watch = Stopwatch()
    timed = TimedPolicy(Sometimes(policy, geometry.image_dropout), watch)
    loop = PromptLoop(
        timed, geometry.refinements, geometry.window, geometry.plan, geometry.loop, geometry.delay
    )
    solver = default_solver(denoiser) if solver is None else solver
    with watch("denoiser"):
        end = sample(
            denoiser,
            asked,
            seeds=seeds,
            steps=geometry.denoising_steps,
            solver=solver,
            controls=[streams, loop, CFG(geometry.guidance)],
            noise=denoiser.noise(drawn),
            max_batch=geometry.max_batch,
            decode=False,
            lean=True,
        )
    parts = end.state.x.split(geometry.max_batch)
    with watch("decode"), told(f"decoding {len(parts[0])} images", lowering(denoiser, len(parts[0]))):
        images = torch.cat([denoiser.decode(part).clamp(0, 1) for part in parts])
    with watch("reward"), told(f"the reward scores {len(images)} images", room_for(reward, images)):
        rewards, terms = scored_by_term(reward, images, asked)
    drafts = end.state.memory["drafts"]
    return Rollout(tuple(asked), tuple(seeds), drafts, images.cpu(), rewards, credited, watch.seconds, terms)


def streams_of(
    geometry: Geometry, seed: int, places: Sequence[tuple[int, int]], seeds: Sequence[int]
) -> tuple[Streams, tuple[range, ...]]:
    """What the episodes at `places` (query, member) share of their random numbers, and which drafts count."""
    noise = {s: noise_seed(geometry, seed, i, j) for s, (i, j) in zip(seeds, places, strict=True)}
    every = range(geometry.refinements)
    if geometry.credit == "episode":
        return Streams(noise), (every[geometry.first_given :],) * len(places)
    branch = [branch_of(geometry, derived(seed, "branch", i)) for i, _ in places]
    plan = {s: derived(seed, "plan", i) for s, (i, _) in zip(seeds, places, strict=True)}
    drafts = {
        s: tuple(derived(seed, "draft", i, k, j) if k == b else LIKELIEST for k in every)
        for s, (i, j), b in zip(seeds, places, branch, strict=True)
    }
    return Streams(noise, plan, drafts), tuple(range(b, b + 1) for b in branch)


def branch_of(geometry: Geometry, number: int) -> int:
    """The draft in which a group parts: in one half of the groups the first, else one of the others; always
    one of them where the first is given.
    """
    later, first = geometry.refinements - 1, number % 2 == 0 and not geometry.first_given
    return 0 if later == 0 or first else 1 + number // 2 % later


@torch.no_grad()
def alone(
    denoiser: Any,
    reward: Reward,
    queries: Sequence[str],
    geometry: Geometry,
    places: Sequence[tuple[int, int]],
    *,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Images [Q, 3, H, W] and rewards [Q] of the queries as they are, each from the noise that the episode at
    its place (query, member) had in `rollout`.
    """
    end = sample(
        denoiser,
        queries,
        seeds=[noise_seed(geometry, seed, i, j) for i, j in places],
        steps=geometry.denoising_steps,
        controls=[CFG(geometry.guidance)],
        max_batch=geometry.max_batch,
    )
    assert end.images is not None
    with told(f"the reward scores {len(end.images)} images", room_for(reward, end.images)):
        return end.images, scored(reward, end.images, queries)


def room_for(reward: Any, images: Tensor) -> Callable[[], list[str]]:
    """What would leave a reward more memory for these images [N, 3, H, W]."""
    height, width = images.shape[-2:]
    batch = getattr(reward, "batch", None)
    own = [f"the reward's batch (now {batch})"] if isinstance(batch, int) else []
    return lambda: [*own, f"the images of an update (now {len(images)}: queries x group)",
                    f"their size (now {width} x {height})", "what else lies there by offload"]  # fmt: skip


def noise_seed(geometry: Geometry, seed: int, query: int, member: int) -> int:
    return derived(seed, "noise", query, 0 if geometry.noise == "shared" else member)


def derived(seed: int, *place: Any) -> int:
    """A 63-bit seed: a function of its arguments, the same in every process."""
    text = "/".join(map(str, (seed, *place)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
