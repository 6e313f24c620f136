"""Searches and samplers above the loop that keep a tree of what they have drawn.

DTS and DTS*: Jain et al., "Diffusion tree sampling", arXiv 2506.20701.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from promptloop.controls.groups import check_number
from promptloop.controls.route import Route, route
from promptloop.controls.tree import Choice, Forest, Point, Shape, gathered
from promptloop.ledger import counting
from promptloop.rewards.contract import Reward
from promptloop.sample import Sample


@torch.no_grad()
def dts(
    denoiser: Any,
    prompts: Sequence[str],
    *,
    reward: Reward,
    seeds: Sequence[int],
    rollouts: int = 16,
    strength: float = 10.0,
    branches: int = 5,
    width: float = 2.0,
    growth: float = 0.8,
    together: int = 1,
    draws: int = 1,
    **options: Any,
) -> Sample:
    """Diffusion tree sampling (2506.20701): draws from p exp(strength reward), exactly with endless rollouts.

    Every sample has a tree. A rollout walks down it, from a point to a child in proportion to
    exp(strength value), until a point may have one more child: it has fewer than width visits^growth. That
    child is drawn and goes on to the end, where the reward is asked. The value of a point is
    log(mean exp(strength value of its children)) / strength. Points lie at `branches` levels, evenly from the
    start, and at the end. `together` rollouts of a tree are made at once, before their values are known. The
    sample is the end of one more walk, or of `draws`: then a prompt's images follow one another.

    memory["reward"] has the rewards, memory["log_z"] an estimate of log E exp(strength reward), both
    [B draws]. `options` are those of `sample` (not `noise` and `decode`). The first rollouts do not depend on
    how many follow.

    A sampler. Needs a stochastic solver (branches=0, best of n noises by weight: any); the reward is a black
    box. A rollout costs the steps below the point where it branches, a decode and a reward; a draw a decode.
    The states of all points are kept. rollouts=1 or strength=0 is the plain sampler. ValueError for
    settings that make no tree.
    """
    check_number("strength", strength, 0, "a weight of the reward from 0")
    check_number("draws", draws, 1, "a number of images for each prompt from 1")
    if strength == math.inf:
        raise ValueError("strength is inf; give a finite weight to draw by, or search with dts_star")
    rollouts = min(rollouts, 1) if strength == 0 and draws == 1 else rollouts
    shape = Shape(strength, branches, width, growth, together)
    with counting() as tally:
        way = route(denoiser, prompts, seeds, **options)
        forest = _grown(way, reward, shape, boltzmann(strength), prompts, seeds, rollouts, "dts")
        ends = [forest.walk(root, f"draw {k}") for root in forest.roots for k in range(draws)]
        log_z = torch.tensor([strength * root.worth for root in forest.roots for _ in range(draws)])
        made = _finished(forest, ends, log_z=log_z)
    return replace(made, ledger=tally.ledger)


@torch.no_grad()
def dts_star(
    denoiser: Any,
    prompts: Sequence[str],
    *,
    reward: Reward,
    seeds: Sequence[int],
    rollouts: int = 16,
    strength: float = math.inf,
    branches: int = 5,
    width: float = 1.0,
    growth: float = 0.6,
    explore: float = 1.0,
    together: int = 1,
    **options: Any,
) -> Sample:
    """Diffusion tree search, DTS* (2506.20701): `dts`, but walks go to the child that promises most.

    That is the child of highest value + explore sqrt(log(visits of the point) / visits of the child);
    `explore` is on the reward's scale. The sample is the end of one more walk, by value alone. strength inf
    backs up the highest reward, so the sample is the best image found and more rollouts never give a worse
    one; a finite strength goes where much of the base is good rather than where one image is.

    memory["reward"] [B] has its reward, memory["best"] [B] the highest that was found. A search. Settings,
    needs and costs are those of `dts`. rollouts=1 is the plain sampler.
    """
    check_number("explore", explore, 0, "a weight of what is not known from 0")
    if not strength > 0:
        raise ValueError(f"strength is {strength}; give a weight of the reward above 0, or inf for the best")
    shape = Shape(strength, branches, width, growth, together)
    with counting() as tally:
        way = route(denoiser, prompts, seeds, **options)
        forest = _grown(way, reward, shape, promising(explore), prompts, seeds, rollouts, "dts_star")
        by_value = replace(forest, choose=promising(0.0))
        best = torch.tensor([max(end.worth for end in root.ends()) for root in forest.roots])
        made = _finished(forest, [by_value.walk(root, "greedy") for root in forest.roots], best=best)
    return replace(made, ledger=tally.ledger)


def _grown(
    way: Route,
    reward: Reward,
    shape: Shape,
    choose: Choice,
    prompts: Sequence[str],
    seeds: Sequence[int],
    rollouts: int,
    name: str,
) -> Forest:
    """A tree for every sample, after so many rollouts."""
    roots = tuple(Point(None, int(seed)) for seed in seeds)
    forest = Forest(way, reward, shape, choose, tuple(prompts), roots, name)
    forest.grow(rollouts)
    return forest


def boltzmann(strength: float) -> Choice:
    """A known child, drawn in proportion to exp(strength value)."""

    def choose(point: Point, generator: torch.Generator) -> Point:
        known = point.known
        logits = torch.tensor([strength * child.worth for child in known], dtype=torch.float64)
        return known[int(torch.multinomial(logits.softmax(0), 1, generator=generator))]

    return choose


def promising(explore: float) -> Choice:
    """The known child of highest value, with a bonus for few visits (UCT); of equals the first."""

    def choose(point: Point, generator: torch.Generator) -> Point:
        seen = math.log(point.visits)
        return max(point.known, key=lambda child: child.worth + explore * math.sqrt(seen / child.visits))

    return choose


def _finished(forest: Forest, ends: Sequence[Point], **memory: torch.Tensor) -> Sample:
    """The ends as samples, with their rewards [B] and these values in memory."""
    state = gathered(ends, ends)
    found = torch.tensor([end.worth for end in ends])
    memory = {name: value.to(state.x.device) for name, value in {"reward": found, **memory}.items()}
    return forest.route.finished(state.remember(**memory))
