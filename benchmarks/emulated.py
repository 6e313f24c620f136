"""What would looking be worth with a perfect few-step model? The backbone's own trajectory stands in for it.

    OMP_NUM_THREADS=1 python benchmarks/emulated.py --backbone mini-unet --levels 6 --inner 8

At each of `--levels` noise levels the rest of the trajectory is sampled (`--inner` DDIM steps, CFG 5), shown
to the policy as the estimate, and all noise of the next level is drawn anew (solvers.LCM): what a perfect
consistency model does in one call. 98 training-side queries, noise seeds 5,000 and up; soft and strict.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from torch import Tensor

from promptloop.controls import PromptLoop
from promptloop.denoisers import load
from promptloop.policies.fixed import Identity
from promptloop.policies.shown import Shuffled
from promptloop.sample import sample
from promptloop.schedules import Level
from promptloop.solvers import LCM
from promptloop.world.oracle import grade
from promptloop.world.queries import queries
from promptloop.world.scripted import Ahead, Look

GUIDANCE = 5.0
LOOK = Look(fine=0.0, until=1.0)


class Perfect:
    """`denoiser`, whose clean estimate is where its guided trajectory ends."""

    def __init__(self, denoiser: Any, inner: int) -> None:
        self.denoiser, self.inner = denoiser, inner
        self.grid = denoiser.levels(1000)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.denoiser, name)

    def clean(self, x: Tensor, level: Level, cond: Any) -> Tensor:
        without = self.denoiser.without()[[0] * len(x)]
        rest = [known for known in self.grid if known.share <= level.share + 1e-9]
        places = sorted({round(k * (len(rest) - 1) / self.inner) for k in range(1, self.inner + 1)})
        for after in (rest[k] for k in places):
            plain, asked = self.denoiser.clean(torch.cat([x, x]), level, without.join([cond])).chunk(2)
            clean = plain + GUIDANCE * (asked - plain)
            noise = (x - level.alpha * clean) / level.sigma
            x, level = after.alpha * clean + after.sigma * noise, after
        return x


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--backbone", default="mini-unet")
    parser.add_argument("--levels", type=int, default=6)
    parser.add_argument("--inner", type=int, default=8)
    parser.add_argument("--queries", type=int, default=98)
    args = parser.parse_args()
    torch.set_num_threads(1)
    denoiser = Perfect(load(args.backbone), args.inner)
    asked = queries(args.queries, 0, held_out=False)
    arms = {
        "the query": (Identity(), 0),
        "ahead: colours": (Ahead(colours=True), 1),
        "ahead: colours, places": (Ahead(colours=True, places=True), 1),
        "looks": (LOOK, args.levels),
        "another's estimate": (Shuffled(LOOK), args.levels),
    }
    for name, (policy, refinements) in arms.items():
        began = time.perf_counter()
        images = sample(
            denoiser,
            [query.text for query in asked],
            seeds=range(5000, 5000 + len(asked)),
            levels=denoiser.levels(args.levels),
            solver=LCM(),
            controls=[PromptLoop(policy, refinements)] if refinements else [],
            max_batch=49,
        ).images
        assert images is not None
        grades = grade(images, [query.ask for query in asked])
        soft, strict = grades.soft.mean(), grades.strict.float().mean()
        print(f"{name:24s} {soft:.3f} {strict:.3f}  {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
