"""Every diffusers scheduler in our loop: the pipeline's image, draws of each sample, or why not."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import tiny
import torch
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers

from promptloop.controls.guidance import CFG
from promptloop.controls.record import Record
from promptloop.denoisers import from_pipeline
from promptloop.sample import State, rescore, sample
from promptloop.schedules import REFUSED
from promptloop.solvers import DDIM, Scheduler

PROMPTS, SEEDS, STEPS = ["a red circle", "two blue stars"], [3, 4], 5
TOLERANCE = 1e-4  # images in [0, 1], float32; found: 2e-6
FLOW: dict[str, Any] = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}

# name -> class, settings; all of them take the image from the noise without a draw
VP: dict[str, tuple[str, dict[str, Any]]] = {
    "DDIM": ("DDIMScheduler", {}),
    "DDIM parallel": ("DDIMParallelScheduler", {}),
    "DDIM clipped": ("DDIMScheduler", {"clip_sample": True, "clip_sample_range": 2.0}),
    "PNDM": ("PNDMScheduler", {"skip_prk_steps": True}),
    "PNDM Runge-Kutta": ("PNDMScheduler", {"skip_prk_steps": False}),
    "LMS": ("LMSDiscreteScheduler", {}),
    "Euler": ("EulerDiscreteScheduler", {}),
    "Euler Karras": ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    "Euler trailing": ("EulerDiscreteScheduler", {"timestep_spacing": "trailing"}),
    "Heun": ("HeunDiscreteScheduler", {}),
    "KDPM2": ("KDPM2DiscreteScheduler", {}),
    "KDPM2 Karras": ("KDPM2DiscreteScheduler", {"use_karras_sigmas": True}),
    "DPM++ 2M": ("DPMSolverMultistepScheduler", {}),
    "DPM++ 3M": ("DPMSolverMultistepScheduler", {"solver_order": 3, "lower_order_final": False}),
    "DPM++ 2M Karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "DPM++ 2M exponential": ("DPMSolverMultistepScheduler", {"use_exponential_sigmas": True}),
    "DPM 2M": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
    ),
    "DPM++ single": ("DPMSolverSinglestepScheduler", {}),
    "DPM++ single, order 3": ("DPMSolverSinglestepScheduler", {"solver_order": 3}),
    "UniPC": ("UniPCMultistepScheduler", {}),
    "DEIS": ("DEISMultistepScheduler", {}),
}
FLOWS: dict[str, tuple[str, dict[str, Any]]] = {
    "FlowMatchEuler": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    "FlowMatchEuler Karras": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "use_karras_sigmas": True}),
    "FlowMatchHeun": ("FlowMatchHeunDiscreteScheduler", {"shift": 3.0}),
    "DPM++ 2M": ("DPMSolverMultistepScheduler", FLOW),
    "DPM++ single": ("DPMSolverSinglestepScheduler", FLOW),
    "UniPC": ("UniPCMultistepScheduler", FLOW),
    "DEIS": ("DEISMultistepScheduler", FLOW),
}
DRAWS: dict[str, tuple[str, dict[str, Any]]] = {  # these draw inside their step
    "DDPM": ("DDPMScheduler", {}),
    "DDPM parallel": ("DDPMParallelScheduler", {}),
    "Euler ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "DPM++ SDE": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "LCM": ("LCMScheduler", {"original_inference_steps": 50}),
    "TCD": ("TCDScheduler", {"original_inference_steps": 50}),
    "SA": ("SASolverScheduler", {}),
}
FLOW_DRAWS: dict[str, tuple[str, dict[str, Any]]] = {
    "FlowMatchLCM": ("FlowMatchLCMScheduler", {"shift": 3.0}),
    "FlowMatchEuler stochastic": (
        "FlowMatchEulerDiscreteScheduler",
        {"shift": 3.0, "stochastic_sampling": True},
    ),
}
STATEFUL = ("PNDM", "LMS", "Heun", "KDPM2", "DPM", "UniPC", "DEIS", "SA")


@pytest.fixture(scope="module")
def pipes() -> dict[str, Any]:
    made = {"sd": tiny.sd(), "sd-v": tiny.sd("v_prediction"), "sd3": tiny.sd3(t5=0)}
    for pipe in made.values():
        pipe.set_progress_bar_config(disable=True)
    return made


def scheduler(pipe: Any, case: tuple[str, dict[str, Any]]) -> Any:
    return getattr(diffusers, case[0]).from_config(pipe.scheduler.config, **case[1])


CASES = [
    *[("sd", name) for name in VP],
    *[("sd-v", name) for name in ("KDPM2", "PNDM Runge-Kutta", "DPM++ single")],
    *[("sd3", name) for name in FLOWS],
]


@pytest.mark.parametrize(("family", "name"), CASES, ids=str)
def test_deterministic_schedulers_make_the_pipelines_image(pipes: Any, family: str, name: str) -> None:
    """With guidance, a batch of two. Fails if KDPM2's middles are taken for whole steps."""
    pipe, case = pipes[family], (FLOWS if family == "sd3" else VP)[name]
    denoiser, own = from_pipeline(pipe), pipe.scheduler
    solver = Scheduler(scheduler(pipe, case))
    ours = sample(denoiser, PROMPTS, steps=STEPS, seeds=SEEDS, solver=solver, controls=[CFG(5.0)]).images
    pipe.scheduler = scheduler(pipe, case)
    try:
        generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
        theirs = pipe(PROMPTS, num_inference_steps=STEPS, guidance_scale=5.0, generator=generators,
                      output_type="pt").images  # fmt: skip
    finally:
        pipe.scheduler = own
    assert ours is not None and theirs.std() > 0.05 and (theirs[0] - theirs[1]).abs().max() > 0.05
    assert (ours - theirs).abs().max() <= TOLERANCE


