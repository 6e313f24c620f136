"""GRPO for the prompt policy: whole trajectories in groups, one advantage for all drafts of an episode.

PromptLoop, arXiv 2510.00430. Where the paper is silent, docs/methods/promptloop.md says what we chose and
why.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, final

import torch
from torch import Tensor

from promptloop.objectives.contract import Batch, Objective, Share
from promptloop.objectives.drafts import described, misfits, refusals
from promptloop.objectives.mismatch import Mismatch, gaps
from promptloop.objectives.policy_gradient import SUMMED, Surrogate, group_advantages, policy_gradient
from promptloop.parameters import has_reference, reference
from promptloop.policies.contract import Draft, Policy, Request
from promptloop.policies.first import First
from promptloop.policies.mllm import Mllm
from promptloop.policies.served import Served
from promptloop.rewards.composite import Weighted
from promptloop.rewards.contract import Reward
from promptloop.rollout import Geometry, Rollout, rollout
from promptloop.timing import Stopwatch
from promptloop.turns import DENOISER, InTurn, Turns

Sum = Callable[[Tensor], Tensor]  # over all processes


@final
@dataclass(frozen=True, eq=False)
class Portion:
    """Some drafts with the advantages of their episodes, and the numbers of the whole batch."""

    drafts: tuple[Draft, ...]
    advantages: Tensor
    tokens: int
    rows: int
    old: Tensor | None = None
    correction: Tensor | None = None


@final
@dataclass(frozen=True, eq=False)
class PromptGRPO(Objective):
    """`queries(update)` are the texts of one update's groups, in order.

    baseline and scale are `group_advantages`'. kl_to "old" is the direction the paper prints, "reference"
    the policy before training, whose KL is told even where the surrogate gives it no weight (it needs a LoRA
    for that). `refusal_cost` times the share of an episode's drafts that were refused (empty, overlong,
    unparsable) is taken off its reward: a refused draft leaves the prompt as it is, so without a cost writing
    too much becomes a dear way of writing nothing. So is `length_cost` times `misfits` of `draft_words`.
    With `first`, which is not trained, the first prompt of every trajectory is its own (`First`); the
    geometry must say so. In the first `first_alone` updates only
    the first prompt of an episode is written: one draft is easier to credit than five, and what is
    learned of it serves the others. `micro_batch` drafts are scored together. With `recompute` (several
    optimiser steps on one batch) the old log-probs are computed once more in the geometry of training;
    without it those of the step itself stand for them and the ratio is 1. "gap" tells how far the step's own
    log-probs are from those recorded when the drafts were drawn. With `served` a server draws them, which
    follows the policy update by update; the old log-probs are then always computed here, and the `mismatch`
    between the two is told, corrected, or refused. `turns` moves policy and denoiser in and out.
    """

    summed = (*SUMMED, "gap")

    denoiser: Any
    policy: Mllm
    reward: Reward
    queries: Callable[[int], Sequence[str]]
    geometry: Geometry
    surrogate: Surrogate = Surrogate()
    seed: int = 0
    baseline: Literal["mean", "leave-one-out"] = "mean"
    scale: Literal["group", "batch", "none"] = "group"
    kl_to: Literal["old", "reference"] = "reference"
    first: Policy | None = None
    refusal_cost: float = 0.0
    length_cost: float = 0.0
    draft_words: tuple[int, int] = (16, 76)
    first_alone: int = 0
    micro_batch: int = 64
    recompute: bool = False
    tolerance: float = 1e-3
    served: Served | None = None
    mismatch: Mismatch = Mismatch()
    total: Sum = lambda value: value
    turns: Turns = field(default_factory=Turns)

    def __post_init__(self) -> None:
        for name in ("refusal_cost", "length_cost"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be a finite number from 0")
        if not 1 <= self.draft_words[0] <= self.draft_words[1]:
            raise ValueError(f"draft_words is {self.draft_words}; give the fewest and most words, from 1")
        if self.first_alone < 0:
            raise ValueError(f"first_alone is {self.first_alone}; give a number of updates from 0")
        if self.micro_batch < 1:
            raise ValueError(f"micro_batch is {self.micro_batch}; it must be at least 1")
        if self.geometry.first_given != (self.first is not None):
            raise ValueError("first and the geometry's first_given must be given both, or neither")
        if self.first_alone and self.first is not None:
            raise ValueError(f"first_alone is {self.first_alone}, but the first draft is given")
        if self.kl_to not in ("old", "reference"):
            raise ValueError(f"kl_to is {self.kl_to!r}; choose 'old' or 'reference'")
        if self.served is not None and self.served.policy is not self.policy:
            raise ValueError("served follows another policy than the one that is trained; give it this one")

    def memory(self) -> dict[str, Tensor]:
        """The running statistics of a reward by z-scores."""
        return self.reward.state() if isinstance(self.reward, Weighted) else {}

    def remember(self, kept: Mapping[str, Tensor]) -> None:
        if isinstance(self.reward, Weighted):
            self.reward.restore(kept)
        else:
            super().remember(kept)

    # --- before the first update

    def check(self, share: Share) -> None:
        """The ratio of a fresh draft is 1, rewards are finite, groups divide among the processes."""
        asked = self.queries(0)
        if len(asked) != self.geometry.queries:
            raise ValueError(f"{len(asked)} queries for an update of {self.geometry.queries} groups")
        share.of_rows(asked)
        if share.of > 1 and isinstance(self.reward, Weighted) and self.reward.norm == "z":
            raise ValueError("z(...) keeps statistics of its own in every process, so rewards would not be "
                             "on one scale; train in one process, or use rank(...)")  # fmt: skip
        image = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(self.seed))
        requests = [
            Request(q, q, shown, when) for q in asked[:2] for shown, when in ((None, 0.0), (image, 0.5))
        ]
        with answering(self.policy.network):
            drafts = self.policy.write(requests, list(range(len(requests))))
        with torch.no_grad():
            again, mask = self.policy.log_prob(drafts)
        told = padded([draft.log_probs for draft in drafts], mask).to(again)
        off = float(((again - told).exp() - 1).abs()[mask].max())
        if not off <= self.tolerance:
            raise ValueError(
                f"log-probs recomputed for training differ from those drawn: the ratio is off 1 by {off:.2g} "
                f"(tolerance {self.tolerance:g}); use float32, or turn off what changes the network meanwhile"
            )
        if self.served is not None:
            self.served.follow()
            there = self.served.write(requests, list(range(len(requests))))
            self.mismatch.measured(gaps(there, self._log_prob(there)))
        small = Geometry(
            queries=1, group=2, refinements=1, denoising_steps=2, guidance=self.geometry.guidance
        )
        self._episodes(self.policy, asked[:1], small, seed=self.seed)

    @property
    def writer(self) -> Policy:
        """Who writes the drafts of an episode."""
        later: Policy = self.policy if self.served is None else self.served
        return later if self.first is None else First(self.first, later)

    # --- the two verbs

    def collect(self, update: int, share: Share) -> Batch:
        first, asked = share.of_rows(self.queries(update))
        geometry = self.geometry if update >= self.first_alone else replace(self.geometry, refinements=1)
        if self.served is not None:
            self.served.follow()
        made = self._episodes(self.writer, asked, geometry, seed=self.seed + update, first=first)
        wrong = misfits(made, self.draft_words)
        rewards = made.rewards - self.refusal_cost * refusals(made) - self.length_cost * wrong
        advantages, telling = group_advantages(
            rewards,
            self.geometry.group,
            baseline=self.baseline,
            scale=self.scale,
            deviation=self._deviation(rewards) if self.scale == "batch" else None,
        )
        pairs = [
            (written[k], advantages[e])
            for e, written in enumerate(made.drafts)
            if telling[e]
            for k in made.credited[e]
        ]
        pairs.sort(key=lambda pair: len(pair[0].tokens))  # little padding
        count = torch.tensor(
            [sum(len(d.tokens) for d, _ in pairs), len(pairs)], device=self.policy.network.device
        )
        tokens, rows = (int(n) for n in self.total(count))
        parts, off, watch = [], [], Stopwatch()
        with watch("old log-probs"):
            for k in range(0, len(pairs), self.micro_batch):
                some = pairs[k : k + self.micro_batch]
                drafts = tuple(draft for draft, _ in some)
                gains = torch.stack([a for _, a in some])
                part = Portion(drafts, gains, tokens, rows, self._old(drafts))
                if self.served is not None and part.old is not None:
                    off += (rows_off := gaps(drafts, part.old))
                    weights = padded([self.mismatch.weights(row) for row in rows_off], part.old)
                    part = replace(part, correction=weights.to(part.old))
                parts.append(part)
        seconds = {**made.seconds, **watch.seconds}
        metrics = described(made, telling, self.geometry.group)
        metrics |= {"misfits": float(wrong.mean())} if self.length_cost else {}
        metrics |= {} if self.served is None else self.mismatch.measured(off)
        return Batch(tuple(parts), metrics | {"queries_cut": self._cut(asked)}, seconds, made)

    def loss(self, part: Portion) -> tuple[Tensor, dict[str, Tensor]]:
        before = None
        told = self.surrogate.kl_weight or has_reference(self.policy.network)
        if told and self.kl_to == "reference":
            with torch.no_grad(), reference(self.policy.network):
                before, _ = self.policy.log_prob(part.drafts)
        log_probs, mask = self.policy.log_prob(part.drafts)
        loss, metrics = policy_gradient(
            log_probs,
            part.advantages.to(log_probs),
            mask,
            self.surrogate,
            old=part.old,
            reference=before,
            correction=part.correction,
            tokens=part.tokens,
            drafts=part.rows,
        )
        apart = [row.abs().sum() for row in gaps(part.drafts, log_probs.detach())]
        return loss, {**metrics, "gap": torch.stack(apart).sum()}

    def touched(self) -> Tensor:
        """The log-probability of saying nothing to a grey picture."""
        grey = Request("", "", torch.full((3, 64, 64), 0.5), 0.5)
        return self.policy.log_prob([self.policy.silence(grey)])[0].sum()

    def _episodes(
        self, writer: Policy, asked: Sequence[str], geometry: Geometry, *, seed: int, first: int = 0
    ) -> Rollout:
        writer = InTurn(writer, self.turns)
        with answering(self.policy.network), self.turns(DENOISER):
            return rollout(self.denoiser, writer, self.reward, asked, geometry, seed=seed, first=first)

    def _cut(self, asked: Sequence[str]) -> float:
        """The share of queries whose end the text encoder does not read; a policy may say them shorter."""
        limit = self.denoiser.text_limit
        return sum(self.denoiser.count_tokens(query) > limit for query in asked) / len(asked)

    def _deviation(self, rewards: Tensor) -> float:
        """The standard deviation of all processes' rewards, in two passes: the difference of two sums of
        squares would lose it to rounding where the mean is large.
        """

        def added(*numbers: float) -> list[float]:
            found: list[float] = self.total(torch.tensor(numbers, device=self.policy.network.device)).tolist()
            return found

        own = rewards.detach().to("cpu", torch.float64)
        count, total = added(len(own), float(own.sum()))
        (squares,) = added(float((own - total / count).square().sum()))
        return math.sqrt(squares / (count - 1))

    def _old(self, drafts: Sequence[Draft]) -> Tensor | None:
        return self._log_prob(drafts) if self.recompute or self.served is not None else None

    @torch.no_grad()
    def _log_prob(self, drafts: Sequence[Draft]) -> Tensor:
        return self.policy.log_prob(drafts)[0]


@contextmanager
def answering(network: Any) -> Iterator[None]:
    """Inside, the network is in eval mode."""
    training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(training)


def padded(rows: Sequence[Tensor], mask: Tensor) -> Tensor:
    """Rows of different length as one tensor of the mask's shape, 0 where nothing is."""
    out = torch.zeros(mask.shape)
    for k, row in enumerate(rows):
        out[k, : len(row)] = row
    return out
