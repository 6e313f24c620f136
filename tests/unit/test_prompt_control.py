"""PromptLoop and Rewrite on an exact denoiser, where a prompt is a shift of the mean."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from promptloop.controls.plan import even_steps
from promptloop.controls.prompt import PromptLoop, Rewrite
from promptloop.denoisers.exact import Gaussian
from promptloop.policies import Draft, Identity, Policy, Request, Table, Template
from promptloop.sample import Control, State, sample
from promptloop.solvers import DDIM

LONG = "a" + 30 * " very"
MEANINGS = {"a": 0.0, "b": 2.0, "c": -3.0, LONG: 1.0, **{f"a {k}": 0.1 * k for k in range(40)}}
STEPS = 10


@dataclass(frozen=True)
class Counting(Policy):
    """Answers "a <seed mod 40>" and remembers what it was asked."""

    asked: list[list[Request]] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    image_size: int | None = 6

    def write(self, requests: Sequence[Request], seeds: Sequence[int]) -> list[Draft]:
        self.asked.append(list(requests))
        self.seeds.extend(seeds)
        return [Draft(request, f"a {seed % 40}") for request, seed in zip(requests, seeds, strict=True)]

    def log_prob(self, drafts: Sequence[Draft]) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


def kept(state: State) -> Counter[str]:
    """How often an answer was "used", and how often the prompt in force was kept and why."""
    return Counter(draft.kept or "used" for drafts in state.memory.get("drafts", ()) for draft in drafts)


def bed(dim: int = 3) -> Gaussian:
    return Gaussian(dim=dim, prompts=MEANINGS)


def run(*controls: object, prompts: Sequence[str] = ("a", "a", "b"), seeds: Sequence[int] = (5, 6, 7),
        steps: int = STEPS, **options: object) -> State:  # fmt: skip
    return sample(
        bed(), prompts, seeds=seeds, steps=steps, solver=DDIM(1.0), controls=controls, **options
    ).state


# --- where


@pytest.mark.parametrize(
    ("refinements", "steps", "window", "expected"),
    [
        (5, 50, (0.0, 1.0), [0, 10, 20, 30, 40]),
        (5, 7, (0.0, 1.0), [0, 1, 2, 4, 5]),
        (3, 3, (0.0, 1.0), [0, 1, 2]),
        (1, 20, (0.0, 1.0), [0]),
        (1, 20, (0.3, 0.6), [0]),
        (0, 20, (0.0, 1.0), []),
        (4, 20, (0.3, 0.6), [0, 6, 8, 10]),
        (3, 10, (0.1, 0.3), [0, 1, 2]),
        (5, 20, (0.0, 0.5), [0, 2, 4, 6, 8]),
    ],
)
def test_even_steps(refinements: int, steps: int, window: tuple[float, float], expected: list[int]) -> None:
    """Fails if the window's end is included, or the first step left out of a window that starts later."""
    assert even_steps(refinements, steps, window) == expected


@pytest.mark.parametrize("plan", ["even", "random"])
def test_more_refinements_than_steps_is_an_error(plan: str) -> None:
    with pytest.raises(ValueError, match="11 refinements do not fit: 10 steps"):
        run(PromptLoop(Identity(), 11, plan=plan))
    with pytest.raises(ValueError, match="5 refinements do not fit.*room for 4"):
        run(PromptLoop(Identity(), 5, window=(0.2, 0.5), plan=plan))


@pytest.mark.parametrize(
    "settings",
    [{"refinements": -1}, {"window": (0.5, 0.5)}, {"window": (0, 2)}, {"plan": "x"}, {"loop": "x"}],
)
def test_settings_are_checked(settings: dict) -> None:
    with pytest.raises(ValueError, match=str(next(iter(settings)))):
        PromptLoop(Identity(), **settings)


