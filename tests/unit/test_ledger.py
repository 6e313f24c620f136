"""What a run cost is counted, in samples."""

import torch

from promptloop.controls import CFG, DOIT, LossGuidance, PromptLoop, RewardGradient
from promptloop.denoisers.exact import Gaussian
from promptloop.ledger import Ledger, counting
from promptloop.policies.contract import Draft, Policy
from promptloop.rewards.contract import scored
from promptloop.sample import sample
from promptloop.schedules import vp
from promptloop.solvers import DDIM, Heun


class Wordy(Policy):
    """Answers with the query, in three tokens."""

    def write(self, requests, seeds):
        return [Draft(r, r.query, torch.arange(3), torch.zeros(3)) for r in requests]

    def log_prob(self, drafts):
        raise NotImplementedError


def test_a_run_counts_what_it_cost() -> None:
    """Fails when guidance counts a call and not its rows (20 evaluations), or the estimates that the policy
    sees are not counted as decodes.
    """
    controls = [PromptLoop(Wordy(), refinements=3), CFG(2.0)]
    options = {"levels": vp(4), "seeds": range(5), "controls": controls}
    run = sample(Gaussian(), ["a"] * 5, **options).ledger
    assert run == Ledger(2 * 5 * 4, 0, 2 * 5 + 5, 0, 3 * 5 * 3, run.seconds)
    assert 0 < run.seconds < 5
    split = sample(Gaussian(), ["a"] * 5, max_batch=2, **options).ledger
    assert split + Ledger(seconds=run.seconds) == run + Ledger(seconds=split.seconds)
    plain = sample(Gaussian(), ["a"], levels=vp(4), seeds=[0], decode=False, solver=Heun()).ledger
    assert plain.evaluations == 7 and plain.decodes == 0


def test_tallies_nest_and_rewards_outside_are_counted_too() -> None:
    """Fails when an inner tally hides what it counts from the outer one."""
    with counting() as outer:
        made = sample(Gaussian(), ["a", "b"], levels=vp(3), seeds=[0, 1])
        scored(lambda images, queries: images.mean((1, 2, 3)), made.images, ["a", "b"])
    assert outer.ledger.evaluations == made.ledger.evaluations == 6
    assert outer.ledger.rewards == 2 and made.ledger.rewards == 0
    assert outer.ledger.seconds == outer.ledger.seconds >= made.ledger.seconds, "the clock has stopped"
    scored(lambda images, queries: images.mean((1, 2, 3)), made.images, ["a", "b"])
    assert outer.ledger.rewards == 2, "a closed tally counts no more"


def test_guides_by_gradients_are_counted() -> None:
    """Three steps of two samples, and their images. Fails when a guide decodes or goes back uncounted."""

    def bright(images, queries):
        return images.mean((1, 2, 3))

    bright.differentiable = True
    options = {"levels": vp(3), "seeds": [0, 1], "solver": DDIM(1.0)}
    for control, asked in ((RewardGradient(bright, 1.0), 1), (LossGuidance(bright, 1.0, samples=4), 4)):
        run = sample(Gaussian(), ["a", "b"], controls=[control], **options).ledger
        guided = 3 if options["levels"][0].alpha > 0 else 2  # nothing is added at pure noise
        assert (run.evaluations, run.backwards) == (6, 2 * guided)
        assert (run.decodes, run.rewards) == (2 * guided * asked + 2, 2 * guided * asked)
    run = sample(Gaussian(), ["a", "b"], controls=[DOIT(bright, samples=4)], **options).ledger
    assert run.backwards > 0 and run.decodes - 2 == run.rewards > 0
