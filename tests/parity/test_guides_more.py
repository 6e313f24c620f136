"""More guides on real classes, tiny and random: written negatives, in float32 and bfloat16."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch

from promptloop.controls import CFG, NegativePrompt
from promptloop.denoisers import from_pipeline
from promptloop.policies.fixed import Identity, Table
from promptloop.sample import sample

PROMPTS, SEEDS = ["a red circle", "two blue stars"], [3, 4]
FAMILIES: dict[str, Callable[[], Any]] = {"sd": tiny.sd, "sdxl": tiny.sdxl, "sd3": lambda: tiny.sd3(t5=40)}
DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(scope="module", params=[(n, d) for n in FAMILIES for d in DTYPES], ids=str)
def denoiser(request: Any) -> Any:
    name, dtype = request.param
    made = from_pipeline(FAMILIES[name]().to(dtype))
    for part in made.modules:
        part.requires_grad_(False)
    return made


def ours(denoiser: Any, *controls: Any, prompts: list[str] = PROMPTS, **options: Any) -> torch.Tensor:
    images = sample(denoiser, prompts, seeds=SEEDS, controls=controls, **{"steps": 3} | options).images
    assert images is not None and images.dtype == torch.float32 and bool(images.isfinite().all())
    return images


def test_a_written_negative_is_that_negative(denoiser: Any) -> None:
    """Sample 1's is kept, so it is that of no prompt (zeros for SDXL, not the empty text). Fails when a kept
    one is embedded as "".
    """
    plain, far = ours(denoiser, CFG(4.0)), ours(denoiser, CFG(4.0, "a ring"))
    written = NegativePrompt(Table({PROMPTS[0]: "a ring"}), 2)
    made = ours(denoiser, written, CFG(4.0))
    assert torch.equal(made, torch.stack([far[0], plain[1]]))
    assert float((far - plain).abs().max()) > 1e-3
    assert torch.equal(ours(denoiser, CFG(4.0), NegativePrompt(Identity(), 3)), plain)
