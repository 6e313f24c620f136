"""Guides by gradients: identity, batches, scoring again, refusals; universal guidance and recurrence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from laws.bed import GRIDS, SOLVERS, Chain, Seen, Value, at, words
from torch import Tensor

from promptloop.controls.gradients import Ascent, LossGuidance, NoisyRewardGradient, RewardGradient
from promptloop.controls.guidance import CFG
from promptloop.controls.record import Record
from promptloop.controls.recurrence import Recurrence
from promptloop.denoisers.exact import Gaussian, Linear
from promptloop.sample import rescore, sample
from promptloop.schedules import Level, flow, vp
from promptloop.solvers import CPS, DDIM, FlowSDE, Scheduler

NOISY, MANY = Level(0.6, 0.8, 0), 20000
PROMPTS, SEEDS = ["up", "down", "up", "far", ""], [5, 6, 7, 8, 9]

# --- universal guidance


def test_the_estimate_climbs_by_its_own_gradient() -> None:
    """r = -(x - 2)^2 / 2 at rate .5: the distance to 2 halves at each step.

    Fails when the denoiser's Jacobian comes in, or the sum of gradients is divided by the batch.
    """
    level, x = NOISY, torch.tensor([[-1.0], [0.4], [2.2]])
    state = at(level, x)
    clean = Gaussian().clean(x, level, state.cond)
    got = Ascent(Seen(), 0.5, steps=3).guide(Gaussian().clean, state)(x, level, state.cond)
    assert torch.allclose(got - 2, (clean - 2) / 8, atol=1e-4)


def test_recurrence_leaves_an_exact_samplers_law() -> None:
    """G1 under exact kernels stays N(.3, 1), with 3 evaluations a step inside the window and 1 outside.

    Fails when the step is counted back with the level: the same noise again makes the variance 1.4.
    """
    bed, calls = Gaussian(dim=MANY), []
    plain = bed.clean
    bed.clean = lambda x, level, cond: calls.append(level) or plain(x, level, cond)  # type: ignore
    options: dict[str, Any] = {"levels": vp(8, curve="cosine"), "solver": Chain()}
    x = sample(bed, [""], seeds=[0], turn=Recurrence(3, window=(0.5, 1.0)), **options).state.x
    assert len(calls) == 4 + 4 * 3
    assert x.mean().item() == pytest.approx(0.3, abs=0.03) and x.var().item() == pytest.approx(1, abs=0.04)
    once = sample(bed, [""], seeds=[0], turn=Recurrence(1), **options).state.x
    assert torch.equal(once, sample(bed, [""], seeds=[0], **options).state.x)
    with pytest.raises(ValueError, match="left them"):
        sample(words(), ["up"], seeds=[0], steps=4, turn=Recurrence(2), controls=[Record()])
    from diffusers import DDIMScheduler

    with pytest.raises(ValueError, match="history cannot go back"):
        sample(words(), ["up"], seeds=[0], steps=4, turn=Recurrence(2), solver=Scheduler(DDIMScheduler()))


# --- laws of every control


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_identity_settings_are_bitwise_the_plain_sampler(solver: Any) -> None:
    """Fails when scale 0 still adds 0 times a gradient (or evaluates at all: the reward here would raise)."""

    def raising(*_: Any) -> Any:
        raise AssertionError("asked")

    raising.differentiable = True  # type: ignore[attr-defined]
    idle = [
        RewardGradient(raising, 0),
        RewardGradient(raising, 0.0, form="mean"),
        LossGuidance(raising, [0] * 6),
        NoisyRewardGradient(raising, lambda _: 0.0),
        Ascent(raising, 0),
        Ascent(raising, 1.0, steps=0),
    ]
    for grid in ("cosine", "flow"):
        options: dict[str, Any] = {"seeds": SEEDS, "levels": GRIDS[grid], "solver": solver}
        plain = sample(words(), PROMPTS, controls=[CFG(2.0)], **options).state.x
        for control in idle:
            assert torch.equal(
                sample(words(), PROMPTS, controls=[CFG(2.0), control], **options).state.x, plain
            )


CONTROLS = [
    RewardGradient(Seen(Linear(0.5)), 1.0),
    RewardGradient(Seen(), 0.5, form="mean"),
    LossGuidance(Seen(), 0.5, samples=4),
    NoisyRewardGradient(Value(words()), 0.5),
    Ascent(Seen(), 0.1, steps=2),
]


@pytest.mark.parametrize("control", CONTROLS, ids=lambda c: type(c).__name__)
@pytest.mark.parametrize("solver", [DDIM(1.0), FlowSDE(), CPS()], ids=repr)
def test_a_sample_is_itself_in_any_batch_and_scored_again_as_drawn(control: Any, solver: Any) -> None:
    """Fails when the gradient of a batch's mean is taken, or LossGuidance draws anew in rescore."""
    controls = [CFG(2.0), control, Record()]
    options: dict[str, Any] = {
        "seeds": SEEDS,
        "levels": GRIDS["flow"],
        "solver": solver,
        "controls": controls,
    }
    together = sample(words(), PROMPTS, **options).state
    plain = sample(words(), PROMPTS, **options | {"controls": [CFG(2.0)]}).state
    assert not torch.allclose(together.x, plain.x, atol=0.01)
    assert torch.allclose(sample(words(), PROMPTS, max_batch=2, **options).state.x, together.x, atol=1e-6)
    known = together.memory["path_log_prob"]
    assert torch.allclose(rescore(words(), together), known, atol=1e-4, equal_nan=True)


