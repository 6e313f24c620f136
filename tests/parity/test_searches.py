"""Searches above the loop on real classes at tiny random size, in float32 and bfloat16."""

import pytest
import tiny
import torch

from promptloop.controls import CFG, PromptLoop
from promptloop.controls.paths import over_paths
from promptloop.controls.search import evolutionary
from promptloop.controls.trees import dts, dts_star
from promptloop.denoisers import load
from promptloop.policies.fixed import Identity
from promptloop.sample import sample
from promptloop.solvers import DDIM, FlowSDE

PROMPTS, SEEDS, STEPS = ["a red circle", "two blue stars"], [7, 8], 5
BACKBONES = {"sd": (tiny.sd, DDIM(1.0)), "sd3": (lambda: tiny.sd3(t5=0), FlowSDE())}
PLAIN = {  # the settings with which a search is the plain sampler
    dts: {"rollouts": 1},
    dts_star: {"rollouts": 1},
    over_paths: {"paths": 1, "copies": 0},
    evolutionary: {"population": 1, "generations": 0},
}
SMALL = {  # settings -> evaluations without guidance, rewards, for one image in 5 steps
    dts: ({"rollouts": 3, "strength": 50.0, "width": 1.0, "growth": 0.0}, 5 + 2 * 2, 3),
    dts_star: ({"rollouts": 4, "width": 1.0, "growth": 0.0, "together": 2}, 5 + 5 + 2 * 2, 4),
    over_paths: ({"paths": 2, "copies": 1, "start": 0.6, "back": 0.4, "ahead": 0.8}, 2 * (5 + 4), 4),
    evolutionary: ({"population": 2, "generations": 1, "elites": 1}, 3 * 5, 3),
}


def brightness(images, queries):
    """A reward of images and of what the user asked: queries of "two" want it dark."""
    sign = torch.tensor([-1.0 if "two" in query else 1.0 for query in queries], device=images.device)
    return sign * images.mean((1, 2, 3))


@pytest.fixture(scope="module", params=BACKBONES)
def folder(request, tmp_path_factory):
    build, solver = BACKBONES[request.param]
    return tiny.saved(build(), tmp_path_factory.mktemp("backbones") / request.param), solver


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_searches_are_the_plain_sampler_at_the_smallest_budget_and_cost_what_they_say(folder, dtype) -> None:
    """Fails when a search begins from noise in the network's dtype, or leaves out the controls."""
    denoiser = load(folder[0], dtype=dtype)
    options = {"steps": STEPS, "solver": folder[1], "controls": [PromptLoop(Identity(), 2), CFG(3.0)]}
    plain = sample(denoiser, PROMPTS, seeds=SEEDS, **options)
    base = brightness(plain.images, PROMPTS)
    for search, (settings, evaluations, rewards) in SMALL.items():
        name = search.__name__
        none = search(denoiser, PROMPTS, reward=brightness, seeds=SEEDS, **PLAIN[search], **options)
        assert torch.equal(none.state.x, plain.state.x) and torch.equal(none.images, plain.images), name
        run = search(denoiser, PROMPTS, reward=brightness, seeds=SEEDS, **settings, **options)
        assert (run.ledger.evaluations, run.ledger.rewards) == (2 * 2 * evaluations, 2 * rewards), name
        assert run.images.shape == plain.images.shape and run.state.queries == tuple(PROMPTS), name
        assert run.state.x.dtype == torch.float32 and run.state.x.isfinite().all(), name
        found = run.state.memory["reward"]
        assert torch.allclose(found, brightness(run.images, PROMPTS), atol=1e-2), name
        if search in (dts_star, evolutionary):
            assert (found >= base - 1e-6).all(), name
        if dtype == torch.float32 and folder[1] == DDIM(1.0):
            one = {"seeds": SEEDS[1:], **settings, **options}
            alone = search(denoiser, PROMPTS[1:], reward=brightness, **one).state.x
            assert torch.allclose(alone[0], run.state.x[1], atol=1e-2), name
