"""Which prompt is in force at each step: PromptLoop (a policy that looks), Rewrite (asked once), Scheduled.

PromptLoop: Lee and Ye, "PromptLoop", arXiv 2510.00430. Where the paper is silent the choice is said here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, final

import torch
from torch import Tensor

from promptloop.controls.streams import DRAFTS
from promptloop.denoisers.memory import told
from promptloop.policies.contract import LIKELIEST, Draft, Policy, Request
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

    A draft longer than the text encoder reads is refused. Every draft is kept in memory["drafts"], one tuple
    per sample, in the order written; memory["plan"] [B, steps] says where refinements happen. A prompt that
    does not change is not embedded again. refinements=0 is the identity.
    """

    policy: Policy
    refinements: int = 5
    window: tuple[float, float] = (0.0, 1.0)
    plan: Literal["even", "random"] = "even"
    loop: Literal["closed", "open"] = "closed"

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

    def start(self, state: State) -> State:
        if "plan" in state.memory:
            raise ValueError("two PromptLoops in one run would overwrite each other's prompts; keep one")
        plan = torch.stack([self._plan(state, i) for i in range(len(state))])
        state = _with_drafts(state).remember(plan=plan)
        if self.loop == "open":
            state = state.remember(ahead=self._write_ahead(state, plan))
        return state

    def condition(self, state: State) -> State:
        step = _place(state)
        rows = state.memory["plan"][:, step].nonzero()[:, 0].tolist()
        if not rows:
            return state
        if self.loop == "closed":
            return _apply(state, rows, ask(self.policy, state, rows))
        done = state.memory["plan"][:, :step].sum(1).tolist()
        return _apply(state, rows, [state.memory["ahead"][i][done[i]] for i in rows])

    def _plan(self, state: State, i: int) -> Tensor:
        """Bool [steps]: where sample i is refined."""
        steps = len(state.run.levels) - 1
        chosen = torch.zeros(steps, dtype=torch.bool)
        if self.plan == "even":
            chosen[even_steps(self.refinements, steps, self.window)] = True
        elif self.refinements:
            inside = [k for k in _inside(self.refinements, steps, self.window) if k > 0]
            order = torch.randperm(len(inside), generator=state.generator(i, "plan"))
            chosen[[0, *(inside[k] for k in order[: self.refinements - 1].tolist())]] = True
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
        schedules, step = state.memory["schedule"], _place(state)
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


# --- where refinements happen


def _place(state: State) -> int:
    """The step that starts at the state's level: state.step, unless a driver has taken the state back."""
    levels = state.run.levels
    if state.step < len(levels) and levels[state.step] == state.level:
        return state.step
    if state.level not in levels:
        raise ValueError(f"{state.level} is none of the run's levels; prompts are planned for those only")
    return levels.index(state.level)


def _inside(refinements: int, steps: int, window: tuple[float, float]) -> range:
    """The steps of the window; ValueError when the refinements do not fit into it and the first step."""
    start, end = (math.ceil(round(fraction * steps, 6)) for fraction in window)
    inside = range(start, end)
    room = len(inside) + (start > 0)
    if refinements > room:
        raise ValueError(
            f"{refinements} refinements do not fit: {steps} steps with window {window} have room for {room}; "
            "give fewer refinements, more steps or a wider window"
        )
    return inside


def even_steps(refinements: int, steps: int, window: tuple[float, float] = (0.0, 1.0)) -> list[int]:
    """The steps that plan "even" refines: step 0, and others equally spaced in the window.

    The end of the window is not one of them, as the end of the trajectory is not a step.
    """
    inside = _inside(refinements, steps, window)
    if refinements == 0:
        return []
    first = [] if inside.start == 0 else [0]
    rest = refinements - len(first)
    return first + [inside.start + k * len(inside) // rest for k in range(rest)]


# --- asking the policy


def ask(
    policy: Policy,
    state: State,
    rows: Sequence[int],
    steps: Sequence[int] | None = None,
    *,
    number: int | None = None,
) -> list[Draft]:
    """Drafts for the samples `rows`, from the estimate of the last executed step (if there is one).

    Each draft has its own seed, a function of the sample's seed and the step, or of the seed that `Streams`
    has for it. `steps` says at which steps the drafts will be used (None: now), `number` which draft of its
    sample each is, counted from 0 (None: the next). A draft longer than the text encoder reads is refused.
    """
    denoiser = state.run.denoiser
    estimates: Sequence[Tensor | None] = [None] * len(rows)
    if state.transition is not None:
        with torch.no_grad():
            clean = state.transition.clean[torch.tensor(rows, device=state.x.device)]
            images = denoiser.decode(clean, size=policy.image_size).float().cpu()
        estimates = [image.clone() for image in images]
    when = [_place(state)] * len(rows) if steps is None else steps
    drawn = [state.step] * len(rows) if steps is None else steps
    total, limit = len(state.run.levels) - 1, denoiser.text_limit
    requests = [
        Request(state.queries[i], state.prompts[i], estimate, step / total)
        for i, estimate, step in zip(rows, estimates, when, strict=True)
    ]
    seeds = [draft_seed(state, i, step, number) for i, step in zip(rows, drawn, strict=True)]
    size = f"the policy's image_size (now {policy.image_size})"
    ways = [f"max_batch (now {len(requests)} drafts at once)", "the policy's dtype", size]
    with told(f"the policy writes {len(requests)} drafts", lambda: ways):
        drafts = policy.write(requests, seeds)
    if len(drafts) != len(requests):
        raise ValueError(f"the policy answered {len(requests)} requests with {len(drafts)} drafts; one each")
    too_long = [draft.kept is None and denoiser.count_tokens(draft.text) > limit for draft in drafts]
    return [draft.refuse("overlong") if long else draft for draft, long in zip(drafts, too_long, strict=True)]


def draft_seed(state: State, i: int, step: int, number: int | None) -> int:
    """The seed of the next draft of sample i (or of its `number`), used at `step`; perhaps `LIKELIEST`."""
    streams = state.memory.get(DRAFTS)
    if streams is not None:
        count = len(state.memory["drafts"][i]) if number is None else number
        if count >= streams.shape[1]:
            raise ValueError(f"Streams has seeds for {streams.shape[1]} drafts; there are more refinements")
        if streams[i, count] == LIKELIEST:
            return LIKELIEST
        state = replace(state, seeds=streams[:, count])
    return replace(state, step=step).generator(i, "draft").initial_seed()


def _with_drafts(state: State) -> State:
    return state if "drafts" in state.memory else state.remember(drafts=((),) * len(state))


def _apply(state: State, rows: Sequence[int], drafts: Sequence[Draft]) -> State:
    """The drafts' prompts in force, and the drafts remembered, for the samples `rows`."""
    prompts, written = list(state.prompts), list(state.memory["drafts"])
    for i, draft in zip(rows, drafts, strict=True):
        prompts[i] = draft.text
        written[i] = (*written[i], draft)
    return state.say(prompts).remember(drafts=tuple(written))
