"""TTSnap on the exact bed: which noises go on, by what they are told, at what cost."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from laws.bed import words
from laws.test_law_candidates import sum_of
from torch import Tensor

from promptloop.controls import CFG, BestOf, TTSnap
from promptloop.controls.ttsnap import cost
from promptloop.sample import sample
from promptloop.schedules import Level, vp
from promptloop.solvers import DDIM

PROMPTS, SEEDS, STEPS = ["up", "down", "far", "up"], [3, 3, 4, 5], 8
KEEP = {1: 0.5, 3: 0.5, 5: 0.4}


def run(control: Any, prompts: Any = PROMPTS, seeds: Any = SEEDS, **options: Any) -> Any:
    settings: dict[str, Any] = {"levels": vp(STEPS), "solver": DDIM(), **options}
    return sample(words(), prompts, seeds=seeds, controls=[CFG(2.0), control], **settings)


def lowest(images: Tensor, queries: Any, level: Level) -> Tensor:
    return -sum_of(images, queries)


def test_one_noise_is_the_plain_sampler_and_shares_of_one_are_best_of() -> None:
    """Bitwise. Fails when a share of 1 asks for a reward, or `of` noises are not those of BestOf."""
    plain = sample(words(), PROMPTS, seeds=SEEDS, levels=vp(STEPS), solver=DDIM(), controls=[CFG(2.0)])
    for idle in (TTSnap(sum_of, of=1, keep=KEEP), TTSnap(sum_of, lowest, 1, KEEP)):
        none = run(idle)
        assert torch.equal(none.state.x, plain.state.x) and torch.equal(none.images, plain.images)
        assert none.ledger.rewards == 0 and none.ledger.evaluations == plain.ledger.evaluations
    for solver in (DDIM(), DDIM(1.0)):
        wide, best = (
            run(control, solver=solver)
            for control in (TTSnap(sum_of, lowest, 6, {2: 1.0, 4: 1.0}), BestOf(sum_of, 6))
        )
        assert torch.equal(wide.state.x, best.state.x) and wide.ledger.rewards == best.ledger.rewards


def test_a_true_early_reward_finds_what_best_of_finds_and_a_false_one_the_rest() -> None:
    """Estimates of this bed have their images' order, so pruning loses nothing. Turned round, the best of the
    worst is left: 9 -> 4 -> 2 -> 1 of lowest reward. Fails when the worst go on, or the early reward is not
    asked, or the last choice is made by it.
    """
    best, all_of = run(BestOf(sum_of, 9)), run(BestOf(sum_of, 9, kept=9))
    true, false = run(TTSnap(sum_of, None, 9, KEEP)), run(TTSnap(sum_of, lowest, 9, KEEP))
    assert torch.equal(true.state.x, best.state.x)
    assert torch.allclose(true.state.memory["reward"], best.state.memory["reward"])
    assert torch.equal(false.state.x, all_of.state.x.view(4, 9, -1)[:, -1])
    two = run(TTSnap(sum_of, lowest, 9, {1: 0.5, 3: 0.5}))
    assert torch.equal(two.state.x, all_of.state.x.view(4, 9, -1)[:, -2])


def test_the_early_reward_is_told_the_level_of_the_estimate() -> None:
    """Which is the one that the step began at. Fails when it is the one that it ended at."""
    seen = []

    def told(images: Tensor, queries: Any, level: Level) -> Tensor:
        seen.append((level, len(images), tuple(queries)))
        return sum_of(images, queries)

    run(TTSnap(sum_of, told, 9, KEEP), ["up", "far"], [1, 2])
    levels = vp(STEPS)
    assert [row[:2] for row in seen] == [(levels[0], 18), (levels[2], 8), (levels[4], 4)]
    assert seen[1][2] == ("up",) * 4 + ("far",) * 4


def test_samples_do_not_depend_on_the_batch() -> None:
    """Fails when groups are compared with each other."""
    together = run(TTSnap(sum_of, None, 5, KEEP), solver=DDIM(1.0))
    parts = run(TTSnap(sum_of, None, 5, KEEP), solver=DDIM(1.0), max_batch=3)
    assert torch.equal(parts.state.x, together.state.x)
    for k in range(4):
        alone = run(TTSnap(sum_of, None, 5, KEEP), PROMPTS[k : k + 1], SEEDS[k : k + 1], solver=DDIM(1.0))
        assert torch.equal(alone.state.x[0], together.state.x[k])


def test_it_costs_what_it_says() -> None:
    """Evaluations and rewards of a run; and of the paper's settings, for many noises, 52.656 for each with a
    step of 9.9 and a score of 1.2, where whole runs cost 199.2. The released simulation counts one step less
    (51.864). Fails when a group is not counted until it is pruned, or shares are not rounded.
    """
    for of in (1, 2, 9, 10):
        ledger = run(TTSnap(sum_of, None, of, KEEP)).ledger
        if of > 1:
            assert ledger.evaluations == 4 * 2 * cost(STEPS, of, KEEP)
            assert ledger.rewards == 4 * cost(STEPS, of, KEEP, step=0.0, score=1.0)
    assert cost(STEPS, 11, KEEP) == 11 * 1 + 6 * 2 + 3 * 2 + 1 * 3  # 5.5 is rounded up, to the even number
    sheet = {2: 0.4, 6: 0.4, 11: 0.5}
    given = {"step": 9.9, "score": 1.2}
    assert TTSnap(sum_of).keep == sheet
    assert cost(20, 1000, sheet, **given) / 1000 == pytest.approx(52.656)
    assert cost(19, 1000, sheet, **given) / 1000 == pytest.approx(51.864)
    assert cost(20, 1, {}, **given) == pytest.approx(199.2)
    assert [int(2000 / one) for one in (199.2, 51.864)] == [10, 38]


def test_wrong_settings_are_refused() -> None:
    for wrong, said in (({"of": 0}, "of is 0"), ({"keep": {0: 0.5}}, "step 0"), ({"keep": {2: 1.5}}, "1.5")):
        with pytest.raises(ValueError, match=said):
            TTSnap(sum_of, **wrong)
    with pytest.raises(ValueError, match="keep names step 8, and the run has 8 steps"):
        run(TTSnap(sum_of, None, 4, {8: 0.5}))
