"""More guides on real classes, tiny and random: written negatives, streams, a learned h, in float32 and bfloat16."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch

from promptloop.controls import CFG, DoobMatching, NegativePrompt, UniCoDe
from promptloop.controls.matching import matched
from promptloop.denoisers import from_pipeline
from promptloop.policies.fixed import Identity, Table
from promptloop.sample import sample
from promptloop.solvers import DDIM, FlowSDE

PROMPTS, SEEDS = ["a red circle", "two blue stars"], [3, 4]
FAMILIES: dict[str, Callable[[], Any]] = {"sd": tiny.sd, "sdxl": tiny.sdxl, "sd3": lambda: tiny.sd3(t5=40)}
LOADED = [(name, torch.float32) for name in FAMILIES] + [(name, torch.bfloat16) for name in ("sd", "sd3")]


@pytest.fixture(scope="module", params=LOADED, ids=str)
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


def bright(images: torch.Tensor, queries: Any) -> torch.Tensor:
    return images.mean((1, 2, 3))


bright.differentiable = True  # type: ignore[attr-defined]


def test_streams_are_pushed_and_chosen_from(denoiser: Any) -> None:
    """One image of each query, brighter than without, the same alone. Fails when the push goes down, or the
    estimate is scored without guidance (evaluations would not double).
    """
    options: dict[str, Any] = {"solver": FlowSDE() if denoiser.flow else DDIM(1.0), "steps": 3}
    plain, control = ours(denoiser, CFG(3.0), **options), UniCoDe(bright, 2, block=2, scale=0.1)
    run = sample(denoiser, PROMPTS, seeds=SEEDS, controls=[CFG(3.0), control], **options)
    assert (
        run.images is not None and run.state.x.dtype == torch.float32 and run.state.queries == tuple(PROMPTS)
    )
    assert bool((bright(run.images, PROMPTS) > bright(plain, PROMPTS)).all())
    assert run.ledger.evaluations == 2 * 2 * 2 * (3 + 2 + 1) and run.ledger.backwards == 0
    if denoiser.dtype == torch.float32:
        alone = sample(denoiser, PROMPTS[1:], seeds=SEEDS[1:], controls=[CFG(3.0), control], **options).images
        assert alone is not None
        assert torch.allclose(alone[0], run.images[1], atol=1e-3)


def test_a_log_h_is_fitted_to_two_prompts_and_guides(denoiser: Any) -> None:
    """Latents whatever the dtype, prompts whatever their embedding; scale 0 is bitwise plain. Fails when the
    network computes in the denoiser's bfloat16, or reads what CFG's doubled batch is told.
    """
    h = matched(denoiser, bright, PROMPTS * 4, seeds=range(8), steps=2, controls=[CFG(3.0)], strength=20.0,
                rounds=5, batch=8, width=8)  # fmt: skip
    assert h.settings["said"] > 0 and next(h.parameters()).dtype == torch.float32
    plain = ours(denoiser, CFG(3.0))
    assert torch.equal(ours(denoiser, CFG(3.0), DoobMatching(h, 0.0)), plain)
    after = ours(denoiser, CFG(3.0), DoobMatching(h, 50.0, limit=0.5))
    before = ours(denoiser, DoobMatching(h, 50.0, limit=0.5), CFG(3.0))
    assert not torch.equal(after, plain) and not torch.equal(before, plain)
