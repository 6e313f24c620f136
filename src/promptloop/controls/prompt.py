"""Which prompt is in force at each step: PromptLoop (a policy that looks), Rewrite (asked once), Scheduled.

PromptLoop: Lee and Ye, "PromptLoop", arXiv 2510.00430. Where the paper is silent the choice is said here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from promptloop.controls.ask import ask, asked
from promptloop.controls.later import arrived, newest, sent
from promptloop.controls.plan import check_delay, even_steps, inside, place
from promptloop.policies.contract import Draft, Policy
from promptloop.sample import Control, State

Schedule = Mapping[int, str]  # step -> the prompt in force from that step on


@final
@dataclass(frozen=True)
class PromptLoop(Control):
    """At a few steps the policy sees the estimate and writes the prompt for the steps that follow.

    `refinements` steps are refined, the first step always among them (without an estimate: there is none),
    the others inside `window`, given as fractions of the trajectory; (0, 1) is all of it, as in the paper.
    plan "even" spaces them equally (inference); "random" draws them without replacement for each sample
    from its seed (training). loop "closed" shows the policy the clean estimate of the last executed step,
    which costs no denoiser call; "open" writes all prompts before the first step, each from the one before,
    without images.

    A draft written before step k comes into force at step k + `delay`: until then the denoiser goes on with
    the old prompt, so the two need not wait for each other. No draft is asked for that would come too late.
    Before the first comes into force, the prompt is the query. With delay 2 or more the policy is told the
    newest prompt written, which may not be in force yet. With `background` the policy then writes in a thread
    of its own while the denoiser goes on (on CUDA in a stream of its own); the samples are the same.

    A draft longer than the text encoder reads is refused. From when it comes into force, every draft is kept
    in memory["drafts"], one tuple per sample, in the order written; memory["plan"] [B, steps] says where
    refinements happen. A prompt that does not change is not embedded again. refinements=0 is the identity.
    """

    policy: Policy
    refinements: int = 5
    window: tuple[float, float] = (0.0, 1.0)
    plan: Literal["even", "random"] = "even"
    loop: Literal["closed", "open"] = "closed"
    delay: int = 0
    background: bool = False

    def __post_init__(self) -> None:
        if self.refinements < 0:
            raise ValueError(f"refinements is {self.refinements}; give a number of prompts to write, from 0")
        start, end = self.window
        if not 0.0 <= start < end <= 1.0:
            raise ValueError(f"window is {self.window}; give two fractions of the trajectory: (0.1, 0.6)")
        if self.plan not in ("even", "random"):
            raise ValueError(f"plan is {self.plan!r}; choose 'even' or 'random'")
        if self.loop not in ("closed", "open"):
            raise ValueError(f"loop is {self.loop!r}; choose 'closed' or 'open'")
        check_delay(self.delay, self.loop)
        if self.background and not self.delay:
            raise ValueError("background is on and delay 0, so the denoiser has to wait; give a delay from 1")

    def start(self, state: State) -> State:
        if "plan" in state.memory:
            raise ValueError("two PromptLoops in one run would overwrite each other's prompts; keep one")
        plan = torch.stack([self._plan(state, i) for i in range(len(state))])
        state = _with_drafts(state).remember(plan=plan)
        if self.delay:
            state = state.remember(pending=((),) * len(state))
        if self.loop == "open":
            state = state.remember(ahead=self._write_ahead(state, plan))
        return state

    def condition(self, state: State) -> State:
        step, state = place(state), arrived(state) if self.delay else state
        rows = state.memory["plan"][:, step].nonzero()[:, 0].tolist()
        if not rows:
            return state
        if self.delay:
            question = asked(self.policy, state.say(newest(state)), rows)
            return sent(state, rows, question, state.step + self.delay, self.background)
        if self.loop == "closed":
            return _apply(state, rows, ask(self.policy, state, rows))
        done = state.memory["plan"][:, :step].sum(1).tolist()
        return _apply(state, rows, [state.memory["ahead"][i][done[i]] for i in rows])

    def _plan(self, state: State, i: int) -> Tensor:
        """Bool [steps]: where sample i is refined."""
        steps = len(state.run.levels) - 1
        chosen = torch.zeros(steps, dtype=torch.bool)
        if self.plan == "even":
            chosen[even_steps(self.refinements, steps, self.window, self.delay)] = True
        elif self.refinements:
            later = [k for k in inside(self.refinements, steps, self.window, self.delay) if k > 0]
            order = torch.randperm(len(later), generator=state.generator(i, "plan"))
            chosen[[0, *(later[k] for k in order[: self.refinements - 1].tolist())]] = True
        return chosen

    def _write_ahead(self, state: State, plan: Tensor) -> tuple[tuple[Draft, ...], ...]:
        """All drafts of every sample, chained: each request's prompt is the draft before it."""
        where = [row.nonzero()[:, 0].tolist() for row in plan]  # one number of refinements for all samples
        ahead: list[tuple[Draft, ...]] = [() for _ in where]
        prompts = state.prompts
        for k in range(self.refinements):
            steps = [places[k] for places in where]
            drafts = ask(self.policy, state.say(prompts), list(range(len(state))), steps, number=k)
            prompts = tuple(draft.text for draft in drafts)
            ahead = [(*written, draft) for written, draft in zip(ahead, drafts, strict=True)]
        return tuple(ahead)


