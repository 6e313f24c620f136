"""SVDD, Demon and BestOf on the exact beds; and what all of these controls share: doing nothing, bitwise."""

import math

import pytest
import torch
from laws.bed import STOCHASTIC, words
from laws.test_law_particles import LEVELS, STRENGTH, exact, flat, hill, law, pixels, run

from promptloop.controls.candidates import SVDD, Demon, mix
from promptloop.controls.noise import BestOf
from promptloop.controls.particles import DAS, FK
from promptloop.controls.record import Record
from promptloop.denoisers.exact import Gaussian, Linear, Quadratic
from promptloop.sample import sample
from promptloop.schedules import vp
from promptloop.solvers import DDIM, Euler

IDLE = [
    FK(hill, 1),
    FK(hill, 4, 0.0),
    FK(hill, 1, pick="best"),
    DAS(hill, 4, 0.0),
    SVDD(hill, 1),
    SVDD(hill, 8, 0.0),
    Demon(hill, 1),
    BestOf(hill, 1),
]


def sum_of(images, queries):
    return Linear()(pixels(images))


@pytest.mark.parametrize("solver", STOCHASTIC, ids=repr)
def test_one_particle_or_no_reward_is_the_plain_sampler_bitwise(solver) -> None:
    """And costs nothing more. Fails when SVDD with strength 0 draws one of its candidates."""
    options = {"levels": vp(5), "solver": solver, "seeds": [3, 4, 3]}
    plain = sample(words(), ["up", "down", ""], **options)
    for control in IDLE:
        other = sample(words(), ["up", "down", ""], controls=[control], **options)
        assert torch.equal(plain.images, other.images) and torch.equal(plain.state.x, other.state.x), control
        assert (other.ledger.evaluations, other.ledger.rewards) == (plain.ledger.evaluations, 0), control


def test_svdd_is_biased_and_its_weights_take_the_bias_back() -> None:
    """Exact value: the mean goes from 0.3 up to 1.575 with more candidates; weighed by log p - log q and the
    reward it is there from two on. Fails when `told` forgets the mean over the candidates (log_mean), or has
    the other sign; and when the best candidate is taken instead of a drawn one (defect 5), variance 0.05.
    """
    means = []
    for count in (2, 16):
        end = run(SVDD(None, count, STRENGTH, exact), count=400)
        means.append(law(end, torch.zeros(400))[0])
        weighed = law(end, end.memory["log_weight"] + STRENGTH * Quadratic()(end.x))
        assert weighed[2] > 100, "effective size"
        assert weighed[0] == pytest.approx(1.575, abs=0.13) and weighed[1] == pytest.approx(0.25, abs=0.09)
    assert 0.8 < means[0] < 1.4 < means[1] < 1.7


def test_fk_behind_svdd_samples_the_tilted_law() -> None:
    """SVDD reports what it did, so FK's weights hold. Fails when SVDD returns log_ratio as it came."""
    options = {"levels": LEVELS, "solver": DDIM(1.0), "seeds": [0], "decode": False}
    controls = [SVDD(hill, 3, STRENGTH), FK(hill, 300, STRENGTH, every=2, pick="all")]
    fine = {**options, "levels": vp(40, curve="cosine")}
    mean, variance, size = law(sample(Gaussian(), [""], controls=controls, **fine).state)
    assert mean == pytest.approx(1.575, abs=0.15) and variance == pytest.approx(0.25, abs=0.1) and size > 60
    for blind in (SVDD(hill, 3), Demon(hill, 3)):
        with pytest.raises(ValueError, match="without telling log p - log q"):
            sample(Gaussian(), [""], controls=[blind, FK(hill, 3, every=1)], **options)
        best = [blind, FK(hill, 3, every=1, pick="best")]
        assert sample(Gaussian(), [""], controls=best, **options).state.memory["reward"].isfinite().all()


