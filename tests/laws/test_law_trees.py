"""Trees on the exact bed: the target's law, the plain sampler, more is never worse, sample i is itself."""

import math

import pytest
import torch
from laws.bed import SOLVERS, Chain, Seen, words
from laws.test_law_candidates import sum_of

from promptloop.controls import CFG, BestOf, PromptLoop, Streams
from promptloop.controls.tree import Shape
from promptloop.controls.trees import dts, dts_star
from promptloop.denoisers.exact import Gaussian, Linear, ring
from promptloop.policies.fixed import Identity
from promptloop.sample import sample
from promptloop.schedules import vp
from promptloop.solvers import DDIM

PROMPTS, SEEDS = ["up", "down", "far", "up"], [3, 3, 4, 5]
SEARCHES = {"dts": dts, "dts_star": dts_star}


def grown(search, rollouts, prompts=PROMPTS, seeds=SEEDS, **options):
    common = {"reward": sum_of, "levels": vp(6), "solver": DDIM(1.0), "controls": [CFG(2.0)], "branches": 3}
    return search(words(), prompts, seeds=seeds, rollouts=rollouts, **common | options)


def test_samples_follow_the_tilted_target() -> None:
    """G1, 24 trees of 120 rollouts: target mean 1.575, variance 0.25 (base 0.3 and 1); measured 1.53, 0.29.

    Fails when a walk leaves the strength out of its weights, when the sum stands for the mean in the backup
    (mean 1.28), or when the backup takes the highest value.
    """
    many, bed = 24, Gaussian()
    options = {"levels": vp(5, curve="cosine"), "solver": Chain(), "strength": 3.0, "draws": 100}
    run = dts(bed, [""] * many, seeds=range(many), reward=Seen(), rollouts=120, **options)
    assert run.images.shape[0] == many * 100
    assert run.state.x.mean().item() == pytest.approx(1.575, abs=0.09)
    assert run.state.x.var().item() == pytest.approx(0.25, abs=0.05)
    assert run.state.memory["log_z"].mean().item() == pytest.approx(-1.777, abs=0.4)


def test_modes_have_the_targets_masses() -> None:
    """G2: the target gives the last three of eight modes 0.777, 0.173, 0.039; the base 0.125 each.

    Fails when children are drawn evenly, or by the values of their first image alone.
    """
    many, (bed, exact) = 24, ring()
    options = {"levels": vp(8, curve="cosine"), "solver": DDIM(1.0), "strength": 1.0, "draws": 50}
    seen = lambda images, queries: exact(torch.logit(images[:, 0, 0]))  # noqa: E731
    run = dts(bed, [""] * many, seeds=range(many), reward=seen, rollouts=60, branches=4, **options)
    mode = torch.cdist(run.state.x, bed.network.mean.detach()).argmin(1)
    share = torch.bincount(mode, minlength=8) / len(mode)
    truth = (1.5 * torch.arange(1, 9)).softmax(0)
    assert (share - truth).abs().sum().item() / 2 < 0.1, share


def test_without_a_reward_the_tree_has_the_base_law() -> None:
    """G1, strength 0, drawn from the trees: mean 0.3, variance 1. Fails when walks go to the best child."""
    many, bed = 300, Gaussian()
    options = {"levels": vp(4, curve="cosine"), "solver": Chain(), "strength": 0.0, "draws": 2}
    run = dts(
        bed, [""] * many, seeds=range(many), reward=Seen(), rollouts=12, width=1.0, growth=0.5, **options
    )
    assert run.state.x.mean().item() == pytest.approx(0.3, abs=0.12)
    assert run.state.x.var().item() == pytest.approx(1.0, abs=0.15)


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_one_rollout_is_the_plain_sampler(search: str, solver) -> None:
    """Bitwise. Fails when the first child gets a seed of its own, or a control is started twice."""
    controls = [PromptLoop(Identity(), 2), CFG(2.0)]
    plain = sample(words(), PROMPTS, seeds=SEEDS, levels=vp(6), solver=solver, controls=controls)
    run = grown(SEARCHES[search], 1, solver=solver, controls=controls)
    assert torch.equal(run.state.x, plain.state.x) and torch.equal(run.images, plain.images)
    assert run.ledger.evaluations == plain.ledger.evaluations and run.ledger.rewards == len(PROMPTS)
    assert run.state.queries == plain.state.queries and torch.equal(run.state.seeds, plain.state.seeds)
    if search == "dts":
        none = grown(dts, 9, solver=solver, controls=controls, strength=0.0)
        assert torch.equal(none.state.x, plain.state.x)


@pytest.mark.parametrize("together", [1, 3])
def test_more_rollouts_never_give_a_worse_image(together: int) -> None:
    """Fails when the last walk has the bonus for few visits, or values are not backed up to the root."""
    ends = [grown(dts_star, rollouts, together=together, width=1.0) for rollouts in range(1, 16, 2)]
    rewards = [end.state.memory["reward"] for end in ends]
    assert all((b >= a).all() for a, b in zip(rewards, rewards[1:], strict=False))
    assert (rewards[-1] > rewards[0]).all() and torch.equal(rewards[-1], ends[-1].state.memory["best"])
    assert torch.allclose(rewards[-1], sum_of(ends[-1].images, PROMPTS))
    assert torch.allclose(rewards[-1], Linear()(ends[-1].state.x), atol=1e-4)
    soft = [grown(dts_star, rollouts, strength=2.0).state.memory["best"] for rollouts in (2, 5, 9)]
    assert all((b >= a).all() for a, b in zip(soft, soft[1:], strict=False))


