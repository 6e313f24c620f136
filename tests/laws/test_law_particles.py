"""Particles on the exact bed G1: law, log Z and the defects that released code has and ours has not.

Truth: N(1.575, 0.25), log Z -1.777. With N particles the error of the mean is about 0.7 / sqrt(N).
"""

import math

import pytest
import torch
from laws.bed import Chain, words

from promptloop.controls.ahead import climbed
from promptloop.controls.candidates import SVDD
from promptloop.controls.groups import systematic
from promptloop.controls.particles import DAS, FK
from promptloop.controls.streams import Streams
from promptloop.denoisers.exact import Gaussian, Linear, Quadratic
from promptloop.sample import sample
from promptloop.schedules import vp
from promptloop.solvers import DDIM, Euler, FlowSDE

STRENGTH, COUNT = 3.0, 400
LEVELS = vp(12, curve="cosine")


def pixels(images):
    """The latents [B, d] that a bed has decoded to images."""
    return torch.logit(images[:, 0, 0].double()).float()


def hill(images, queries):
    """G1's reward of an image."""
    return Quadratic()(pixels(images))


hill.differentiable = True


def flat(images, queries):
    return images.mean((1, 2, 3)) * 0 + 2.0


flat.differentiable = True


def exact(state):
    """The optimal value: FK needs no luck with it."""
    bed = state.run.denoiser
    return bed.log_h(state.x, state.level, state.cond, Quadratic(), STRENGTH) / STRENGTH


def run(control, count=1, bed=None, levels=LEVELS, solver=None, prompts=None, **options):
    bed = Gaussian() if bed is None else bed
    prompts = [""] * count if prompts is None else prompts
    options = {"seeds": range(len(prompts)), "decode": False} | options
    return sample(bed, prompts, levels=levels, solver=solver or Chain(), controls=[control], **options).state


def law(state, log_weight=None):
    """Mean, variance and effective size of the weighted samples."""
    weight = (state.memory["log_weight"] if log_weight is None else log_weight).double().softmax(0)
    x = state.x[:, 0].double()
    mean = (weight * x).sum()
    return float(mean), float((weight * (x - mean) ** 2).sum()), float(1 / (weight**2).sum())


def assert_tilted(state, off):
    """`off`: of log Z, three times the deviation over seeds."""
    mean, variance, size = law(state)
    assert size > COUNT / 3, size
    assert mean == pytest.approx(1.575, abs=0.13) and variance == pytest.approx(0.25, abs=0.08)
    assert state.memory["log_z"].exp().mean().log().item() == pytest.approx(-1.777, abs=off)


@pytest.mark.parametrize("value, count, off", [(exact, 1, 0.2), (None, 3, 0.5)], ids=["exact", "estimate"])
@pytest.mark.parametrize("threshold", [0.5, 0.95])
def test_fk_reaches_the_tilted_law(value, count, off, threshold) -> None:
    """Also when it resamples at nearly every step (defect 1: FK code drops the weights that wait, mean 0.72).

    Fails when `resampled` sets log_weight to 0 in every group (mean 0.8), or when `spent` does not move.
    """
    control = FK(hill, COUNT, STRENGTH, every=1, threshold=threshold, pick="all", value=value)
    assert_tilted(run(control, count, levels=vp(20, curve="cosine")), off)


def test_every_group_has_its_own_log_z_and_one_sample_is_drawn_of_it() -> None:
    """Two queries of one batch, means 0.3 and 1.3 (defect 3: DAS code mixes prompts in its log Z).

    Fails when `resampled` weighs all rows as one group: the lower query would die out.
    """
    bed = Gaussian(prompts={"": 0.0, "up": 1.0})
    control = FK(hill, COUNT, STRENGTH, every=1, pick="all", value=exact)
    end = run(control, bed=bed, prompts=["", "up"])
    assert end.queries == ("",) * COUNT + ("up",) * COUNT
    truth = bed.log_z(bed.embed(["", "up"]), Quadratic(), STRENGTH)
    assert end.memory["log_z"][[0, -1]].tolist() == pytest.approx(truth.tolist(), abs=0.2)
    for rows, mean in [(range(COUNT), 1.575), (range(COUNT, 2 * COUNT), 1.825)]:
        assert law(end.take(rows))[0] == pytest.approx(mean, abs=0.13)
    few = run(FK(hill, 8, STRENGTH, every=3), bed=bed, prompts=["", "up"], decode=True)
    assert few.queries == ("", "up") and len(few) == 2


