"""The Scheduler solver equals a diffusers scheduler run by hand; its history moves with the samples."""

import diffusers
import pytest
import torch
from laws.bed import pair

from promptloop.sample import Run, advance, begin, default_solver, join, sample
from promptloop.schedules import Level, check, flow, from_scheduler
from promptloop.solvers import DDIM, Euler, Scheduler

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
CASES = {
    "DDIM": ("DDIMScheduler", {**SD, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}),
    "DDIM-v-trailing": (
        "DDIMScheduler",
        {**SD, "clip_sample": False, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
    ),
    "PNDM": ("PNDMScheduler", {**SD, "skip_prk_steps": True, "steps_offset": 1}),
    "PNDM-Runge-Kutta": ("PNDMScheduler", {**SD, "steps_offset": 1}),
    "KDPM2": ("KDPM2DiscreteScheduler", SD),
    "Euler": ("EulerDiscreteScheduler", {**SD, "steps_offset": 1, "timestep_spacing": "leading"}),
    "Euler-karras": ("EulerDiscreteScheduler", {**SD, "use_karras_sigmas": True}),
    "Heun": ("HeunDiscreteScheduler", SD),
    "LMS": ("LMSDiscreteScheduler", SD),
    "DPM++": ("DPMSolverMultistepScheduler", SD),
    "DPM++-karras": ("DPMSolverMultistepScheduler", {**SD, "use_karras_sigmas": True}),
    "UniPC": ("UniPCMultistepScheduler", SD),
    "DEIS": ("DEISMultistepScheduler", SD),
    "FlowMatchEuler": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    "FlowMatchHeun": ("FlowMatchHeunDiscreteScheduler", {"shift": 3.0}),
    "DPM++-flow": (
        "DPMSolverMultistepScheduler",
        {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0},
    ),
    "UniPC-flow": (
        "UniPCMultistepScheduler",
        {"prediction_type": "flow_prediction", "use_flow_sigmas": True},
    ),
}
STEPS = 7


def scheduler(name: str):
    kind, options = CASES[name]
    return getattr(diffusers, kind)(**options)


def network(bed, by, k: int, x: torch.Tensor, kind: str) -> torch.Tensor:
    """What a network would answer at the scheduler's k-th timestep, from diffusers' own numbers only."""
    if "flow" in kind:
        sigma = float(by.sigmas[k])
        level = Level(1 - sigma, sigma, 0.0)
    elif hasattr(by, "sigmas"):
        between = k % 2 and hasattr(by, "sigmas_interpol")  # KDPM2 calls the network in the middle of a step
        sigma = float(by.sigmas_interpol[k] if between else by.sigmas[k])
        level = Level(1 / (1 + sigma**2) ** 0.5, sigma / (1 + sigma**2) ** 0.5, 0.0)
    else:
        signal = float(by.alphas_cumprod[int(by.timesteps[k])])
        level = Level(signal**0.5, (1 - signal) ** 0.5, 0.0)
    clean = bed.clean(x, level, bed.embed([""] * len(x)))
    noise = (x - level.alpha * clean) / level.sigma
    if "flow" in kind:
        return noise - clean
    return level.alpha * noise - level.sigma * clean if by.config.prediction_type == "v_prediction" else noise


@torch.no_grad()
def by_hand(bed, name: str, noise: torch.Tensor) -> torch.Tensor:
    """The loop of a diffusers pipeline."""
    by = scheduler(name)
    by.set_timesteps(STEPS)
    x = noise * getattr(by, "init_noise_sigma", 1.0)
    for k, t in enumerate(by.timesteps):
        seen = by.scale_model_input(x, t) if hasattr(by, "scale_model_input") else x
        x = by.step(network(bed, by, k, seen, name.lower()), t, x, return_dict=False)[0]
    return x


@pytest.mark.parametrize("name", CASES)
def test_scheduler_equals_running_it_by_hand(name: str) -> None:
    """Fails when x is not scaled by init_noise_sigma, or a flow scheduler is given epsilon."""
    bed, seeds = pair(2), [1, 2, 3]
    ours = sample(bed, [""] * 3, steps=STEPS, solver=Scheduler(scheduler(name)), seeds=seeds)
    theirs = by_hand(bed, name, bed.noise(seeds))
    assert torch.allclose(ours.state.x, theirs, atol=1e-4), (ours.state.x - theirs).abs().max()
    assert ours.state.transition.deterministic


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_history_survives_take_join_and_batches(name: str) -> None:
    """Fails when take leaves model_outputs, ets (PNDM), last_sample (UniPC) or sample (Heun) behind."""
    bed, solver = pair(2), Scheduler(scheduler(name))
    levels = check(solver.levels(STEPS))
    state = begin(Run(bed, levels, solver, ()), [""] * 3, [1, 2, 3])
    half = len(levels) // 2
    for level in levels[1:half]:
        state = advance(state, level)
    moved, parts = state.take([2, 0, 0, 1]), join([state.take([0]), state.take([1, 2])])
    again = advance(state, levels[half])
    assert torch.equal(again.x, advance(state, levels[half]).x), (
        "a step must not change the state it came from"
    )
    for level in levels[half:]:
        state, moved, parts = advance(state, level), advance(moved, level), advance(parts, level)
    assert torch.allclose(moved.x, state.x[[2, 0, 0, 1]], atol=1e-6)
    assert torch.allclose(parts.x, state.x, atol=1e-6)
    assert torch.allclose(
        sample(bed, [""] * 3, steps=STEPS, solver=solver, seeds=[1, 2, 3], max_batch=2).state.x,
        state.x,
        atol=1e-6,
    )


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("DDPMScheduler", {"clip_sample": False}),
        ("EulerAncestralDiscreteScheduler", {}),
        ("LCMScheduler", {}),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
        ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}),
    ],
    ids=str,
)
def test_stochastic_schedulers_draw_for_each_sample(kind, options) -> None:
    """Fails when the global generator is used: sample 2 would depend on the batch and on the run."""
    solver = Scheduler(getattr(diffusers, kind)(**options))
    together = sample(pair(2), [""] * 3, steps=5, solver=solver, seeds=[1, 2, 3]).state.x
    alone = sample(pair(2), [""], steps=5, solver=solver, seeds=[3]).state.x
    assert torch.allclose(together[2], alone[0], atol=1e-6)
    assert not torch.allclose(together[0], together[1])


