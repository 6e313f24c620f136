"""RLG and Diffusion Blend: single models at the ends, exact laws between and beyond them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from laws.bed import GRIDS, SOLVERS, STOCHASTIC, Pick, words

from promptloop.controls.guidance import CFG
from promptloop.controls.prompt import PromptLoop, Scheduled
from promptloop.controls.record import Record
from promptloop.controls.tuned import RLG, Blend
from promptloop.denoisers.exact import Gaussian
from promptloop.policies.fixed import Identity
from promptloop.sample import rescore, sample
from promptloop.schedules import flow, vp
from promptloop.solvers import CPS, DDIM, Euler, FlowSDE

PROMPTS, SEEDS = ["up", "down", "up", "far", ""], [5, 6, 7, 8, 9]
TEXTS = {"": 0.0, "up": 1.0, "down": -1.0, "far": 3.0}
PROBES = torch.tensor([[0.0], [1.0], [-1.0], [2.0]])


def tuned(mean: float = 1.1, std: float = 0.4) -> Gaussian:
    """Another model of the same texts as `words`."""
    return Gaussian(mean, std, 3, prompts=TEXTS)


def end(bed: Any, controls: Any = (), levels: Any = None, solver: Any = None, **more: Any) -> torch.Tensor:
    options = {"levels": levels or GRIDS["vp"], "solver": solver or DDIM(1.0), "controls": controls}
    return sample(bed, PROMPTS, seeds=SEEDS, **options | more).state.x


def affine(bed: Gaussian, controls: Any, levels: Any, solver: Any = None) -> tuple[float, float]:
    """Mean and std of what an ODE on a one-dimensional Gaussian bed ends in: its map is affine, no noise."""
    x = sample(bed, [""] * 4, seeds=range(4), levels=levels, solver=solver or Euler(), noise=PROBES,
               controls=controls).state.x[:, 0]  # fmt: skip
    mean, std = x[0].item(), (x[1] - x[0]).item()
    assert torch.allclose(x, mean + std * PROBES[:, 0], atol=2e-4)
    return mean, std


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
@pytest.mark.parametrize("grid", GRIDS)
def test_the_ends_are_the_single_models_bitwise(grid: str, solver: Any) -> None:
    """Fails when w = 0 or 1 evaluates base + w (tuned - base), or the tuned branch lacks the guidance."""
    levels = GRIDS[grid]
    for guides in ([], [CFG(3.0, "down")]):
        alone = end(words(), guides, levels, solver)
        other = end(tuned(), guides, levels, solver)
        assert not torch.equal(alone, other)
        for control in (RLG(tuned(), 0), Blend([tuned()], [1.0], 0.0), Blend([tuned()], [1.0], 0.0, "draw")):
            assert torch.equal(end(words(), [*guides, control], levels, solver), alone), control
        far = [tuned(9.0), tuned()]
        ends = (RLG(tuned(), 1), RLG(tuned(), lambda _: 1.0), RLG(tuned(), [1] * 6), Blend([tuned()], [1]),
                Blend(far, [0, 1]), Blend(far, [0, 1], 1, "draw"))  # fmt: skip
        for control in ends:
            assert torch.equal(end(words(), [*guides, control], levels, solver), other), control


def test_a_branch_that_is_not_needed_is_not_run() -> None:
    """Fails when w = 0 still calls the tuned denoiser: 6 steps, 2 a step at w = .5, none outside."""
    calls = []

    def counted(bed: Gaussian, name: str) -> Gaussian:
        plain = bed.clean
        bed.clean = lambda x, level, cond: calls.append(name) or plain(x, level, cond)  # type: ignore
        return bed

    late = lambda u: float(u >= 0.5)  # noqa: E731
    wanted = [(0, 6, 0), (1, 0, 6), (0.5, 6, 6), (late, 3, 3), ([0, 0, 2, 2, 1, 1], 4, 4)]
    for w, base, other in wanted:
        calls.clear()
        end(counted(words(), "base"), [CFG(3.0), RLG(counted(tuned(), "tuned"), w)])
        assert (calls.count("base"), calls.count("tuned")) == (base, other), w


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("w", [-0.5, 0.3, 1.6, 2.0])
def test_equal_variances_give_the_tilt_at_the_kl_weight_over_w(w: float, grid: str, solver: Any) -> None:
    """The law b / w. A reward c x at KL weight b moves N(m, s^2) to N(m + c s^2 / b, s^2); RLG(w) has to give
    the model tuned at b / w, sample by sample, at any number of steps.

    Fails when base and tuned change places in base + w (tuned - base).
    """
    slope, weight, std = 0.8, 0.5, 0.6
    moved = lambda by: Gaussian(0.3 + slope * std**2 / by, std, 3, prompts=TEXTS)  # noqa: E731
    got = end(words(), [CFG(2.0), RLG(moved(weight), w)], GRIDS[grid], solver)
    assert torch.allclose(got, end(moved(weight / w), [CFG(2.0)], GRIDS[grid], solver), atol=2e-4)
    swapped = end(words(), [CFG(2.0), RLG(moved(weight), 1 - w)], GRIDS[grid], solver)
    assert not torch.allclose(got, swapped, atol=1e-2)


@pytest.mark.parametrize(("w", "mean", "variance"), [(0.5, 1.066, 0.5), (1, 1.556, 0.25), (2, 2.043, 0.0625)])
def test_unequal_variances_sharpen_more_than_the_tilt(w: float, mean: float, variance: float) -> None:
    """G1's table, row RLG: variance 1^(1-w) .25^w; the exact tilts have .4, .25, .143.

    Fails when scores are mixed at the noise estimate of one branch: variance at w = 2 is then not .0625.
    """
    got, std = affine(Gaussian(), [RLG(Gaussian(1.575, 0.5), w)], flow(1000))
    assert std**2 == pytest.approx(0.25**w, rel=0.01)
    assert std**2 == pytest.approx(variance, rel=0.01)
    assert got == pytest.approx(mean, abs=0.03)


def test_guidance_before_or_after_is_one_because_it_is_linear() -> None:
    """Fails when the tuned branch is guided with another scale than the base, or not at all."""
    first = end(words(), [CFG(3.0), RLG(tuned(), 1.6)])
    assert torch.allclose(first, end(words(), [RLG(tuned(), 1.6), CFG(3.0)]), atol=1e-5)
    assert not torch.allclose(first, end(words(), [RLG(tuned(), 1.6)]), atol=0.1)
    with pytest.raises(ValueError, match="after CFG"):
        end(words(), [Blend([tuned()], [1.0], 0.5, "draw"), CFG(3.0)])


@pytest.mark.parametrize("solver", [FlowSDE(), CPS(), DDIM(1.0)], ids=repr)
def test_rlg_is_scored_again_as_it_was_drawn(solver: Any) -> None:
    """With a closed loop, guidance, samples that move and split batches; w changes from step to step.

    Fails when rescore asks at the step where the run ended: w would be another, and drawn branches too.
    """
    ws = [0.0, 0.5, 1.0, 1.6, 2.0, 1.2]
    blend = Blend([tuned(), tuned(-0.4, 0.6)], [0.3, 0.7], 0.8, "draw")
    for control in (RLG(tuned(), ws), blend):
        loop = PromptLoop(Identity(), refinements=2)
        controls = [loop, CFG(2.5), control, Pick((1, 1, 0), after=(3,)), Record()]
        made = sample(words(), ["up", "far"] * 3, seeds=range(6), levels=flow(6), solver=solver,
                      controls=controls, max_batch=3).state  # fmt: skip
        known = made.memory["path_log_prob"]
        assert torch.allclose(rescore(words(), made), known, atol=1e-5, equal_nan=True)
        plain = rescore(words(), made, controls=[CFG(2.5)])
        assert not torch.allclose(plain, known, atol=1e-2, equal_nan=True)
    with pytest.raises(ValueError, match="6 numbers for a run of 4 steps"):
        end(words(), [RLG(tuned(), ws)], flow(4))


def test_prompts_that_change_reach_both_branches() -> None:
    """Fails when the tuned branch keeps the embeddings of the first step."""
    said = Scheduled({0: "up", 3: "far"})
    got = end(words(), [said, RLG(tuned(), 1.6)])
    both = [end(words(), [Scheduled({0: "up", k: "far"}), RLG(tuned(), 1.6)]) for k in (3, 1)]
    assert torch.equal(got, both[0]) and not torch.allclose(got, both[1], atol=0.01)
    still = end(tuned(), [said])
    assert torch.equal(end(words(), [said, RLG(tuned(), 1)]), still)


# --- Diffusion Blend


@pytest.mark.parametrize("strength", [1.0, 0.4, 1.5])
def test_blending_linear_rewards_is_the_blended_reward(strength: float) -> None:
    """G1-lin, MPA: mean m + s^2 sum_i w_i c_i / a = 1.46 (m .3, c (1, -.4), w (.7, .3), a .5), at any steps;
    KLA: a / strength. Fails when the weights of tuned models forget strength.
    """
    slopes, weights, a = (1.0, -0.4), (0.7, 0.3), 0.5
    models = [Gaussian(0.3 + slope / a) for slope in slopes]
    wanted = 0.3 + strength * sum(w * c for w, c in zip(weights, slopes, strict=True)) / a
    assert strength != 1 or wanted == pytest.approx(1.46)
    got = affine(Gaussian(), [Blend(models, weights, strength)], vp(12, curve="cosine"))
    plain = affine(Gaussian(wanted), [], vp(12, curve="cosine"))
    assert got == pytest.approx(plain, abs=1e-4)
    fine = affine(Gaussian(), [Blend(models, weights, strength)], flow(800))
    assert fine == pytest.approx((wanted, 1.0), abs=0.01)


def test_one_tuned_model_blended_is_rlg() -> None:
    """DB-KLA is RLG, bit for bit. Fails when Blend sums branches in another order than RLG."""
    assert torch.equal(end(words(), [Blend([tuned()], [1.0], 1.6)]), end(words(), [RLG(tuned(), 1.6)]))


def test_drawing_branches_tends_to_blending_them() -> None:
    """DB-MPA-LS without other noise: the mean is MPA's at any number of steps, the variance falls as 1/steps.

    Fails when a branch is drawn once for the run instead of at every step: the variance stays 1.7.
    """
    models, weights, count, spreads = [Gaussian(2.3), Gaussian(-0.5)], (0.7, 0.3), 600, []
    still = torch.zeros(count, 1)
    for steps in (8, 32):
        options = {"levels": vp(steps, curve="cosine"), "solver": DDIM(), "noise": still}
        x = sample(Gaussian(), [""] * count, seeds=range(count), decode=False,
                   controls=[Blend(models, weights, 1.0, "draw")], **options).state.x  # fmt: skip
        mpa = sample(Gaussian(), [""], seeds=[0], controls=[Blend(models, weights)],
                     **options | {"noise": still[:1]}).state.x  # fmt: skip
        error = x.std().item() / math.sqrt(count)
        assert x.mean().item() == pytest.approx(mpa.item(), abs=4 * error)
        spreads.append(x.var().item())
    assert spreads[0] / spreads[1] == pytest.approx(4, rel=0.3), spreads


@pytest.mark.parametrize("solver", STOCHASTIC, ids=repr)
def test_drawn_branches_do_not_depend_on_the_batch(solver: Any) -> None:
    """Fails when one branch is drawn for the whole batch, or rows come back in the branches' order."""
    control = Blend([tuned(), tuned(-2.0)], [0.5, 0.5], 0.7, "draw")
    together = end(words(), [CFG(2.0), control], solver=solver)
    for size in (1, 2):
        assert torch.equal(end(words(), [CFG(2.0), control], solver=solver, max_batch=size), together)


