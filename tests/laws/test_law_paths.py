"""Search over paths on the exact bed: the law stays, rewards rise, the plain sampler, sample i is itself."""

import pytest
import torch
from diffusers import DDIMScheduler
from laws.bed import Chain, Seen, words
from laws.test_law_candidates import sum_of

from promptloop.controls import CFG, BestOf, PromptLoop
from promptloop.controls.paths import over_paths
from promptloop.denoisers.exact import Gaussian, Linear
from promptloop.policies.fixed import Identity
from promptloop.sample import sample
from promptloop.schedules import flow, vp
from promptloop.solvers import DDIM, Euler, FlowSDE, Scheduler

PROMPTS, SEEDS = ["up", "down", "far", "up"], [3, 3, 4, 5]
SOLVERS = [DDIM(), DDIM(1.0), FlowSDE()]


def searched(prompts=PROMPTS, seeds=SEEDS, **options):
    common = {"reward": sum_of, "levels": vp(10), "solver": DDIM(), "controls": [CFG(2.0)]}
    return over_paths(words(), prompts, seeds=seeds, **common | options)


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_one_path_without_copies_is_the_plain_sampler(solver) -> None:
    """Bitwise; and several are the best of as many noises. Fails when the first path is not the sample's own,
    or a path goes on from another level than its own.
    """
    controls = [PromptLoop(Identity(), 2), CFG(2.0)]
    options = {"seeds": SEEDS, "levels": vp(10), "solver": solver, "controls": controls}
    plain = sample(words(), PROMPTS, **options)
    run = searched(paths=1, copies=0, solver=solver, controls=controls)
    assert torch.equal(run.state.x, plain.state.x) and torch.equal(run.images, plain.images)
    assert run.ledger.evaluations == plain.ledger.evaluations
    rewards = [searched(paths=n, copies=0, solver=solver).state.memory["reward"] for n in (1, 2, 4)]
    assert all((b >= a).all() for a, b in zip(rewards, rewards[1:], strict=False))


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_an_indifferent_reward_leaves_the_sample(solver) -> None:
    """Of equals the path as it was goes on. Fails when copies come first, or are kept at equal reward."""
    equal = lambda images, queries: torch.zeros(len(images))  # noqa: E731
    run = searched(reward=equal, solver=DDIM(), paths=2, copies=2)
    plain = sample(words(), PROMPTS, seeds=SEEDS, levels=vp(10), solver=DDIM(), controls=[CFG(2.0)])
    assert torch.equal(run.state.x, plain.state.x)
    assert run.state.x.shape == plain.state.x.shape and run.state.queries == tuple(PROMPTS)


@pytest.mark.parametrize("levels", [vp(8, curve="cosine"), flow(8)], ids=["vp", "flow"])
def test_noising_again_keeps_the_law(levels) -> None:
    """G1, exact steps, a reward that knows nothing of the image: mean 0.3, variance 1, whichever go on.

    Fails when a copy keeps its old level after going back (variance 0.2 and less), or goes back by twice as
    many levels as its level says.
    """
    many, bed = 2000, Gaussian()
    generator = torch.Generator().manual_seed(0)
    blind = lambda images, queries: torch.rand(len(images), generator=generator)  # noqa: E731
    options = {"levels": levels, "solver": Chain(), "paths": 1, "copies": 2, "start": 0.5}
    run = over_paths(bed, [""] * many, seeds=range(many), reward=blind, back=0.25, ahead=0.4, **options)
    assert run.state.x.mean().item() == pytest.approx(0.3, abs=0.06)
    assert run.state.x.var().item() == pytest.approx(1.0, abs=0.08)


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_more_copies_give_more_reward(solver) -> None:
    """The mean over 100 samples rises from 0 to 1 to 4 copies. Fails when the worst go on, or rewards are
    those of other samples' ways.
    """
    many, means = 100, []
    for copies in (0, 1, 4):
        options = {"levels": vp(8, curve="cosine"), "solver": solver, "paths": 2, "copies": copies}
        run = over_paths(Gaussian(dim=4), [""] * many, seeds=range(many), reward=Seen(), **options)
        means.append(run.state.memory["reward"].mean().item())
        assert torch.allclose(run.state.memory["reward"], Seen()(run.images, run.state.queries))
    assert means[0] + 0.3 < means[1] and means[1] + 0.3 < means[2], means


def test_costs() -> None:
    """10 steps, from step 5 back 2 and on to 6, ..., 10: five rounds. Fails when a round is taken twice, or
    the paths are computed from the start.
    """
    run = searched(paths=3, copies=2, start=0.5, back=0.2, ahead=0.3)
    assert run.ledger.evaluations == 2 * len(PROMPTS) * 3 * (10 + 5 * 2 * 3)
    assert run.ledger.rewards == len(PROMPTS) * 3 * 3 * 5
    assert torch.allclose(run.state.memory["reward"], Linear()(run.state.x), atol=1e-4)


def test_a_search_does_not_depend_on_the_batch() -> None:
    """Fails when copies draw seeds from those of the batch, or are compared with other samples' copies."""
    together = searched(solver=DDIM(1.0))
    assert torch.equal(searched(solver=DDIM(1.0), max_batch=3).state.x, together.state.x)
    for k in range(4):
        alone = searched(PROMPTS[k : k + 1], SEEDS[k : k + 1], solver=DDIM(1.0))
        assert torch.equal(alone.state.x[0], together.state.x[k])


def test_refusals() -> None:
    """Each says what to give instead."""
    for wrong in (
        {"paths": 0},
        {"copies": -1},
        {"start": 1.0},
        {"back": 0.0},
        {"ahead": 0.1},
        {"back": 0.7, "ahead": 0.8},
        {"max_batch": 0},
        {"levels": vp(1)},
    ):
        with pytest.raises(ValueError, match="1 step" if "levels" in wrong else next(iter(wrong))):
            searched(**wrong)
    with pytest.raises(ValueError, match="two lists"):
        searched(seeds=[1])
    with pytest.raises(ValueError, match="makes groups"):
        searched(controls=[BestOf(sum_of, 2)])
    with pytest.raises(ValueError, match="a diffusers scheduler cannot"):
        searched(solver=Scheduler(DDIMScheduler()), levels=None, steps=10)
    searched(solver=Euler())