def test_rollouts_cost_the_steps_below_their_branching_point() -> None:
    """Two children a point: the fourth rollout begins at step 2 of 6, and so on; growth 1 lets the root have
    as many as rollouts. Fails when a rollout is computed from the start, gives no new image, or is no visit.
    """
    costs = [grown(dts_star, rollouts, width=2.0, growth=0.0, explore=0.0) for rollouts in range(1, 6)]
    spent = [run.ledger.evaluations // (2 * len(PROMPTS)) for run in costs]
    assert [b - a for a, b in zip(spent, spent[1:], strict=False)] == [6, 6, 4, 2]
    costs = [grown(dts_star, rollouts, width=1.0, growth=1.0) for rollouts in range(1, 5)]
    assert [run.ledger.evaluations for run in costs] == [2 * 6 * k * len(PROMPTS) for k in range(1, 5)]
    run = grown(dts_star, 40, width=1.0, growth=0.0)
    assert run.ledger.evaluations == 2 * (6 + 39 * 2) * len(PROMPTS)
    assert run.ledger.rewards == 40 * len(PROMPTS) and run.ledger.decodes == 41 * len(PROMPTS)


@pytest.mark.parametrize("search", SEARCHES)
def test_every_rollout_finds_a_new_image_and_the_first_do_not_know_how_many_follow(search: str) -> None:
    """Fails when siblings share their noise, or walks are seeded by the number of rollouts."""
    asked: dict[int, list[float]] = {}
    for rollouts in (7, 30):
        asked[rollouts] = []

        def kept(images, queries, rollouts=rollouts):
            asked[rollouts] += sum_of(images, queries).tolist()
            return sum_of(images, queries)

        grown(SEARCHES[search], rollouts, PROMPTS[:1], SEEDS[:1], reward=kept, width=1.0, growth=0.5)
    assert asked[30][:7] == asked[7] and len(set(asked[30])) == 30


@pytest.mark.parametrize("search", SEARCHES)
def test_a_tree_does_not_depend_on_the_batch(search: str) -> None:
    """Fails when a walk draws from one generator for all, or trees share a child's seed."""
    for options in ({}, {"together": 3, "width": 1.0}):
        together = grown(SEARCHES[search], 10, **options)
        assert torch.equal(grown(SEARCHES[search], 10, max_batch=3, **options).state.x, together.state.x)
        for k in range(4):
            alone = grown(SEARCHES[search], 10, PROMPTS[k : k + 1], SEEDS[k : k + 1], **options)
            assert torch.equal(alone.state.x[0], together.state.x[k])
            assert alone.state.queries == (PROMPTS[k],)


def test_without_branches_it_is_the_best_of_n() -> None:
    """Mean of the best of 4 standard normals: 1.03. Fails when the root's children share their noise."""
    many, bed = 400, Gaussian(0.0)
    options = {"seeds": range(many), "levels": vp(2)}
    linear = lambda images, queries: torch.logit(images[:, 0, 0, 0])  # noqa: E731
    run = dts_star(bed, [""] * many, reward=linear, rollouts=4, branches=0, **options)
    best = sample(bed, [""] * many, controls=[BestOf(linear, 4)], **options)
    scale = sample(bed, [""] * many, **options).state.x.std()
    for found in (run, best):
        assert (found.state.x.mean() / scale).item() == pytest.approx(1.03, abs=0.1)


def test_soft_values() -> None:
    """log(mean exp(strength v)) / strength and its limits. Fails when the sum stands for the mean."""
    values, shape = [0.0, 1.0, 3.0], {"branches": 5, "width": 2.0, "growth": 0.8, "together": 1}
    truth = (torch.tensor(values, dtype=torch.float64) * 2).exp().mean().log().item() / 2
    assert Shape(2.0, **shape).soft(values) == pytest.approx(truth)
    assert Shape(0.0, **shape).soft(values) == pytest.approx(4 / 3)
    assert Shape(math.inf, **shape).soft(values) == 3.0
    assert Shape(500.0, **shape).soft([-900.0, -901.0]) == pytest.approx(-900.0, abs=0.01)
    assert Shape(1.0, **shape).depths(50) == [0, 10, 20, 30, 40, 50]
    assert Shape(1.0, **shape).depths(5) == [0, 1, 2, 3, 5] and Shape(1.0, **shape).depths(1) == [1]


WRONG = {
    "deterministic": {"solver": DDIM()},
    "rollouts": {"rollouts": 0},
    "branches": {"branches": -1},
    "width": {"width": 0.5},
    "growth": {"growth": 1.5},
    "together": {"together": 0},
    "strength": {"strength": -1.0},
    "steps= or levels=": {"steps": 4},
    "max_batch": {"max_batch": 0},
    "two lists": {"seeds": [1, 2]},
    "from 0 to 2": {"seeds": [-1]},
    "makes groups": {"controls": [BestOf(sum_of, 2)]},
    "no noise for|cannot choose": {"controls": [Streams(noise={0: 1})]},
}


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("said", WRONG)
def test_refusals(search: str, said: str) -> None:
    """Each says what to give instead."""
    options = {"reward": sum_of, "levels": vp(4), "solver": DDIM(1.0), "seeds": [0], "rollouts": 3}
    with pytest.raises(ValueError, match=said):
        SEARCHES[search](words(), ["up"], **options | WRONG[said])
    with pytest.raises(ValueError, match="inf"):
        dts(words(), ["up"], **options, strength=math.inf)
    with pytest.raises(ValueError, match="draws"):
        dts(words(), ["up"], **options, draws=0)
    with pytest.raises(ValueError, match="two lists"):
        SEARCHES[search](words(), [], **options | {"seeds": []})
    with pytest.raises(ValueError, match="explore"):
        dts_star(words(), ["up"], **options, explore=-1.0)
