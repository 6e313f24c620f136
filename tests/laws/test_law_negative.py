"""A negative prompt written by a policy: nothing where nothing is written, CFG(negative=...) where it is."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from laws.bed import words

from promptloop.controls import CFG, FK, NegativePrompt, PromptLoop, Record
from promptloop.policies.contract import Request
from promptloop.policies.fixed import Fixed, Identity, Table, Template
from promptloop.sample import rescore, sample
from promptloop.schedules import vp
from promptloop.solvers import DDIM

QUERIES, SEEDS = ["up", "down", "up"], [3, 4, 5]


@dataclass(frozen=True)
class Later(Fixed):
    """ "down" before the first step, then what the query is not; remembers nothing."""

    seen: list[Request]

    def answer(self, request: Request, rng: random.Random) -> str:
        self.seen.append(request)
        return "down" if request.progress == 0 else {"up": "far", "down": "up"}[request.query]


def run(*controls: Any, **options: Any) -> Any:
    given: dict[str, Any] = {"levels": vp(6), "solver": DDIM(1.0), "controls": controls, "seeds": SEEDS}
    return sample(words(), QUERIES, **given | options).state


@pytest.mark.parametrize("negative", [None, "down"])
def test_a_policy_that_keeps_is_plain_guidance_bitwise(negative: str | None) -> None:
    """Also where it is never asked. Fails when a kept answer is embedded as the empty prompt: a CFG with a
    negative of its own would lose it.
    """
    plain = run(CFG(3.0, negative)).x
    for policy, often in ((Identity(), 3), (Template("keep"), 1), (Table({"up": "far"}), 0)):
        for order in ((0, 1), (1, 0)):
            both = [CFG(3.0, negative), NegativePrompt(policy, often)]
            assert torch.equal(run(*(both[k] for k in order)).x, plain)


def test_what_is_written_once_is_that_negative_bitwise() -> None:
    """For each sample its own. Fails when rows of the embedding are given to other samples, or a kept one
    gets the first one's.
    """
    same = run(CFG(3.0), NegativePrompt(Template("far"))).x
    assert torch.equal(same, run(CFG(3.0, "far")).x)
    own = run(CFG(3.0, "down"), NegativePrompt(Table({"up": "far"})))
    far, down = run(CFG(3.0, "far")).x, run(CFG(3.0, "down")).x
    assert torch.equal(own.x, torch.stack([far[0], down[1], far[2]]))
    split = run(CFG(3.0, "down"), NegativePrompt(Table({"up": "far"})), max_batch=1)
    assert torch.equal(split.x, own.x), "a batch in which nothing is written joins one in which something is"
    assert [len(row) for row in own.memory["negative_drafts"]] == [1, 1, 1]
    assert own.memory["negative_drafts"][1][0].kept == "same"


def test_inside_the_trajectory_each_step_has_the_negative_then_in_force() -> None:
    """The policy is shown the estimate and the negative in force; log-probs scored again are those recorded.

    Fails when guidance reads the last negative at every step (rescore differs), or requests are told the
    prompt in force.
    """
    seen: list[Request] = []
    state = run(CFG(3.0), NegativePrompt(Later(seen), 2), Record())
    assert [request.prompt for request in seen] == [""] * 3 + ["down"] * 3
    assert all(request.negative and (request.estimate is None) == (k < 3) for k, request in enumerate(seen))
    again = rescore(words(), state)
    assert torch.allclose(again, state.memory["path_log_prob"], atol=1e-5, equal_nan=True)
    same = rescore(state.run.denoiser, state)
    assert torch.allclose(same, state.memory["path_log_prob"], atol=1e-5, equal_nan=True)
    assert not torch.equal(state.x, run(CFG(3.0, "down")).x)


def test_beside_a_prompt_loop_and_particles_and_alone() -> None:
    """Sample i is the same alone; fails when a draft's seed or a negative is read by its row in the batch."""

    @dataclass(frozen=True)
    class Drawn(Fixed):
        def answer(self, request: Request, rng: random.Random) -> str:
            return rng.choice(["up", "down", "far"])

    def bright(images: torch.Tensor, queries: Any) -> torch.Tensor:
        return images.mean((1, 2, 3))

    controls = [PromptLoop(Drawn(), 2), CFG(3.0), NegativePrompt(Drawn(), 3), FK(bright, 2, 5.0, every=2)]
    whole = run(*controls)
    for i in range(3):
        alone = sample(words(), QUERIES[i : i + 1], levels=vp(6), solver=DDIM(1.0), controls=controls,
                       seeds=SEEDS[i : i + 1]).state  # fmt: skip
        assert torch.allclose(alone.x[0], whole.x[i], atol=1e-5)
    parted = run(*controls, max_batch=2)
    assert torch.allclose(parted.x, whole.x, atol=1e-5)


@pytest.mark.parametrize(
    "controls",
    [[], [CFG(1.0)], [CFG(2.0, window=(0.0, 0.5)), CFG(3.0, window=(0.5, 1.0))]],
    ids=["none", "idle", "two"],
)
def test_without_guidance_to_act_through_it_is_refused(controls: list[Any]) -> None:
    with pytest.raises(ValueError, match="acts through one CFG"):
        run(*controls, NegativePrompt(Identity()))
    with pytest.raises(ValueError, match="two NegativePrompts"):
        run(CFG(2.0), NegativePrompt(Identity()), NegativePrompt(Identity()))