# --- what is refused


def test_what_cannot_work_is_refused_with_the_reason() -> None:
    """Fails when a tuned model with other embeddings, or a mistyped weight, is run in silence."""
    other = Gaussian(0.3, 0.6, 3, prompts={name: value + 1 for name, value in TEXTS.items()})
    wrong: list[tuple[Any, str]] = [
        (RLG(other, 1.6), "embeds 'up' otherwise"),
        (RLG(Gaussian(0.3, 0.6, 2, prompts=TEXTS), 1.6), r"latents \(2,\), the base \(3,\)"),
        (RLG("nothing", 1.6), "this backbone has none"),
        (Blend([tuned()], [1.0], [1.0, 1.5, 0.5, 0, 0, 0], "draw"), None),
    ]
    for control, said in wrong[:3]:
        with pytest.raises(ValueError, match=said):
            end(words(), [control])
    with pytest.raises(ValueError, match="from 0 to 1"):
        end(words(), [wrong[3][0]])
    for make, said in [
        (lambda: RLG(tuned(), math.nan), "w is nan"),
        (lambda: Blend([tuned()], [0.9]), "do not sum to 1"),
        (lambda: Blend([tuned()], [0.5, 0.5]), "2 weights for 1"),
        (lambda: Blend([tuned(), tuned()], [1.5, -0.5], 1, "draw"), "none may be below 0"),
    ]:
        with pytest.raises(ValueError, match=said):
            make()
    nested = replace(RLG(tuned(), 1.6))

    class Around(Record):  # type: ignore[misc]
        def guide(self, denoise: Any, state: Any) -> Any:
            return nested.guide(denoise, state)

    with pytest.raises(ValueError, match="RLG is not in the run's list"):
        end(words(), [Around()])
