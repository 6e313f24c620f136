"""Episodes in groups: what they share of their random numbers, and which drafts their reward tells of."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from promptloop.denoisers.exact import Gaussian
from promptloop.policies import Draft, Policy, Request
from promptloop.policies.contract import LIKELIEST
from promptloop.rewards.contract import Reward
from promptloop.rollout import Geometry, Rollout, alone, rollout
from promptloop.schedules import Level, flow
from promptloop.solvers import FlowSDE

WORDS = {"": 0.0, "a": 0.0, "b": 0.5, **{f"a {k}": 0.1 * k for k in range(40)}}


class Bed(Gaussian):
    """A Gaussian whose samples are shown as pictures."""

    def levels(self, steps: int) -> list[Level]:
        return flow(steps)

    def decode(self, x: Tensor, size: int | None = None) -> Tensor:
        return x.mean(1).view(-1, 1, 1, 1).expand(-1, 3, 4, 4) * 0.1 + 0.5


@dataclass(frozen=True)
class Drawing(Policy):
    """Answers "a <seed mod 40>"."""

    def write(self, requests: Sequence[Request], seeds: Sequence[int]) -> list[Draft]:
        return [Draft(r, f"a {s % 40}", tokens=torch.ones(2)) for r, s in zip(requests, seeds, strict=True)]

    def log_prob(self, drafts: Sequence[Draft]) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


class Brightness(Reward):
    def __call__(self, images: Tensor, queries: Sequence[str]) -> Tensor:
        return images.mean((1, 2, 3))


def rolled(
    credit: str = "episode", noise: str = "shared", max_batch: int = 96, first_given: bool = False
) -> Rollout:
    geometry = Geometry(6, 4, 3, denoising_steps=8, guidance=1.0, credit=credit, noise=noise,
                        image_dropout=0.0, first_given=first_given, max_batch=max_batch)  # fmt: skip
    bed = Bed(0.3, 0.5, 2, prompts=WORDS)
    return rollout(bed, Drawing(), Brightness(), ["a", "b"] * 3, geometry, seed=3, solver=FlowSDE())


def test_a_group_is_one_trajectory_up_to_its_branch() -> None:
    """Same drafts before it, drawn ones at it alone, and the credit is the branch's alone; the branch varies.

    Fails if the plan or the noise is a member's own, or drafts are credited that all members share.
    """
    made = rolled("branch")
    branches = set()
    for query in range(6):
        group = made.drafts[4 * query : 4 * query + 4]
        credited = made.credited[4 * query : 4 * query + 4]
        assert len(set(credited)) == 1 and len(credited[0]) == 1
        (branch,) = credited[0]
        branches.add(branch)
        for k in range(3):
            texts = {written[k].text for written in group}
            seen = {tuple(written[k].request.estimate.flatten().tolist()) if k else () for written in group}
            when = {written[k].request.progress for written in group}
            assert len(when) == 1
            assert len(texts) == 1 or k >= branch
            assert len(seen) == 1 or k > branch
            assert texts == {f"a {LIKELIEST % 40}"} or k == branch
        assert len({written[branch].text for written in group}) > 1
    assert branches == {0, 1, 2}


def test_credit_of_an_episode_is_all_of_its_drafts() -> None:
    """Fails when a plan is shared without being asked for."""
    made = rolled()
    assert set(made.credited) == {range(3)}
    plans = {tuple(draft.request.progress for draft in written) for written in made.drafts[:4]}
    assert len(plans) > 1


def test_a_first_draft_that_is_given_is_never_credited() -> None:
    """Fails if a group parts at it, or an episode's advantage reaches it."""
    made = rolled("branch", first_given=True)
    assert {tuple(numbers) for numbers in made.credited} == {(1,), (2,)}
    assert {written[0].text for written in made.drafts} == {f"a {LIKELIEST % 40}"}
    assert set(rolled(first_given=True).credited) == {range(1, 3)}
    with pytest.raises(ValueError, match="none is trained"):
        Geometry(refinements=1, first_given=True)


@pytest.mark.parametrize("credit", ["episode", "branch"])
def test_splitting_the_batch_changes_no_episode(credit: str) -> None:
    """Fails when streams are looked up by place instead of seed."""
    whole, split = rolled(credit), rolled(credit, max_batch=5)
    assert torch.allclose(whole.rewards, split.rewards, atol=1e-6)
    assert [[d.text for d in w] for w in whole.drafts] == [[d.text for d in w] for w in split.drafts]


def test_shared_noise_is_shared_in_every_step() -> None:
    """The queries alone: four episodes of one group end in one image; with fresh noise in four."""

    class Keeping(Drawing):
        def write(self, requests: Sequence[Request], seeds: Sequence[int]) -> list[Draft]:
            return [Draft(request, request.prompt, kept="same") for request in requests]

    bed = Bed(0.3, 0.5, 2, prompts=WORDS)
    for noise, images in (("shared", 1), ("fresh", 4)):
        geometry = Geometry(2, 4, 2, denoising_steps=8, guidance=1.0, noise=noise)
        made = rollout(bed, Keeping(), Brightness(), ["a", "b"], geometry, seed=1, solver=FlowSDE())
        for k in range(2):
            assert len(set(made.rewards[4 * k : 4 * k + 4].tolist())) == images
    geometry, places = Geometry(2, 4, 2, denoising_steps=8, guidance=1.0), [(0, 0), (1, 3)]
    images, there = alone(bed, Brightness(), ["a", "b"], geometry, places, seed=1)
    assert there.shape == (2,) and len(images) == 2


def test_a_branch_needs_one_noise() -> None:
    """Fails when two settings that contradict each other are accepted."""
    with pytest.raises(ValueError, match="needs noise shared"):
        Geometry(credit="branch", noise="fresh")