def test_candidates_are_judged_at_the_new_level() -> None:
    """Defect 5: SVDD's code calls the network with the old time on the new latent. Fails when `following` is
    the level that the step starts at.
    """
    bed, seen = words(), []
    plain = bed.clean
    bed.clean = lambda x, level, cond: seen.append((len(x), level)) or plain(x, level, cond)
    grid = vp(3)
    run(SVDD(hill, 4, 1.0), bed=bed, levels=grid, solver=DDIM(1.0), prompts=["up", "down"])
    parts = [(2, grid[1])] * 4, [(2, grid[2])] * 4
    assert seen == [(2, grid[0]), *parts[0], (2, grid[1]), *parts[1], (2, grid[2])]


def test_the_best_candidate_is_taken_at_strength_inf() -> None:
    """More candidates never give a step a worse one. Fails when argmin is taken."""
    one, two = (run(SVDD(hill, m), levels=vp(2), solver=DDIM(1.0), count=50).x for m in (4, 16))
    assert (Quadratic()(two) >= Quadratic()(one) - 1e-6).all()
    assert (Quadratic()(two) > Quadratic()(one) + 1e-3).any()


def test_demon_mixes_noise_to_the_norm_of_noise() -> None:
    """Its projection on a linear reward is beyond that of the best draw: d = 64, K = 16, 3.38 against 1.77.

    Fails when the mixture is scaled by its own norm alone (norm 1), or weights are not centred.
    """
    noise = torch.randn(200, 16, 64, generator=torch.Generator().manual_seed(0))
    rewards = noise.sum(2) / 8
    mixed = mix(noise, Demon(hill)._weighed(rewards))
    assert torch.allclose(mixed.norm(dim=1), torch.tensor(8.0), atol=1e-5)
    assert (mixed.sum(1) / 8).mean().item() == pytest.approx(3.38, abs=0.15)
    assert rewards.max(1).values.mean().item() == pytest.approx(1.77, abs=0.15)
    assert torch.equal(Demon(hill)._weighed(torch.ones(2, 3)), torch.ones(2, 3))
    soft = Demon(hill, weights="boltzmann", temperature=0.5)._weighed(torch.tensor([[0.0, 1.0]]))
    assert torch.allclose(soft, torch.tensor([[0.0, 2.0]]).softmax(1))


def test_demon_adapts_its_temperature_at_every_step() -> None:
    """Defect 4: released code sets it at the first step for good. The scale of this reward grows tenfold with
    every call, which a temperature of each step's own does not notice. Fails when spread is kept.
    """

    class Growing:
        def __init__(self, factor):
            self.scale, self.factor = 1.0, factor

        def __call__(self, images, queries):
            self.scale *= self.factor
            return self.scale * sum_of(images, queries)

    options = {"bed": words(8), "prompts": ["up"], "solver": DDIM(1.0), "levels": vp(5)}
    # one sample: one candidate a call, so the growth must be from step to step
    ends = [run(Demon(PerStep(Growing(f), 4), 4), **options).x for f in (1.0, 10.0)]
    assert torch.allclose(*ends, atol=1e-3)
    plain = run(Demon(sum_of, 1), **options).x
    assert (ends[0].sum(1) > plain.sum(1)).all()


class PerStep:
    """Asks `reward` anew after `calls` calls, else with the scale that it had."""

    def __init__(self, reward, calls):
        self.reward, self.calls, self.seen, self.last = reward, calls, 0, None

    def __call__(self, images, queries):
        if self.seen % self.calls == 0:
            self.reward(images, queries)
        self.seen += 1
        return self.reward.scale * sum_of(images, queries)


def test_demon_looks_ahead_and_lets_go_below_its_floor() -> None:
    """Fails when `ahead` walks from the first level, or the floor compares sigma alone with EDM's number."""
    options = {"bed": words(8), "prompts": ["up", "down"], "solver": DDIM(1.0), "levels": vp(6)}
    bed = options["bed"]
    one = sample(
        bed, ["up", "down"], seeds=[0, 1], levels=vp(6), solver=DDIM(1.0), controls=[Demon(sum_of, 3)]
    )
    assert one.ledger.evaluations == 2 * (6 + 3 * 5) and one.ledger.rewards == 2 * 3 * 5
    far = sample(
        bed,
        ["up", "down"],
        seeds=[0, 1],
        levels=vp(6),
        solver=DDIM(1.0),
        controls=[Demon(sum_of, 3, ahead=2)],
    )
    assert far.ledger.evaluations == 2 * (6 + 3 * (2 + 2 + 2 + 2 + 1))
    assert torch.equal(run(Demon(sum_of, 3, floor=math.inf), **options).x, run(Demon(sum_of, 1), **options).x)
    assert one.state.memory["log_weight"].isnan().all()


