"""Particles on real classes at tiny random size, in float32 and bfloat16, behind guidance and a policy."""

import pytest
import tiny
import torch

from promptloop.controls import CFG, PromptLoop
from promptloop.controls.candidates import SVDD, Demon
from promptloop.controls.noise import BestOf
from promptloop.controls.particles import DAS, FK
from promptloop.denoisers import load
from promptloop.policies.fixed import Identity
from promptloop.sample import sample
from promptloop.solvers import DDIM, FlowSDE

PROMPTS = ["a red circle", "two blue stars"]
STEPS = 5
BACKBONES = {"sd": (tiny.sd, DDIM(1.0)), "sd3": (lambda: tiny.sd3(t5=0), FlowSDE())}


def brightness(images, queries):
    """A reward of images and of what the user asked: queries of "two" want it dark."""
    sign = torch.tensor([-1.0 if "two" in query else 1.0 for query in queries], device=images.device)
    return sign * images.mean((1, 2, 3))


brightness.differentiable = True
CONTROLS = {  # control -> evaluations, gradients, rewards asked, for one image in STEPS steps
    "fk": (FK(brightness, 3, 50.0, every=2), 3 * 5, 0, 3 * 3),
    "das": (DAS(brightness, 2, 50.0), 2 * (5 + 4), 2 * 4, 2 * 5),
    "svdd": (SVDD(brightness, 3, 50.0), 5 + 3 * 4, 0, 3 * 4),
    "demon": (Demon(brightness, 3, floor=0.0), 5 + 3 * 4, 0, 3 * 4),
    "best": (BestOf(brightness, 3, prune={2: 2}), 3 * 2 + 2 * 3, 0, 3 + 2),
}


@pytest.fixture(scope="module", params=BACKBONES)
def folder(request, tmp_path_factory):
    build, solver = BACKBONES[request.param]
    return tiny.saved(build(), tmp_path_factory.mktemp("backbones") / request.param), solver


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_control_runs_and_costs_what_it_says(folder, dtype) -> None:
    """Images are as many as queries, float32 latents, other than the plain ones, the same alone.

    Fails when a candidate is judged without guidance (evaluations would not double), a push is computed in
    the network's dtype, or a copy is embedded again.
    """
    denoiser = load(folder[0], dtype=dtype)
    options = {"steps": STEPS, "solver": folder[1]}
    common = [PromptLoop(Identity(), 2), CFG(3.0)]
    plain = sample(denoiser, PROMPTS, seeds=[7, 8], controls=common, **options)
    for name, (control, evaluations, backwards, rewards) in CONTROLS.items():
        run = sample(denoiser, PROMPTS, seeds=[7, 8], controls=[*common, control], **options)
        cost = run.ledger
        assert (cost.evaluations, cost.backwards, cost.rewards) == (
            2 * 2 * evaluations,
            2 * backwards,
            2 * rewards,
        ), name
        assert run.images.shape == plain.images.shape and run.state.queries == tuple(PROMPTS)
        assert run.state.x.dtype == torch.float32 and run.state.x.isfinite().all(), name
        assert not torch.equal(run.state.x, plain.state.x), name
        if dtype == torch.float32:
            alone = sample(denoiser, PROMPTS[1:], seeds=[8], controls=[*common, control], **options).state.x
            assert torch.allclose(alone[0], run.state.x[1], atol=1e-2), name


def test_searches_find_more_reward_than_one_noise(folder) -> None:
    """Fails when the query is not what the reward is asked for: "two" wants it dark."""
    denoiser = load(folder[0])
    options = {"steps": STEPS, "solver": folder[1], "seeds": [3, 4]}
    base = brightness(sample(denoiser, PROMPTS, **options).images, PROMPTS)
    for control in (BestOf(brightness, 4), SVDD(brightness, 4), FK(brightness, 4, 1e3, every=2, pick="best")):
        found = brightness(sample(denoiser, PROMPTS, controls=[control], **options).images, PROMPTS)
        assert (found >= base - 1e-6).all() and found.sum() > base.sum(), control
