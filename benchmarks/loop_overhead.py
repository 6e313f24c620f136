"""How much time our loop takes against the diffusers pipeline's own call, at equal steps, in one process.

    OMP_NUM_THREADS=1 python benchmarks/loop_overhead.py [--repeats 31] [--steps 10] [--only NAME]

Each family at two sizes: "tiny", where the network does so little that only the loop is left, and
"real", where a step takes tens of milliseconds, as the smallest useful backbones do. Both sides make
the same two images from the same seeds with classifier-free guidance, text encoding and decoding
included; milliseconds are per step.

Runs alternate between the two sides, and who goes first alternates too. The ratio is the median of
the ratios of neighbouring runs, with quartiles, in processor time (which other processes on the
machine disturb least) and by the clock. Wanted at "real" size: at most 1.05, goal 1.02. `--same`
times the pipeline against itself: the noise of the method.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import tiny
import tiny_more

from promptloop.controls.guidance import CFG
from promptloop.denoisers import from_pipeline
from promptloop.sample import sample

PROMPTS = ["a red circle left of a star", "two blue rings"]
SEEDS = [1, 2]
SCALE = 5.0
CASES: dict[str, Callable[[], Any]] = {
    "sd tiny": tiny.sd,
    "sd real": lambda: tiny.sd(width=48, sample=16),
    "sdxl tiny": tiny.sdxl,
    "sdxl real": lambda: tiny.sdxl(width=48, sample=16),
    "sd3 tiny": tiny.sd3,
    "sd3 real": lambda: tiny.sd3(layers=3, heads=12, sample=16),
    "flux tiny": tiny_more.flux,
    "flux real": lambda: tiny_more.flux(layers=2, heads=12),
    "pixart tiny": tiny_more.pixart,
    "pixart real": lambda: tiny_more.pixart(layers=4, heads=12, sample=16),
    "z-image tiny": tiny_more.z_image,
    "z-image real": lambda: tiny_more.z_image(layers=4, heads=12),
    "qwen tiny": tiny_more.qwen_image,
    "qwen real": lambda: tiny_more.qwen_image(layers=4, heads=12),
}


def theirs(pipe: Any, steps: int) -> torch.Tensor:
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    told = tiny_more.call_options(pipe, SCALE, None, len(PROMPTS))
    return pipe([*PROMPTS], num_inference_steps=steps, generator=generators, output_type="pt", **told).images


def ours(denoiser: Any, steps: int) -> torch.Tensor:
    images = sample(denoiser, PROMPTS, steps=steps, seeds=SEEDS, controls=[CFG(SCALE)]).images
    assert images is not None
    return images


def timed(run: Callable[[], Any]) -> tuple[float, float]:
    """Seconds on the clock and of the processor."""
    wall, processor = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - processor


def compare(first: Callable[[], Any], second: Callable[[], Any], repeats: int) -> torch.Tensor:
    """Seconds [repeats, 2 (first, second), 2 (clock, processor)], in ABBA order after a warm-up."""
    runs, rows = (first, second), []
    for run in runs:
        run()
    for k in range(repeats):
        row = {which: timed(runs[which]) for which in ((0, 1) if k % 2 else (1, 0))}
        rows.append([row[0], row[1]])
    return torch.tensor(rows)


def report(name: str, seconds: torch.Tensor, steps: int, difference: float) -> None:
    ratios = seconds[:, 1] / seconds[:, 0]
    low, middle, high = torch.quantile(ratios[:, 1], torch.tensor([0.25, 0.5, 0.75])).tolist()
    theirs_ms, ours_ms = (1000 * seconds[:, :, 1].median(dim=0).values / steps).tolist()
    print(f"{name:12} {theirs_ms:11.2f} {ours_ms:9.2f} {middle:10.3f} ({low:.3f}-{high:.3f})"
          f" {ratios[:, 0].median():9.3f} {difference:12.1e}", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=31)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--same", action="store_true", help="time the pipeline against itself")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print("case         pipeline ms  ours ms  ratio, processor time    ratio, clock   pixels apart")
    for name, build in CASES.items():
        if options.only not in name:
            continue
        with tempfile.TemporaryDirectory() as folder:
            pipe = type(build()).from_pretrained(tiny.saved(build(), folder))
        pipe.set_progress_bar_config(disable=True)
        first = partial(theirs, pipe, options.steps)
        size = tiny_more.PIXELS.get(name.split("-")[0].split()[0])
        second = partial(ours, from_pipeline(pipe, size=size), options.steps)
        difference = float((first() - second()).abs().max())
        seconds = compare(first, first if options.same else second, options.repeats)
        report(name, seconds, options.steps, difference)


if __name__ == "__main__":
    main()
