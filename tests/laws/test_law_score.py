"""Log-probabilities: equal to torch's Normal, to themselves when recomputed, and differentiable."""

import math
from dataclasses import replace

import pytest
import torch
from laws.bed import GRIDS, STOCHASTIC, Pick, pair, words

from promptloop.controls.guidance import CFG
from promptloop.controls.prompt import Scheduled
from promptloop.controls.record import Record
from promptloop.denoisers.exact import Gaussian
from promptloop.sample import Transition, rescore, sample, trajectory
from promptloop.schedules import flow, vp
from promptloop.solvers import CPS, DDIM, DanceSDE, FlowSDE

PROMPTS, SEEDS = ["up", "down", "up", ""], [5, 6, 7, 8]


@pytest.mark.parametrize(
    "std", [torch.tensor(0.3), torch.tensor([0.2, 1.5])[:, None, None]], ids=["one", "each"]
)
def test_log_prob_is_the_mean_of_normals(std) -> None:
    """Fails when dimensions are summed instead of averaged, or 0.5 log 2 pi is dropped."""
    mean, x = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    expected = torch.distributions.Normal(mean, std).log_prob(x).mean((1, 2))
    assert torch.allclose(Transition(mean, std, mean).log_prob(x), expected, atol=1e-6)


def test_log_prob_is_float32_and_leaves_x_out_of_the_gradient() -> None:
    """Fails without x.detach(): the gradient would also flow through the sample."""
    mean, x = torch.zeros(1, 2, requires_grad=True), torch.ones(1, 2, requires_grad=True)
    scored = Transition(mean, torch.tensor(0.5), mean).log_prob(x)
    scored.sum().backward()
    assert x.grad is None and mean.grad is not None
    half = Transition(mean.bfloat16(), torch.tensor(0.5).bfloat16(), mean.bfloat16())
    assert half.log_prob(x.bfloat16()).dtype == torch.float32
    with pytest.raises(ValueError, match="std 0"):
        Transition(mean, torch.tensor(0.0), mean).log_prob(x)
    with pytest.raises(ValueError, match="std 0"):
        Transition(torch.zeros(2, 1), torch.tensor([[0.0], [1.0]]), torch.zeros(2, 1)).log_prob(
            torch.zeros(2, 1)
        )


@pytest.mark.parametrize("solver", STOCHASTIC, ids=repr)
@pytest.mark.parametrize("grid", GRIDS)
def test_rescore_equals_what_was_recorded(grid: str, solver) -> None:
    """With guidance, prompts that change, samples that move and are split into batches.

    Fails when rescore uses the prompts in force at the end instead of the recorded ones.
    """
    controls = [Scheduled({0: "up", 2: "far", 3: "down"}), CFG(2.5), Pick((1, 1, 0), after=(3,)), Record()]
    for max_batch in (None, 3):
        end = sample(
            words(),
            ["up"] * 6,
            levels=GRIDS[grid],
            solver=solver,
            seeds=range(6),
            controls=controls,
            max_batch=max_batch,
        ).state
        known = end.memory["path_log_prob"]
        scored = rescore(words(), end)
        assert scored.shape == known.shape and known.isfinite().sum() >= 4
        assert torch.allclose(scored, known, atol=1e-5, equal_nan=True)
        assert torch.allclose(rescore(words(), end, steps=[1, 3]), known[:, [1, 3]], atol=1e-5)
        assert (end.memory["path"][:, -1] == end.x).all()


@pytest.mark.parametrize("solver", [FlowSDE(), CPS(), DDIM(1.0)], ids=repr)
def test_rescore_has_the_gradient_of_the_network(solver) -> None:
    """Against a central difference in the trained mean; fails when rescore runs under no_grad or detaches."""
    bed = pair(2)
    end = sample(bed, [""] * 3, levels=flow(5), solver=solver, seeds=[1, 2, 3], controls=[Record()]).state
    rescore(bed, end)[:, :-1].sum().backward()
    slope = bed.network.mean.grad[0, 1].item()
    sums = []
    for nudge in (1e-2, -1e-2):
        other = pair(2)
        with torch.no_grad():
            other.network.mean[0, 1] += nudge
            sums.append(rescore(other, end)[:, :-1].double().sum().item())
    assert slope == pytest.approx((sums[0] - sums[1]) / 2e-2, rel=0.02)
    assert abs(slope) > 1e-3