@pytest.mark.parametrize(("family", "name"), [*[("sd", n) for n in DRAWS], *[("sd3", n) for n in FLOW_DRAWS]])
@torch.no_grad()
def test_stochastic_schedulers_take_their_own_step_with_the_samples_noise(
    pipes: Any, family: str, name: str
) -> None:
    """Each x is what the scheduler's step gives, given our generators. Fails if they are not handed on."""
    pipe, case = pipes[family], (DRAWS | FLOW_DRAWS)[name]
    denoiser, states = from_pipeline(pipe), list[State]()
    solver = Scheduler(scheduler(pipe, case))
    sample(denoiser, PROMPTS, steps=STEPS, seeds=SEEDS, solver=solver, on_step=states.append)
    timed = scheduler(pipe, case)
    timed.set_timesteps(STEPS)
    text = denoiser.embed(PROMPTS).fields
    x = states[0].x
    for before, after, t in zip(states, states[1:], timed.timesteps, strict=False):
        seen = timed.scale_model_input(x, t) if hasattr(timed, "scale_model_input") else x
        told = {"pooled_projections": text["pooled"]} if family == "sd3" else {}
        said: Any = denoiser.network(hidden_states=seen, timestep=t.expand(2), return_dict=False,
                                     encoder_hidden_states=text["text"], **told)[0] if told else (
            denoiser.network(seen, t, text["text"], return_dict=False)[0])  # fmt: skip
        draws = [before.generator(i, "step") for i in range(2)]
        x = timed.step(said, t, x, generator=draws, return_dict=False)[0].float()
        assert (after.x - x).abs().max() <= 1e-4 * x.abs().max()
    alone = sample(denoiser, PROMPTS[1:], steps=STEPS, seeds=SEEDS[1:], solver=solver, decode=False).state.x
    assert torch.allclose(alone[0], states[-1].x[1], atol=1e-4)


def test_no_scheduler_of_stable_diffusion_is_forgotten() -> None:
    """Fails if diffusers gets one that is neither run nor refused here."""
    known = {kind for kind, _ in (VP | DRAWS).values()} | REFUSED.keys()
    assert {entry.name for entry in KarrasDiffusionSchedulers} <= known


@pytest.mark.parametrize("name", [*VP, *DRAWS])
def test_wrapped_schedulers_have_no_log_probs_and_say_why(pipes: Any, name: str) -> None:
    """Fails if a scheduler that keeps a history is told as one that has none, or ours are not named."""
    pipe = pipes["sd"]
    solver = Scheduler(scheduler(pipe, (VP | DRAWS)[name]))
    why = "is stateful: its step depends on earlier answers" if name.startswith(STATEFUL) else "is wrapped"
    assert why in solver.without_density
    if name not in ("UniPC", "DDPM"):
        return
    denoiser = from_pipeline(pipe)
    run: dict[str, Any] = {"steps": 2, "seeds": SEEDS, "controls": [Record()], "decode": False}
    end = sample(denoiser, PROMPTS, solver=solver, **run).state
    assert end.memory["path_log_prob"].isnan().all()
    with pytest.raises(ValueError, match=r"no step .* has a log-prob: \w+ is .*DDIM\(eta=1\), FlowSDE\(\)"):
        rescore(denoiser, end)
    own = sample(denoiser, PROMPTS, solver=DDIM(1.0), **run)
    assert rescore(denoiser, own.state)[:, 0].isfinite().all()