def test_best_of_n_is_the_maximum_of_n_and_never_worse_with_more() -> None:
    """E max of 4 standard normals is 1.03. Fails when the lowest is kept, or the last of equals."""
    rewards = {}
    for of in (1, 2, 4, 8):
        end = run(BestOf(sum_of, of), count=200, solver=Euler(), levels=vp(6, curve="cosine"))
        rewards[of] = Linear()(end.x)
        assert len(end) == 200 and end.queries == ("",) * 200
        if of > 1:
            assert torch.allclose(end.memory["reward"], rewards[of], atol=1e-4)
    assert all((rewards[n] >= rewards[m]).all() for m, n in [(1, 2), (2, 4), (4, 8)])
    spread = rewards[1].std()
    assert ((rewards[4].mean() - 0.3) / spread).item() == pytest.approx(1.03, abs=0.2)
    same = run(BestOf(flat, 4), bed=words(), solver=Euler(), prompts=["up", "down"])
    plain = sample(words(), ["up", "down"], seeds=[0, 1], levels=LEVELS, solver=Euler()).state
    assert torch.equal(same.x, plain.x), "of equals the first: the sample's own noise"


def test_best_of_prunes_and_keeps_several() -> None:
    """Fails when pruning compares the groups with each other, or the order of the kept is not best first."""
    options = {"seeds": [0, 1], "levels": vp(6), "solver": DDIM(1.0)}
    bed = words()
    all_of = sample(bed, ["up", "far"], controls=[BestOf(sum_of, 6, kept=3)], **options)
    assert all_of.state.queries == ("up",) * 3 + ("far",) * 3
    values = all_of.state.memory["reward"].view(2, 3)
    assert (values[:, :-1] >= values[:, 1:]).all()
    pruned = sample(bed, ["up", "far"], controls=[BestOf(sum_of, 6, prune={2: 4, 4: 2})], **options)
    assert pruned.state.queries == ("up", "far")
    assert pruned.ledger.evaluations == 2 * (6 * 2 + 4 * 2 + 2 * 2)
    assert pruned.ledger.rewards == 2 * (6 + 4 + 2)
    for wrong in ({"kept": 7}, {"prune": {2: 7}}, {"prune": {0: 3}}, {"prune": {2: 2, 3: 4}}, {"of": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            BestOf(sum_of, **{"of": 6, **wrong})
    with pytest.raises(ValueError, match="prune names step 6"):
        sample(bed, ["up"], seeds=[0], levels=vp(6), controls=[BestOf(sum_of, 6, prune={6: 2})])


def test_controls_that_move_or_choose_commute_with_record() -> None:
    """Fails when resampled leaves memory behind, or advance records the pushed transition."""
    for control in (FK(hill, 4, 3.0, every=2), DAS(hill, 4, 3.0), SVDD(hill, 4, 3.0), BestOf(hill, 4)):
        options = {"levels": vp(6), "solver": DDIM(1.0), "seeds": [0, 1]}
        one, two = (
            sample(words(), ["up", "down"], controls=order, **options).state
            for order in ([control, Record()], [Record(), control])
        )
        assert torch.equal(one.x, two.x) and torch.equal(one.memory["path"], two.memory["path"])
        log_probs = [state.memory["path_log_prob"].nan_to_num() for state in (one, two)]
        assert torch.equal(*log_probs) and one.memory["path_prompts"] == two.memory["path_prompts"]
        assert torch.equal(one.memory["path"][:, -1], one.x)
