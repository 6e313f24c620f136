"""PromptLoop(delay=d): a prompt written before step k comes into force at step k + d."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
import torch
from unit.test_prompt_control import STEPS, Counting, Watch, bed, run
from unit.test_rollout import WORDS, Bed, Brightness, Drawing

import promptloop
from promptloop.controls import PromptLoop, Scheduled
from promptloop.controls.plan import even_steps
from promptloop.policies import Draft, Identity, Request, Table
from promptloop.recipes.job import Job
from promptloop.rollout import Geometry, rollout
from promptloop.sample import Control, State
from promptloop.solvers import FlowSDE


@pytest.mark.parametrize("plan", ["even", "random"])
@pytest.mark.parametrize("delay", [0, 1, 3])
def test_delay_shifts_the_schedule_of_prompts_and_nothing_else(delay: int, plan: str) -> None:
    """Bitwise the run under the drafts as given prompts, `delay` steps later (0: at once, and nothing more is
    remembered than before). Fails if a draft comes into force at k + delay + 1, or is dropped on its way.
    """
    looped = run(PromptLoop(Counting(), 4, plan=plan, delay=delay))
    places = [row.nonzero()[:, 0].tolist() for row in looped.memory["plan"]]
    given = [
        {k + delay: draft.text for k, draft in zip(row, drafts, strict=True)}
        for row, drafts in zip(places, looped.memory["drafts"], strict=True)
    ]
    assert torch.equal(run(Scheduled(given)).x, looped.x) and looped.prompts != looped.queries
    assert ("pending" in looped.memory) == (delay > 0) and not any(looped.memory.get("pending", ()))


def test_the_first_steps_are_made_under_the_query() -> None:
    states: list[State] = []
    end = run(PromptLoop(Counting(), 2, delay=2), Watch(states))
    assert [d.request.progress for d in end.memory["drafts"][0]] == [0.0, 0.4]  # of steps 0 to 7
    for i, drafts in enumerate(end.memory["drafts"]):
        said = [end.queries[i]] * 2 + [drafts[0].text] * 4 + [drafts[1].text] * 4
        assert [state.prompts[i] for state in states] == said


def test_the_policy_sees_the_estimate_and_the_newest_prompt_when_it_is_asked() -> None:
    """Fails if it is asked when its draft comes into force, or is told a prompt older than its last draft."""
    policy, states = Counting(), []
    end = run(PromptLoop(policy, 8, delay=2), Watch(states))
    for k, asked in enumerate(policy.asked):
        for i, request in enumerate(asked):
            assert request.prompt == (end.memory["drafts"][i][k - 1].text if k else end.queries[i])
            if k:
                shown = bed().decode(states[k].transition.clean, size=6)
                assert torch.equal(request.estimate, shown[i])


def test_keeping_the_prompt_does_not_undo_one_on_its_way() -> None:
    """Fails if "keep" means the prompt in force, which a draft that is on its way will replace."""
    end = run(PromptLoop(Table({"a": "c"}), 3, window=(0.0, 0.3), delay=2), prompts=["a"] * 3)
    assert end.prompts == ("c",) * 3 and [d.kept for d in end.memory["drafts"][0]] == [None, "same", "same"]


@pytest.mark.parametrize("plan", ["even", "random"])
def test_a_sample_does_not_depend_on_its_batch_and_drafts_on_their_way_follow_it(plan: str) -> None:
    """Fails if the waiting prompts are kept by row number."""
    loop, seen = PromptLoop(Counting(), 4, plan=plan, delay=2), []
    whole, split = run(loop, Watch(seen)), run(loop, max_batch=1)
    assert torch.equal(whole.x, split.x) and whole.prompts == split.prompts
    state = next(state for state in seen if all(state.memory["pending"]))
    assert state.take([2, 0]).memory["pending"] == (state.memory["pending"][2], state.memory["pending"][0])


def test_no_draft_is_asked_for_that_would_come_too_late() -> None:
    """Fails if the last step counts as a place for a draft although nothing follows it."""
    assert even_steps(5, 50, delay=1) == [0, 9, 19, 29, 39] and even_steps(3, 4, delay=1) == [0, 1, 2]
    plans = run(PromptLoop(Identity(), 4, plan="random", delay=3), prompts=["a"] * 200, seeds=range(200))
    asked = plans.memory["plan"]
    assert not bool(asked[:, -3:].any()) and bool(asked[:, : STEPS - 3].any(0).all())
    with pytest.raises(ValueError, match="10 refinements do not fit.*delay 1 have room for 9"):
        run(PromptLoop(Identity(), 10, delay=1))
    with pytest.raises(ValueError, match="room for 0"):
        even_steps(1, 4, (0.5, 1.0), delay=4)


@pytest.mark.parametrize(
    ("settings", "said"), [({"delay": -1}, "from 0"), ({"delay": 1, "loop": "open"}, "give delay 0")]
)
def test_settings_are_checked(settings: dict, said: str) -> None:
    for make in (lambda **s: PromptLoop(Identity(), **s), Geometry):
        with pytest.raises(ValueError, match=said):
            make(**settings)
    with pytest.raises(ValueError, match=said):
        Job(("a",), delay=settings["delay"], open_loop="loop" in settings)


def test_training_draws_the_same_drafts_and_other_images() -> None:
    """With a policy that does not look. Fails if rollout leaves the delay out, or the plan is even."""
    geometry = Geometry(2, 4, 3, window=(0.0, 0.8), denoising_steps=8, guidance=1.0, image_dropout=0.0)

    def rolled(delay: int) -> tuple[list, torch.Tensor]:
        made = rollout(Bed(0.3, 0.5, 2, prompts=WORDS), Drawing(), Brightness(), ["a", "b"],
                       replace(geometry, delay=delay), seed=3, solver=FlowSDE())  # fmt: skip
        return [[draft.text for draft in row] for row in made.drafts], made.images

    (drafts, images), (same, others) = rolled(0), rolled(1)
    assert drafts == same and not torch.equal(images, others)


def test_generate_delays_and_its_trace_tells() -> None:
    """Fails if generate drops the delay, or the job does not write it down."""
    settings = {"backbone": Bed(0.3, 0.5, 2, prompts=WORDS), "policy": Drawing(), "n": 2, "refinements": 3,
                "steps": 6, "guidance": 1.0}  # fmt: skip
    plain, late = (promptloop.generate("a", delay=delay, **settings) for delay in (0, 2))
    assert not torch.equal(plain.images, late.images) and len(late.shots[0].picture.notes) == 3
    job = Job(("a",), delay=2)
    assert late.trace["job"]["delay"] == 2 and Job.from_dict(job.as_dict()) == job
    old = {name: value for name, value in job.as_dict().items() if name != "delay"}
    assert Job.from_dict(old) == Job(("a",))


# --- in the background


@dataclass(frozen=True)
class Slow(Counting):
    """Writes no word before `step` steps are done, or ten seconds have passed."""

    step: threading.Event = field(default_factory=threading.Event)
    waited: list[bool] = field(default_factory=list)

    def write(self, requests: Sequence[Request], seeds: Sequence[int]) -> list[Draft]:
        self.waited.append(self.step.wait(10))
        return super().write(requests, seeds)


@dataclass(frozen=True)
class Bell(Control):
    """Tells when the first step is done."""

    event: threading.Event

    def select(self, state: State) -> State:
        self.event.set()
        return state


def test_the_denoiser_goes_on_while_the_policy_writes() -> None:
    """The policy waits for the first step, which a loop that waits for the policy never makes.

    Fails if the writing is waited for where it is asked for.
    """
    policy = Slow()
    end = run(PromptLoop(policy, 3, delay=1, background=True), Bell(policy.step))
    assert policy.waited == [True] * 3 and end.prompts != end.queries


@pytest.mark.parametrize("delay", [1, 3])
def test_background_changes_no_sample(delay: int) -> None:
    """Fails if two answers are mixed up, or the seeds depend on what has arrived."""
    for plan in ("even", "random"):
        loop = PromptLoop(Counting(), 4, plan=plan, delay=delay)
        before, behind = run(loop), run(replace(loop, background=True))
        assert torch.equal(before.x, behind.x) and before.prompts == behind.prompts
        texts = [[[d.text for d in row] for row in end.memory["drafts"]] for end in (before, behind)]
        assert texts[0] == texts[1]


def test_an_error_in_the_background_is_told() -> None:
    class Failing(Counting):
        def write(self, requests: Sequence[Request], seeds: Sequence[int]) -> list[Draft]:
            raise ValueError("no answer")

    with pytest.raises(ValueError, match="no answer"):
        run(PromptLoop(Failing(), 1, delay=1, background=True))
    with pytest.raises(ValueError, match="give a delay from 1"):
        PromptLoop(Identity(), background=True)