def test_recorded_log_probs_do_not_carry_a_graph() -> None:
    """Fails when Record keeps transition.log_prob undetached: old log-probs would train too."""
    *_, end = trajectory(pair(), [""], levels=flow(4), solver=FlowSDE(), seeds=[1], controls=[Record()])
    assert end.x.requires_grad
    assert not end.memory["path"].requires_grad and not end.memory["path_log_prob"].requires_grad


def test_a_path_without_density_is_an_error() -> None:
    """Fails when rescore returns zeros for deterministic steps."""
    end = sample(words(), PROMPTS, levels=vp(4), solver=DDIM(), seeds=SEEDS, controls=[Record()]).state
    assert end.memory["path_log_prob"].isnan().all()
    with pytest.raises(ValueError, match="every step of DDIM.*was deterministic.*FlowSDE"):
        rescore(words(), end)
    with pytest.raises(ValueError, match="no recorded path"):
        rescore(words(), sample(words(), PROMPTS, levels=vp(4), seeds=SEEDS).state)


@pytest.mark.parametrize(
    ("solver", "steps", "constant"),
    [
        (FlowSDE(0.3), 10, 5.995),
        (FlowSDE(0.7), 10, 1.555),
        (FlowSDE(1.0), 10, 1.101),
        (FlowSDE(math.sqrt(2)), 10, 0.975),
        (DanceSDE(0.3), 10, 9.75),
        (FlowSDE(0.7), 400, 1.582),
        (FlowSDE(math.sqrt(2)), 400, 1.000),
        (DanceSDE(0.3), 400, 9.25),
    ],
    ids=str,
)
@torch.no_grad()
def test_path_kl_of_a_shifted_gaussian_has_its_known_constant(solver, steps, constant) -> None:
    """Bed T: sum over steps of |mean_m - mean_0|^2 / (2 std^2) = constant m^2 / 2, the last step skipped.

    Fails when the score term beside v has the other sign, or std misses sqrt(-dt).
    """
    moved, still = Gaussian(1.0), Gaussian(0.0)
    kl = 0.0
    before = None
    for state in trajectory(moved, [""], levels=flow(steps), solver=solver, seeds=[3]):
        if before is not None and state.level.sigma > 0:
            other = solver(still.clean, state_with(before, state.cond), state.level)
            kl += ((state.transition.mean - other.mean) ** 2 / (2 * state.transition.std**2)).item()
        before = state
    assert 2 * kl == pytest.approx(constant, rel=0.01)


def state_with(state, cond):
    from dataclasses import replace

    return replace(state, cond=cond)


def test_rescore_under_guidance_that_the_run_did_not_have() -> None:
    """Fails when guidance reads an embedding that only its own run made, or another denoiser's."""
    end = sample(
        words(), ["up"], levels=GRIDS["flow"], solver=FlowSDE(), seeds=[5], controls=[Record()]
    ).state
    plain, guided = rescore(words(), end), rescore(words(), end, controls=[CFG(2.5)])
    assert torch.allclose(plain, rescore(words(), end, controls=[CFG(1.0)]), equal_nan=True)
    assert not torch.allclose(plain, guided, equal_nan=True)
    made = sample(
        words(), ["up"], levels=GRIDS["flow"], solver=FlowSDE(), seeds=[5], controls=[CFG(2.5), Record()]
    )
    stale = replace(made.state, memory={**made.state.memory, "embedded negative ''": words().embed(["up"])})
    assert torch.allclose(rescore(words(), made.state), rescore(words(), stale), equal_nan=True)
