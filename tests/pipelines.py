"""Every family at tiny size, as diffusers runs it and as our loop does: what parity tests compare.

    OMP_NUM_THREADS=1 python tests/pipelines.py [family ...]

prints the largest difference between the two in any pixel (images in [0, 1], float32, five steps, seeds 3 to
5, the pipeline's own scheduler): without guidance, with it, and with a negative prompt.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny
import tiny_more
import torch
from diffusers import DDIMScheduler, DiffusionPipeline

from promptloop.controls.guidance import CFG
from promptloop.denoisers import load
from promptloop.sample import sample
from promptloop.solvers import DDIM, Solver

TOLERANCE = 1e-4  # images in [0, 1], float32; found: 6e-6
STEPS = 5  # a divisor of 1,000: with trailing steps, DDIMScheduler misses its own next level otherwise
PROMPTS = ["a red circle", "two blue stars left of a ring", ""]
SEEDS = [3, 4, 5]
MODES = {"plain": (1.0, None), "cfg": (5.0, None), "negative": (5.0, "blurry")}

ZERO_SNR: dict[str, Any] = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
VP: dict[str, Any] = {"clip_sample": False, "set_alpha_to_one": False}
FLOW: dict[str, Any] = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}


def pixart_ddim() -> DiffusionPipeline:
    """PixArt-Sigma without the half of its channels that is a variance, and with a scheduler of ours."""
    pipe = tiny_more.pixart(learned=False)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, **VP)
    return pipe


FAMILIES: dict[str, Callable[[], DiffusionPipeline]] = {
    "sd1": tiny.sd,
    "sd2": lambda: tiny.sd("v_prediction"),
    "sd2-zero-snr": lambda: tiny.sd("v_prediction", **ZERO_SNR),
    "sdxl": tiny.sdxl,
    "sdxl-velocity": lambda: tiny.sdxl("v_prediction", zeros=False, statistics=True),
    "sd3": tiny.sd3,
    "sd3-without-t5": lambda: tiny.sd3(t5=0),
    "sd3-dynamic-shift": lambda: tiny.sd3(sample=16, use_dynamic_shifting=True, shift=1.0),
    "flux-dev": tiny_more.flux,
    "flux-schnell": lambda: tiny_more.flux(False),
    "pixart": tiny_more.pixart,
    "pixart-ddim": pixart_ddim,
    "z-image": lambda: tiny_more.z_image(False),
    "z-image-turbo": tiny_more.z_image,
    "qwen-image": tiny_more.qwen_image,
}
NEW = ("flux-dev", "flux-schnell", "pixart", "z-image-turbo", "qwen-image")
OWN = {"sd1": DDIM(), "sd2": DDIM(), "sd2-zero-snr": DDIM(), "pixart-ddim": DDIM()}  # the rest: Euler()
PARTS = {"sd3-without-t5": {"text_encoder_3": None, "tokenizer_3": None}}


def reference(folder: Path) -> Any:
    """The folder as diffusers loads it."""
    pipe = DiffusionPipeline.from_pretrained(folder, **PARTS.get(folder.name, {}))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def loaded(folder: Path, **options: Any) -> Any:
    """The folder as we load it, at the size that `theirs` asks for."""
    return load(folder, size=tiny_more.PIXELS.get(folder.name.split("-")[0]), **options)


def theirs(pipe: Any, mode: str, **options: Any) -> torch.Tensor:
    told = tiny_more.call_options(pipe, *MODES[mode], len(PROMPTS))
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    defaults = {"output_type": "pt", "generator": generators, "num_inference_steps": STEPS}
    return pipe([*PROMPTS], **defaults | told | options).images


def ours(denoiser: Any, mode: str, solver: Solver | None = None, steps: int = STEPS) -> torch.Tensor:
    scale, negative = MODES[mode]
    controls = [] if mode == "plain" else [CFG(scale, negative)]
    run = sample(denoiser, PROMPTS, steps=steps, seeds=SEEDS, solver=solver, controls=controls)
    assert run.images is not None
    return run.images


def assert_same(mine: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal to TOLERANCE, on pictures that have something to compare."""
    assert expected.std() > 0.05 and ((expected > 0) & (expected < 1)).float().mean() > 0.9
    assert (expected[0] - expected[1]).abs().max() > 0.05
    assert float((mine - expected).abs().max()) <= TOLERANCE


def main() -> None:
    for name, build in [(name, FAMILIES[name]) for name in sys.argv[1:] or FAMILIES]:
        with tempfile.TemporaryDirectory() as root:
            folder = tiny.saved(build(), Path(root) / name)
            pipe, denoiser = reference(folder), loaded(folder)
        apart = [float((ours(denoiser, mode) - theirs(pipe, mode)).abs().max()) for mode in MODES]
        said = [f"{mode} {value:.0e}" for mode, value in zip(MODES, apart, strict=True)]
        print(f"{name:18}", *said, flush=True)


if __name__ == "__main__":
    main()
