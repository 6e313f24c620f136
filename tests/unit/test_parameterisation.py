"""From the clean estimate to what a scheduler's step is given, and back."""

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler

from promptloop.history import estimate, parameterisation
from promptloop.schedules import from_scheduler

VP = {"beta_schedule": "scaled_linear"}


@pytest.mark.parametrize(
    ("scheduler", "kind"),
    [
        (DPMSolverMultistepScheduler(**VP), "epsilon"),
        (EulerDiscreteScheduler(**VP, prediction_type="v_prediction"), "v_prediction"),
        (DPMSolverMultistepScheduler(**VP, prediction_type="sample"), "sample"),
        (FlowMatchEulerDiscreteScheduler(shift=3.0), "flow_prediction"),
    ],
)
def test_the_clean_estimate_is_read_back(scheduler: object, kind: str) -> None:
    """x and the output are made from a known clean and noise. Fails if v is read without the level's norm on
    levels that are not variance preserving (Euler's).
    """
    assert parameterisation(scheduler) == kind
    clean, noise = torch.randn(2, 2, 4, 3, 3, generator=torch.Generator().manual_seed(0)).double()
    level = from_scheduler(scheduler, 5)[2]
    x, norm = level.alpha * clean + level.sigma * noise, (level.alpha**2 + level.sigma**2) ** 0.5
    outputs = {
        "epsilon": noise,
        "v_prediction": (level.alpha * noise - level.sigma * clean) / norm,
        "sample": clean,
        "flow_prediction": noise - clean,
    }
    assert (estimate(scheduler, x, level, outputs[kind]) - clean).abs().max() < 1e-4


def test_what_cannot_be_read_is_an_error() -> None:
    unknown = EulerDiscreteScheduler(**VP, prediction_type="other")
    with pytest.raises(ValueError, match="prediction_type 'other' of EulerDiscreteScheduler is not known"):
        parameterisation(unknown)
    noise = FlowMatchEulerDiscreteScheduler()
    level, x = from_scheduler(noise, 5)[0], torch.ones(1, 2)
    assert level.alpha == 0
    with pytest.raises(ValueError, match="pure noise"):
        estimate(EulerDiscreteScheduler(**VP), x, level, x)