def test_the_scheduler_given_is_not_changed_and_options_reach_it() -> None:
    """Fails without the copy: two runs with different steps would disturb each other."""
    given = scheduler("FlowMatchEuler")
    before = given.timesteps.clone()
    sigmas = [1.0, 0.7, 0.2]
    end = sample(pair(2), [""], steps=3, solver=Scheduler(given, {"sigmas": sigmas}), seeds=[1]).state
    assert [level.sigma for level in end.run.levels] == pytest.approx(
        [3 * s / (1 + 2 * s) for s in sigmas] + [0.0]
    )
    assert torch.equal(given.timesteps, before)


def test_a_distilled_schedule_has_no_more_steps_than_it_was_taught() -> None:
    """Fails when diffusers' own sentence, which speaks of a strength, is all a user gets."""
    with pytest.raises(ValueError, match="distilled for 8; give at most 8"):
        from_scheduler(diffusers.LCMScheduler(original_inference_steps=8), 20)


def test_misuse_is_refused() -> None:
    """Fails when the solver steps on whatever timestep is next, at levels that are not the scheduler's."""
    solver = Scheduler(scheduler("DPM++"))
    with pytest.raises(ValueError, match="not DPMSolverMultistepScheduler's"):
        sample(pair(2), [""], levels=flow(5), solver=solver, seeds=[1])
    levels = check(solver.levels(5))
    state = begin(Run(pair(2), levels, solver, ()), [""], [1])
    later = advance(state, levels[1])
    from dataclasses import replace

    with pytest.raises(ValueError, match="skipped or redone"):
        advance(replace(later, level=levels[0]), levels[1])
    with pytest.raises(ValueError, match="no scheduler history"):
        advance(replace(later, transition=None), levels[2])
    refused = {"EDMEuler": "EDM's scaling", "IPNDM": "from 0 to 1", "KDPM2AncestralDiscrete": "do not fall",
               "CMStochasticIterative": "EDM's scaling", "DDIMInverse": "image to the noise"}  # fmt: skip
    for kind, reason in refused.items():
        with pytest.raises(ValueError, match=f"{kind}Scheduler .*{reason}.*supported are DDIM"):
            Scheduler(getattr(diffusers, f"{kind}Scheduler")()).levels(5)
    tree = diffusers.DPMSolverSDEScheduler  # cannot be made without torchsde
    with pytest.raises(ValueError, match="one Brownian tree for the whole batch"):
        Scheduler(object.__new__(tree)).levels(5)
    with pytest.raises(ValueError, match="SCMScheduler are not one noise level each"):
        Scheduler(diffusers.SCMScheduler()).levels(2)


def test_the_default_solver_is_the_schedulers_own() -> None:
    """Fails when a scheduler that clips its estimate is replaced by DDIM, which does not."""
    bed = pair(2)
    wrapped = {"PNDM": Scheduler, "UniPC": Scheduler}
    for name, expected in ({"DDIM": DDIM, "FlowMatchEuler": Euler} | wrapped).items():
        assert isinstance(default_solver(With(bed, scheduler(name))), expected)
    assert isinstance(default_solver(With(bed, None)), DDIM)
    assert isinstance(default_solver(With(bed, diffusers.DDIMScheduler(clip_sample=True))), Scheduler)


class With:
    """A denoiser with another scheduler."""

    def __init__(self, bed, scheduler) -> None:
        self.bed, self.scheduler = bed, scheduler
        self.scheduler_options: dict = {}
