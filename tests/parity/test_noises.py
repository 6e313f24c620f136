"""Drivers over the starting noise on real classes, tiny and random, in float32 and bfloat16."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_loras
import torch
from parity.test_guides import middle

from promptloop.controls.guidance import CFG
from promptloop.controls.noise_law import find
from promptloop.controls.optimised import _Turns, carinox, climb, reno
from promptloop.controls.tuned import RLG
from promptloop.denoisers import from_pipeline, load
from promptloop.rewards.composite import Weighted
from promptloop.sample import advance, sample

PROMPTS, SEEDS = ["a red circle", "two blue stars"], [3, 4]
FAMILIES: dict[str, Callable[[], Any]] = {
    "sd": tiny.sd,
    "sd3": lambda: tiny.sd3(t5=0),
    "heun": lambda: scheduled(tiny.sd(), "HeunDiscreteScheduler"),
}


def scheduled(pipe: Any, name: str) -> Any:
    import diffusers

    pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config)
    return pipe


def dark(images: torch.Tensor, queries: Any) -> torch.Tensor:
    return -images.mean((1, 2, 3))


dark.differentiable = True  # type: ignore[attr-defined]
BOTH = Weighted({"middle": (1.0, middle), "dark": (0.2, dark)})


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, torch.float32) for name in FAMILIES), ("sd", torch.bfloat16), ("sd3", torch.bfloat16)],
)
def test_the_noise_climbs_through_a_real_pipeline(name: str, dtype: torch.dtype) -> None:
    """In float32 the slope along the gradient is that of plain runs; a step made again gives the same.

    Fails when the decoder or a step of a wrapped scheduler is left out of the graph.
    """
    denoiser = from_pipeline(FAMILIES[name]().to(dtype))
    options: dict[str, Any] = {"steps": 2, "controls": [CFG(3.0)]}
    plain = sample(denoiser, PROMPTS, seeds=SEEDS, **options)
    none = reno(denoiser, PROMPTS, reward=middle, seeds=SEEDS, iterations=0, **options)
    assert torch.equal(none.images, plain.images)
    noise = denoiser.noise(SEEDS)
    values, slopes = climb(denoiser, PROMPTS, [middle, dark], SEEDS, noise, False, **options)
    again = climb(denoiser, PROMPTS, [middle, dark], SEEDS, noise, True, **options)
    assert slopes.dtype == torch.float32 and torch.allclose(again[0], values, atol=1e-5)
    assert torch.allclose(again[1], slopes, rtol=1e-3, atol=1e-3 * float(slopes.abs().max()))
    if dtype == torch.float32:
        length = slopes[0].flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        ends = [
            middle(
                sample(
                    denoiser, PROMPTS, seeds=SEEDS, noise=noise + h * slopes[0] / length, **options
                ).images,
                PROMPTS,
            )
            for h in (-0.02, 0.02)
        ]
        assert torch.allclose((ends[1] - ends[0]) / 0.04, length.flatten(), rtol=0.05)
    settings = {"seeds": SEEDS, "iterations": 2, **options}
    made = reno(denoiser, PROMPTS, reward=middle, limit=1.0, rate=2.0, **settings)
    assert bool((made.state.memory["reward"] > middle(plain.images, PROMPTS)).all())
    assert not made.state.x.requires_grad and made.images.dtype == torch.float32
    both = carinox(denoiser, PROMPTS, reward=BOTH, starts=2, kept=1, **settings)
    assert bool((both.state.memory["reward"] >= BOTH(plain.images, PROMPTS) - 1e-3).all())
    law = find(denoiser, PROMPTS, reward=middle, pairs=1, **settings)
    assert bool(law.images.isfinite().all()) and law.state.memory["mean"].shape == noise.shape
    assert all(p.grad is None for module in denoiser.modules for p in module.parameters())


def test_a_step_made_again_switches_its_loras_again(tmp_path: Path) -> None:
    """Through RLG on one network: the gradient is that of a graph that was kept.

    Fails when the network alone, and not the whole step, is made again.
    """
    pipe = tiny.sd()
    tiny.saved(pipe, tmp_path / "base")
    tiny_loras.write(pipe, tmp_path / "one", "peft", seed=1)
    denoiser = load(tmp_path / "base", lora=str(tmp_path / "one"))
    options: dict[str, Any] = {"steps": 3, "controls": [CFG(3.0), RLG("one", 1.6)]}
    found = [
        climb(denoiser, PROMPTS, [middle], SEEDS, denoiser.noise(SEEDS), again, **options)[1]
        for again in (False, True)
    ]
    assert float((found[0] - found[1]).abs().max()) < 1e-4 * float(found[0].abs().max())


def test_checkpointed_steps_bound_the_memory_of_a_gradient() -> None:
    """What a run keeps for its gradient: made again step by step, a further step keeps its latents, no more.

    Fails when `_Turns` runs the turn itself: a step then keeps the activations of the network, here a hundred
    times as much.
    """
    denoiser = from_pipeline(tiny.sd())
    noise = denoiser.noise(SEEDS)
    latents = noise.nbytes

    def kept(steps: int, checkpointed: bool) -> int:
        sizes: list[int] = []

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            sizes.append(tensor.nbytes)
            return tensor

        settings = {"seeds": SEEDS, "steps": steps, "decode": False, "gradients": True}
        turns = _Turns(advance, checkpointed)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            sample(denoiser, PROMPTS, noise=noise.clone().requires_grad_(), turn=turns, **settings)
        return sum(sizes)

    again, whole = kept(8, True) - kept(4, True), kept(8, False) - kept(4, False)
    assert again <= 4 * 4 * latents < whole / 20