def test_drawn_samples_follow_the_law_and_the_best_do_not() -> None:
    """150 groups of 16, one drawn of each. Fails when pick "draw" takes the first row of the group.

    The best of each lie at the reward's summit, 2: that is why `kind` calls it a search.
    """
    drawn = run(FK(hill, 16, STRENGTH, every=4), count=150)
    assert drawn.x.mean().item() == pytest.approx(1.575, abs=0.2)
    assert drawn.x.var().item() == pytest.approx(0.25, abs=0.13)
    best = run(FK(hill, 16, STRENGTH, every=4, pick="best"), count=150)
    assert best.x.mean().item() > 1.8 and best.x.var().item() < 0.06
    assert FK(hill).kind == "sampler" and FK(hill, pick="best").kind == "search"
    assert FK(hill, potential="max").kind == FK(hill, potential="sum").kind == "search"


@pytest.mark.parametrize("potential", ["max", "sum"])
def test_max_and_sum_end_at_the_reward_of_the_image(potential) -> None:
    """Defect 2. The weights of two particles that were never resampled differ by strength (r - r').

    Fails when the last weight uses the running max or sum; and when the running max starts at 0, which all
    rewards here lie below: the first potentials would all be exp(0).
    """
    control = FK(hill, 40, STRENGTH, potential, every=1, threshold=0.0, pick="all")
    end = run(control)
    left = end.memory["log_weight"] - STRENGTH * end.memory["reward"]
    assert left.abs().max().item() < 1e-3
    assert torch.allclose(end.memory["reward"], Quadratic()(end.x), atol=1e-3)
    if potential == "max":
        assert (end.memory["seen"] < 0).all() and (end.memory["spent"] < 0).all()
    search = run(FK(hill, 100, STRENGTH, potential, every=1, threshold=1.0, pick="all"))
    assert law(search)[2] < 50, "few particles carry the weight: a search"


def test_weights_are_logs() -> None:
    """Rewards of 10,000 (defect 2: exp before normalising). Fails when log_mean takes exp first."""

    def huge(images, queries):
        return hill(images, queries) * 1e4 + 1e4

    end = run(FK(huge, 8, 1.0, every=3, pick="all"))
    assert end.memory["log_weight"].isfinite().all() and end.memory["log_z"].isfinite().all()


@pytest.mark.parametrize("control", [DAS(flat, 8, 5.0, pick="all"), FK(flat, 8, 5.0, every=1, pick="all")])
def test_equal_rewards_never_resample(control) -> None:
    """Nor would it change anything. Fails when log_mean is the log of a sum (log Z 12.1 instead of 10)."""
    state = run(control, bed=words(), prompts=["up"])
    one = type(control)(flat, 8, 5.0, threshold=1.0, pick="all")
    for end in (state, run(one, bed=words(), prompts=["up"])):
        assert len(set(end.seeds.tolist())) == 8
        assert end.memory["log_z"].tolist() == pytest.approx([10.0] * 8, abs=1e-4)
        plain = sample(words(), ["up"] * 8, seeds=end.seeds.tolist(), levels=LEVELS, solver=Chain()).state
        assert torch.equal(end.x, plain.x), "each is the plain sample of its seed"


@pytest.mark.parametrize("threshold", [0.5, 0.95])
def test_das_corrects_a_wrong_gradient(threshold) -> None:
    """Steps pushed by the estimate's gradient alone give 1.91 / 0.17; weighed, the truth.

    Also when resampling is frequent. Fails when `_pushed` reports no log p - log q, or `spent` is remembered
    after resampling instead of before.
    """
    control = DAS(hill, COUNT, STRENGTH, threshold=threshold, pick="all", together=COUNT)
    assert_tilted(run(control), 0.3)
    alone = run(DAS(hill, 1, STRENGTH, gamma=1.0, together=COUNT), count=COUNT)
    assert law(alone, torch.zeros(COUNT))[0] > 1.75, "the push is wrong without its weights"


def test_das_moves_slope_and_twist_with_the_particles() -> None:
    """Defect 3: in DAS code they stay behind when particles are resampled (1.99 / 0.045).

    Fails when `slope` or `spent` is remembered after resampling instead of before.
    """
    bed, seen, copied = Gaussian(dim=2), [], []
    control = DAS(hill, 16, STRENGTH, threshold=0.95, pick="all", together=16)

    def look(state):
        if 0 < state.step < len(LEVELS) - 1:
            found, slope = climbed(state, hill, 16)
            seen.append(torch.allclose(state.memory["slope"], slope, atol=1e-5))
            aim = STRENGTH * control.temper(state, state.step) * found
            seen.append(torch.allclose(state.memory["spent"], aim, atol=1e-4))
            copied.append(len(state.x.unique(dim=0)) < 16)

    run(control, bed=bed, solver=DDIM(1.0), on_step=look)
    assert all(seen) and any(copied)


