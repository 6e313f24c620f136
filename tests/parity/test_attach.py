"""An attached pipeline makes the images and drafts that our own loop makes, from the same noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import tiny
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchHeunDiscreteScheduler,
    FluxPipeline,
    PixArtSigmaPipeline,
    PNDMScheduler,
    QwenImagePipeline,
    StableDiffusionImg2ImgPipeline,
    UniPCMultistepScheduler,
)
from diffusers.callbacks import SDCFGCutoffCallback
from test_pipelines import FAMILIES, FLOW, assert_same
from torch import Tensor

from promptloop import CFG, PromptLoop, attach, from_pipeline
from promptloop.denoisers import FAMILIES as KNOWN
from promptloop.policies import Draft, Identity, Policy, Request, Table
from promptloop.sample import sample

PROMPTS = ["a red circle", "two blue stars", ""]
SEEDS = [3, 4, 5]
STEPS = 5
MODES: dict[str, tuple[float, str | None]] = {"plain": (1.0, None), "cfg": (5.0, None), "negative": (5.0, "x")}
PLACES = ("upper left", "upper right", "lower left", "lower right")


@dataclass(frozen=True)
class Seeing(Policy):
    """Says where the estimate is brightest and a number drawn from its seed; remembers what it was asked."""

    asked: list[Request] = field(default_factory=list)
    image_size: int | None = 8

    def write(self, requests: Sequence[Request], seeds: Sequence[int]) -> list[Draft]:
        self.asked.extend(requests)
        return [Draft(r, f"{where(r.estimate)} {seed % 97}") for r, seed in zip(requests, seeds, strict=True)]

    def log_prob(self, drafts: Sequence[Draft]) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


@dataclass(frozen=True)
class Failing(Seeing):
    """Cannot answer when it sees something."""

    def write(self, requests: Sequence[Request], seeds: Sequence[int]) -> list[Draft]:
        if requests[0].estimate is not None:
            raise ValueError("no answer")
        return super().write(requests, seeds)


def where(estimate: Tensor | None) -> str:
    if estimate is None:
        return "nowhere"
    quarters = torch.nn.functional.adaptive_avg_pool2d(estimate.mean(0, keepdim=True), 2)
    return PLACES[int(quarters.flatten().argmax())]


def made(name: str) -> Any:
    pipe = FAMILIES[name]()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def texts(drafts: Any) -> list[list[str]]:
    return [[draft.text for draft in row] for row in drafts]


def both(pipe: Any, mode: str, how: str = "closed") -> None:
    """Images, drafts and what the policy saw are those of our loop, and the drafts change the images."""
    (scale, negative), said, seen = MODES[mode], Seeing(), Seeing()
    controls = [PromptLoop(said, 3, (0.0, 1.0), loop=how), CFG(scale, negative)]
    ours = sample(from_pipeline(pipe), PROMPTS, seeds=SEEDS, steps=STEPS, controls=controls)
    loop = attach(pipe, seen, refinements=3, loop=how)
    options = {"num_inference_steps": STEPS, "guidance_scale": scale, "output_type": "pt"}
    result = loop(PROMPTS, seeds=SEEDS, negative_prompt=negative, **options)
    assert texts(result.drafts) == texts(ours.state.memory["drafts"])
    assert [r.progress for r in seen.asked] == [r.progress for r in said.asked]
    for mine, theirs in zip(seen.asked, said.asked, strict=True):
        assert (mine.query, mine.prompt) == (theirs.query, theirs.prompt)
        assert mine.estimate is theirs.estimate or (mine.estimate - theirs.estimate).abs().max() < 1e-4
    assert_same(result.images, ours.images)
    plain = sample(from_pipeline(pipe), PROMPTS, seeds=SEEDS, steps=STEPS, controls=[CFG(scale, negative)])
    assert (plain.images - ours.images).abs().max() > 0.02
    once = sample(from_pipeline(pipe), texts([row[0] for row in result.drafts]) if False else
                  [row[0].text for row in result.drafts], seeds=SEEDS, steps=STEPS,
                  controls=[CFG(scale, negative)])  # fmt: skip
    assert (once.images - ours.images).abs().max() > 0.01


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["sd1", "sdxl", "sd3"])
def test_attached_equals_our_loop(name: str, mode: str) -> None:
    """Fails if the estimate is without guidance, a new prompt replaces the negative half, or a pooled embedding
    stays the old prompt's.
    """
    both(made(name), mode)


@pytest.mark.parametrize("name", ["sd2-zero-snr", "sdxl-velocity", "sd3-without-t5", "sd3-dynamic-shift"])
def test_every_parameterisation(name: str) -> None:
    """Fails if a velocity is read as noise, or the levels forget the shift."""
    both(made(name), "cfg")
