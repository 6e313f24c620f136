"""Asking the policy: what it is shown, which seeds it draws from, and which answers are refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor

from promptloop.controls.plan import place
from promptloop.controls.streams import DRAFTS
from promptloop.denoisers.memory import told
from promptloop.ledger import count
from promptloop.policies.contract import LIKELIEST, Draft, Policy, Request
from promptloop.sample import State, decoded


@final
@dataclass(frozen=True, eq=False)
class Question:
    """Requests to a policy with their seeds, and the denoiser that the drafts are for."""

    policy: Policy
    requests: list[Request]
    seeds: list[int]
    denoiser: Any

    def write(self) -> list[Draft]:
        """The policy's drafts as they are; touches nothing but the policy."""
        count, size = len(self.requests), self.policy.image_size
        ways = [f"max_batch (now {count} drafts at once)", "the policy's dtype",
                f"the policy's image_size (now {size})"]  # fmt: skip
        with torch.no_grad(), told(f"the policy writes {count} drafts", lambda: ways):
            return self.policy.write(self.requests, self.seeds)

    def checked(self, drafts: list[Draft]) -> list[Draft]:
        """The drafts, those refused that are longer than the text encoder reads; ValueError for too few."""
        if len(drafts) != len(self.requests):
            raise ValueError(
                f"the policy answered {len(self.requests)} requests with {len(drafts)} drafts; one each"
            )
        count(tokens=sum(len(draft.tokens) for draft in drafts))
        limit, length = self.denoiser.text_limit, self.denoiser.count_tokens
        long = [draft.kept is None and length(draft.text) > limit for draft in drafts]
        return [draft.refuse("overlong") if cut else draft for draft, cut in zip(drafts, long, strict=True)]


def ask(
    policy: Policy,
    state: State,
    rows: Sequence[int],
    steps: Sequence[int] | None = None,
    *,
    number: int | None = None,
    negative: bool = False,
) -> list[Draft]:
    """The drafts for the samples `rows`; see `asked`."""
    question = asked(policy, state, rows, steps, number=number, negative=negative)
    return question.checked(question.write())


def asked(
    policy: Policy,
    state: State,
    rows: Sequence[int],
    steps: Sequence[int] | None = None,
    *,
    number: int | None = None,
    negative: bool = False,
) -> Question:
    """What the policy is asked for the samples `rows`, with the estimate of the last executed step (if any).

    Each draft has its own seed, a function of the sample's seed and the step, or of the seed that `Streams`
    has for it. `steps` says at which steps the drafts are asked for (None: now), `number` which draft of its
    sample each is, counted from 0 (None: the next). `negative`: the state's prompts are negative ones, and a
    new one is wanted, drawn from the sample's seed alone.
    """
    denoiser = state.run.denoiser
    estimates: Sequence[Tensor | None] = [None] * len(rows)
    if state.transition is not None:
        with torch.no_grad():
            clean = state.transition.clean[torch.tensor(rows, device=state.x.device)]
            images = decoded(denoiser, clean, policy.image_size).float().cpu()
        estimates = [image.clone() for image in images]
    when = [place(state)] * len(rows) if steps is None else steps
    drawn = [state.step] * len(rows) if steps is None else steps
    total = len(state.run.levels) - 1
    requests = [
        Request(state.queries[i], state.prompts[i], estimate, step / total, negative)
        for i, estimate, step in zip(rows, estimates, when, strict=True)
    ]
    if negative:
        seeds = [state.generator(i, "negative").initial_seed() for i in rows]
    else:
        seeds = [draft_seed(state, i, step, number) for i, step in zip(rows, drawn, strict=True)]
    return Question(policy, requests, seeds, denoiser)


def draft_seed(state: State, i: int, step: int, number: int | None) -> int:
    """The seed of the next draft of sample i (or of its `number`), used at `step`; perhaps `LIKELIEST`."""
    streams = state.memory.get(DRAFTS)
    if streams is not None:
        count = _begun(state, i) if number is None else number
        if count >= streams.shape[1]:
            raise ValueError(f"Streams has seeds for {streams.shape[1]} drafts; there are more refinements")
        if streams[i, count] == LIKELIEST:
            return LIKELIEST
        state = replace(state, seeds=streams[:, count])
    return replace(state, step=step).generator(i, "draft").initial_seed()


def _begun(state: State, i: int) -> int:
    """How many drafts of sample i have been asked for."""
    return len(state.memory["drafts"][i]) + len(state.memory.get("pending", {i: ()})[i])
