"""A scheduler of another kind than the network is refused, not walked."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import tiny

from promptloop.denoisers import from_pipeline
from promptloop.sample import sample
from promptloop.solvers import Scheduler

FLOW = diffusers.FlowMatchEulerDiscreteScheduler()


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler", "UniPCMultistepScheduler"])
def test_a_flow_wants_flow_sigmas(name: str) -> None:
    """Fails if SD3 is run along noise levels that it never saw."""
    pipe: Any = tiny.sd3()
    denoiser = from_pipeline(pipe)
    pipe.scheduler = getattr(diffusers, name)()
    with pytest.raises(ValueError, match=f"{name} does not suit a StableDiffusion3Pipeline.*flow_sigmas"):
        from_pipeline(pipe)
    pipe.scheduler = FLOW
    with pytest.raises(ValueError, match=f"{name} does not suit a SD3"):
        sample(denoiser, ["a"], seeds=[0], steps=2, solver=Scheduler(getattr(diffusers, name)()))
    pipe.scheduler = diffusers.UniPCMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction"
    )
    sample(from_pipeline(pipe), ["a"], seeds=[0], steps=2)


def test_stable_diffusion_wants_none() -> None:
    """Fails if the error comes from inside the scheduler, or says nothing of the kind."""
    pipe: Any = tiny.sd()
    denoiser = from_pipeline(pipe)
    with pytest.raises(ValueError, match="FlowMatchEulerDiscreteScheduler walks a flow, which a SD"):
        sample(denoiser, ["a"], seeds=[0], steps=2, solver=Scheduler(FLOW))
    pipe.scheduler = FLOW
    with pytest.raises(ValueError, match="walks a flow"):
        from_pipeline(pipe)
    pipe.scheduler = diffusers.RePaintScheduler()
    with pytest.raises(ValueError, match="RePaintScheduler fills the holes"):
        sample(from_pipeline(pipe), ["a"], seeds=[0], steps=2)