@final
@dataclass(frozen=True)
class Rewrite(Control):
    """The feed-forward rewriter: the policy is asked once, before the first step, and never sees an image.

    The same as PromptLoop(policy, refinements=1).
    """

    policy: Policy

    def start(self, state: State) -> State:
        rows, state = list(range(len(state))), _with_drafts(state)
        return _apply(state, rows, ask(self.policy, state, rows))


@final
@dataclass(frozen=True)
class Scheduled(Control):
    """Given prompts: `Scheduled({0: "a circle", 8: "a circle with stripes"})`; each holds until the next.

    `prompts` maps steps to prompts, for all samples alike; or is a list of such maps, one per sample of the
    batch; or a function from a query to its map (it also works when `max_batch` splits the samples).
    """

    prompts: Schedule | Sequence[Schedule] | Callable[[str], Schedule]

    def start(self, state: State) -> State:
        if "schedule" in state.memory:
            raise ValueError("two Scheduled in one run would overwrite each other's prompts; merge them")
        schedules = self._schedules(state.queries)
        steps = len(state.run.levels) - 1
        for schedule in schedules:
            for step in schedule:
                if not 0 <= step < steps:
                    raise ValueError(
                        f"a prompt is scheduled at step {step} of a run with steps 0 to {steps - 1}"
                    )
        return state.remember(schedule=schedules)

    def condition(self, state: State) -> State:
        schedules, step = state.memory["schedule"], place(state)
        return state.say([s.get(step, p) for s, p in zip(schedules, state.prompts, strict=True)])

    def _schedules(self, queries: Sequence[str]) -> tuple[Schedule, ...]:
        if callable(self.prompts):
            return tuple(self.prompts(query) for query in queries)
        if isinstance(self.prompts, Mapping):
            return (self.prompts,) * len(queries)
        if len(self.prompts) != len(queries):
            raise ValueError(
                f"{len(self.prompts)} schedules for a batch of {len(queries)} samples; give one per sample, "
                "or a function from query to schedule if max_batch splits the samples"
            )
        return tuple(self.prompts)


def _with_drafts(state: State) -> State:
    return state if "drafts" in state.memory else state.remember(drafts=((),) * len(state))


def _apply(state: State, rows: Sequence[int], drafts: Sequence[Draft]) -> State:
    """The drafts' prompts in force, and the drafts remembered, for the samples `rows`."""
    prompts, written = list(state.prompts), list(state.memory["drafts"])
    for i, draft in zip(rows, drafts, strict=True):
        prompts[i] = draft.text
        written[i] = (*written[i], draft)
    return state.say(prompts).remember(drafts=tuple(written))