def test_a_random_plan_is_the_samples_own_and_uniform() -> None:
    """Fails if the plan is drawn from the batch's first seed, or step 0 is left out, or steps repeat."""
    seeds = list(range(400))
    loop = PromptLoop(Identity(), 4, plan="random")
    plans = run(loop, prompts=["a"] * 400, seeds=seeds).memory["plan"]
    assert plans.shape == (400, STEPS) and bool((plans.sum(1) == 4).all()) and bool(plans[:, 0].all())
    share = plans[:, 1:].float().mean(0)  # each with probability 3 / 9
    assert float((share - 1 / 3).abs().max()) < 4 * (2 / 9 / 400) ** 0.5
    alone = run(loop, prompts=["a"], seeds=[17]).memory["plan"]
    assert torch.equal(alone[0], plans[17])


# --- what the policy is asked


def test_the_policy_sees_query_prompt_progress_and_the_estimate_of_the_last_step() -> None:
    """Fails if the estimate is x instead of the clean prediction, or belongs to another step or sample."""
    policy, states = Counting(), []
    end = run(PromptLoop(policy, 2), Watch(states))
    first, second = policy.asked
    assert [r.estimate for r in first] == [None] * 3 and [r.progress for r in first] == [0.0] * 3
    assert [r.prompt for r in first] == ["a", "a", "b"]
    before = states[STEPS // 2]
    images = bed().decode(before.transition.clean, size=6)
    for i, request in enumerate(second):
        assert request.query == end.queries[i] and request.progress == 0.5
        assert request.prompt == end.memory["drafts"][i][0].text
        assert torch.equal(request.estimate, images[i])


@dataclass(frozen=True)
class Watch(Control):
    """Keeps every state that a step begins with."""

    states: list

    def condition(self, state: State) -> State:
        self.states.append(state)
        return state


def test_a_prompt_holds_until_the_next() -> None:
    states: list[State] = []
    end = run(PromptLoop(Counting(), 2), Watch(states))
    drafts = end.memory["drafts"]
    for state in states:
        expected = tuple(row[state.step >= STEPS // 2].text for row in drafts)
        assert state.prompts == expected
    assert end.prompts == tuple(row[1].text for row in drafts) and end.queries == ("a", "a", "b")


def test_only_the_samples_whose_plan_says_so_are_asked() -> None:
    policy = Counting()
    end = run(PromptLoop(policy, 3, plan="random"))
    assert sum(len(asked) for asked in policy.asked) == 9 and len(policy.asked[0]) == 3
    for row, plan in zip(end.memory["drafts"], end.memory["plan"], strict=True):
        assert [d.request.progress for d in row] == [k / STEPS for k in plan.nonzero()[:, 0].tolist()]


@pytest.mark.parametrize("loop", ["closed", "open"])
@pytest.mark.parametrize("plan", ["even", "random"])
def test_a_sample_does_not_depend_on_its_batch(plan: str, loop: str) -> None:
    """Fails if the policy's seeds come from the row number, or drafts are scattered to the wrong rows."""
    controls = PromptLoop(Counting(), 4, plan=plan, loop=loop)
    whole, split = run(controls), run(controls, max_batch=1)
    assert torch.equal(whole.x, split.x) and whole.prompts == split.prompts
    texts = [[[d.text for d in row] for row in end.memory["drafts"]] for end in (whole, split)]
    assert texts[0] == texts[1] and texts[0][0] != texts[0][1]


def test_drafts_follow_their_samples() -> None:
    end = run(PromptLoop(Counting(), 3))
    taken = end.take([2, 0])
    assert taken.memory["drafts"] == (end.memory["drafts"][2], end.memory["drafts"][0])


# --- open loop


def test_open_loop_writes_all_prompts_first_each_from_the_one_before() -> None:
    policy, states = Counting(), []
    end = run(PromptLoop(policy, 3, loop="open"), Watch(states))
    assert len(policy.asked) == 3 and [r.progress for asked in policy.asked for r in asked[:1]] == [
        0.0,
        0.3,
        0.6,
    ]
    assert all(r.estimate is None for asked in policy.asked for r in asked)
    for i, drafts in enumerate(end.memory["drafts"]):
        assert [d.request.prompt for d in drafts] == [end.queries[i], drafts[0].text, drafts[1].text]
        assert [s.prompts[i] for s in states] == [drafts[(k >= 3) + (k >= 6)].text for k in range(STEPS)]


def test_open_and_closed_loop_of_a_policy_that_never_looks_are_one() -> None:
    """Fails if an open-loop draft gets another seed than the closed-loop draft of the same step."""
    policy = Counting()
    assert torch.equal(run(PromptLoop(policy, 4, loop="open")).x, run(PromptLoop(policy, 4)).x)


# --- laws


@pytest.mark.parametrize("loop", ["closed", "open"])
def test_repeating_the_prompt_changes_and_embeds_nothing(loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bitwise; fails if saying an unchanged prompt forgets what it was embedded to (embedded=())."""
    plain = run()
    assert torch.equal(run(PromptLoop(Identity(), 5, loop=loop)).x, plain.x)
    assert torch.equal(run(PromptLoop(Counting(), 0)).x, plain.x)
    assert torch.equal(run(Rewrite(Identity())).x, plain.x)
    calls: list[list[str]] = []
    embed = Gaussian.embed
    monkeypatch.setattr(
        Gaussian, "embed", lambda self, texts: calls.append(list(texts)) or embed(self, texts)
    )
    run(PromptLoop(Identity(), 5, loop=loop))
    assert calls == [["a", "b"]]


def test_rewrite_is_one_refinement() -> None:
    rewritten, looped = run(Rewrite(Counting())), run(PromptLoop(Counting(), 1))
    assert torch.equal(rewritten.x, looped.x) and rewritten.prompts == looped.prompts
    assert [d[0].text for d in rewritten.memory["drafts"]] == [d[0].text for d in looped.memory["drafts"]]


def test_a_rewrite_is_the_prompt_from_the_start() -> None:
    assert torch.equal(run(Rewrite(Table({"a": "c"}))).x, run(prompts=["c", "c", "b"]).x)


def test_rewrite_and_loop_keep_all_their_drafts() -> None:
    end = run(Rewrite(Table({"a": "c"})), PromptLoop(Counting(), 2))
    assert [len(row) for row in end.memory["drafts"]] == [3] * 3
    assert [row[1].request.prompt for row in end.memory["drafts"]] == ["c", "c", "b"]


# --- refused answers


def test_a_prompt_longer_than_the_text_encoder_reads_is_refused_and_counted() -> None:
    """Fails if the limit is compared with characters, or the query itself is refused for its length."""
    end = run(PromptLoop(Template("a " + "very " * 80), 2), Rewrite(Table({"a": "c"})))
    assert kept(end) == {"overlong": 6, "used": 2, "same": 1}
    assert end.prompts == ("c", "c", "b")
    long = " ".join(["a"] * 78)
    state = sample(Gaussian(), [long], seeds=[0], steps=4, controls=[PromptLoop(Identity(), 2)]).state
    assert kept(state) == {"same": 2} and kept(run()) == {}
    assert kept(run(PromptLoop(Table({"a": LONG}), 1))) == {"used": 2, "same": 1}


def test_a_policy_must_answer_every_request() -> None:
    class Lazy(Counting):
        def write(self, requests: Sequence[Request], seeds: Sequence[int]) -> list[Draft]:
            return super().write(requests, seeds)[1:]

    with pytest.raises(ValueError, match="answered 3 requests with 2 drafts"):
        run(PromptLoop(Lazy()))


def test_two_loops_are_an_error() -> None:
    with pytest.raises(ValueError, match="two PromptLoops"):
        run(PromptLoop(Identity(), 1), PromptLoop(Identity(), 1))