def test_das_without_a_gradient_is_fk_with_the_value_at_the_new_point() -> None:
    """Bitwise. Fails when DAS takes the value of the estimate that the step was made from."""
    bed = Gaussian(dim=2)

    def steps(images, queries):  # a step function: the gradient is 0
        return (pixels(images).sum(1) * 4).round() / 4 + 0 * images.sum((1, 2, 3))

    steps.differentiable = True

    def ahead(state):
        return steps(bed.decode(bed.clean(state.x, state.level, state.cond)), state.queries)

    das = run(DAS(steps, 16, 2.0, gamma=1.0), bed=bed, count=2, solver=DDIM(1.0))
    fk = run(FK(steps, 16, 2.0, every=1, value=ahead), bed=bed, count=2, solver=DDIM(1.0))
    assert torch.equal(das.x, fk.x)
    assert torch.allclose(das.memory["log_z"], fk.memory["log_z"], atol=1e-4)


def test_das_tempers_as_the_authors_do() -> None:
    """gamma 0.008 reaches 1 at step 87 or 88 of 100. Fails when temper counts the steps that are left."""
    state = run(DAS(flat, 2, 1.0), bed=words(), levels=vp(100), prompts=["up"])
    control = DAS(flat)
    assert control.temper(state, 0) == 0 and control.temper(state, 100) == 1
    assert control.temper(state, 50) == pytest.approx(1.008**50 - 1, abs=0.01)
    assert control.temper(state, 86) < 1 == control.temper(state, 88)
    assert DAS(flat, gamma=math.inf).temper(state, 1) == 1.0


def test_two_groups_of_one_seed_are_what_they_are_alone() -> None:
    """Same seed, other prompts; and the same prompt twice. Fails when copies get seeds that no other sample
    of the batch has: the second group then depends on the first.
    """
    control = [FK(hill, 4, STRENGTH, every=2), DAS(hill, 4, STRENGTH), SVDD(hill, 4, STRENGTH)]
    prompts = ["up", "down", "up", "far"]
    for one in control:
        options = {"bed": words(), "solver": DDIM(1.0), "decode": True}
        together = run(one, prompts=prompts, seeds=[3, 3, 3, 4], **options)
        for k, (prompt, seed) in enumerate(zip(prompts, [3, 3, 3, 4], strict=True)):
            assert torch.equal(run(one, prompts=[prompt], seeds=[seed], **options).x[0], together.x[k])
        split = run(one, prompts=prompts, seeds=[3, 3, 3, 4], max_batch=2, **options)
        assert torch.equal(split.x, together.x)
        assert torch.equal(split.memory["log_weight"], together.memory["log_weight"])


def test_systematic_resampling_takes_floor_or_ceil() -> None:
    """Fails when the spots are drawn one by one, or a particle of weight 0 can be taken."""
    share = torch.tensor([0.0, 0.45, 0.05, 0.5, 0.0], dtype=torch.float64)
    for spot in (0.0, 0.3, 0.999999):
        counts = torch.bincount(torch.tensor(systematic(share, 10, spot)), minlength=5)
        assert counts[0] == counts[4] == 0 and counts[1] in (4, 5) and counts[2] in (0, 1) and counts[3] == 5
    mean = sum(torch.bincount(torch.tensor(systematic(share, 10, k / 50)), minlength=5) for k in range(50))
    assert torch.allclose(mean.double() / 50, 10 * share, atol=0.05)


def test_refusals_say_why() -> None:
    """Fails when a deterministic solver is accepted: all particles of an ancestor would stay one."""
    for control in (FK(hill), DAS(hill), SVDD(hill)):
        for solver in (DDIM(0.0), Euler()):
            with pytest.raises(ValueError, match=r"deterministic \(eta 0\).*FlowSDE"):
                run(control, solver=solver)
        with pytest.raises(ValueError, match=r"Streams|deterministic"):
            sample(
                words(), ["up"], seeds=[0], levels=LEVELS, solver=DDIM(), controls=[Streams({0: 1}), control]
            )
    with pytest.raises(ValueError, match="keep one"):
        sample(words(), ["up"], seeds=[0], levels=LEVELS, solver=FlowSDE(), controls=[FK(hill), FK(hill)])
    with pytest.raises(ValueError, match="differentiable"):
        DAS(Linear())
    for wrong in ({"particles": 0}, {"strength": -1.0}, {"potential": "min"}, {"pick": "one"}, {"every": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            FK(hill, **wrong)
    with pytest.raises(ValueError, match="not replaced by 0"):
        run(FK(lambda images, queries: images.mean((1, 2, 3)) * math.nan, every=1))