def test_scoring_again_has_the_networks_gradient() -> None:
    """Fails when the guide detaches the estimate where the caller records gradients."""
    bed = words()
    controls = [RewardGradient(Seen(), 0.5), Record()]
    made = sample(bed, ["up"], seeds=[1], levels=flow(5), solver=FlowSDE(), controls=controls).state
    rescore(bed, made, steps=[1, 2, 3]).sum().backward()
    assert float(bed.network.mean.grad.abs().min()) > 1e-4  # type: ignore[union-attr]


def test_what_cannot_work_is_refused_with_the_reason() -> None:
    """Fails when a black-box reward, or one that lies about its gradient, is followed in silence."""
    blind = Seen(differentiable=False)
    for make in (
        lambda: RewardGradient(blind, 1.0),
        lambda: LossGuidance(blind, 1.0),
        lambda: NoisyRewardGradient(blind, 1.0),  # type: ignore[arg-type]
        lambda: Ascent(blind, 1.0),
    ):
        with pytest.raises(ValueError, match="Seen is not differentiable.*particles need its values only"):
            make()

    def lying(images: Tensor, queries: Any) -> Tensor:
        return images.detach().mean((1, 2, 3))

    def broken(images: Tensor, queries: Any) -> Tensor:
        return images.mean((1, 2, 3)) / torch.tensor([1.0 if q != "far" else 0.0 for q in queries])

    lying.differentiable = broken.differentiable = True  # type: ignore[attr-defined]
    for reward, said in [(lying, "no gradient reaches it"), (broken, "image 3 .'far'. is inf")]:
        with pytest.raises(ValueError, match=said):
            sample(words(), PROMPTS, seeds=SEEDS, levels=flow(3), controls=[RewardGradient(reward, 1.0)])
    for make, said in [
        (lambda: RewardGradient(Seen(), float("inf")), "scale is inf"),
        (lambda: RewardGradient(Seen(), 1.0, form="noise"), "form is 'noise'"),  # type: ignore
        (lambda: LossGuidance(Seen(), 1.0, samples=3), "samples is 3"),
        (lambda: Recurrence(0), "times is 0"),
    ]:
        with pytest.raises(ValueError, match=said):
            make()


def test_running_the_denoiser_twice_bounds_what_is_held() -> None:
    """Elements saved for backward at once: with twice=True the larger part, without it the sum of both.

    Fails when the second evaluation keeps the first one's graph.
    """
    held, most = [0], [0]

    class Box:
        def __init__(self, value: Tensor) -> None:
            self.value = value
            held[0] += value.numel()
            most[0] = max(most[0], held[0])

        def __del__(self) -> None:
            held[0] -= self.value.numel()

    def heavy(x: Tensor, level: Level, cond: Any) -> Tensor:
        for _ in range(10):
            x = (x * 1.01).tanh()
        return x

    peaks = []
    for twice in (False, True):
        held[0], most[0] = 0, 0
        state = at(NOISY, torch.randn(2, 50))
        control = RewardGradient(Seen(), 1.0, twice=twice)
        with torch.no_grad(), torch.autograd.graph.saved_tensors_hooks(Box, lambda box: box.value):
            control.increment(heavy, state, state.x, state.level, state.cond)
        peaks.append(most[0])
    assert peaks[1] <= 0.8 * peaks[0], peaks
