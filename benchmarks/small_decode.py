"""What is lost to the eye when the estimate is decoded from a latent of half the side?

    OMP_NUM_THREADS=1 python benchmarks/small_decode.py [--backbone mini-turbo] [--queries 98] [--at 2 4 8]

A policy that looks at 448 pixels of a 1024-pixel picture might be shown the decoded half-size latent for a
quarter of the work. Here the oracle grades three versions of the same estimates (the query alone as
prompt): decoded as usual; decoded as usual, then made half as large and enlarged again, what the size
alone loses; and decoded from the averaged latent, then enlarged. The last two have the same number of pixels,
so the difference between them is the decoder's. "agree" is how far the grades differ image by image.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor

from promptloop.bench.paired import difference
from promptloop.controls import CFG
from promptloop.denoisers import load
from promptloop.recipes.usual import usual
from promptloop.sample import State, sample
from promptloop.world.oracle import grade
from promptloop.world.queries import queries


def resized(images: Tensor, side: int) -> Tensor:
    return F.interpolate(images, (side, side), mode="bilinear", antialias=True, align_corners=False)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--backbone", default="mini-turbo")
    parser.add_argument("--queries", type=int, default=98)
    parser.add_argument("--at", type=int, nargs="*", default=[2, 4, 8])
    args = parser.parse_args()
    torch.set_num_threads(1)
    denoiser, its = load(args.backbone), usual(args.backbone)
    asked = queries(args.queries, 0, held_out=False)
    latents: dict[int, Tensor] = {}

    def keep(state: State) -> None:
        if state.step in args.at and state.transition is not None:
            latents[state.step] = state.transition.clean

    sample(denoiser, [query.text for query in asked], seeds=range(len(asked)), steps=its.steps,
           controls=[CFG(its.guidance)], on_step=keep)  # fmt: skip
    print("step  as usual  pixels halved  latent halved   latent - pixels (95 %)   agree: pixels, latent")
    for step, clean in latents.items():
        usually = denoiser.decode(clean)
        side = usually.shape[-1]
        halved = resized(resized(usually, side // 2), side)
        small = resized(denoiser.decode(F.avg_pool2d(clean, 2)), side)
        asks, versions = [query.ask for query in asked], (usually, halved, small)
        soft = [grade(images.clamp(0, 1), asks).soft[None] for images in versions]
        gap = difference(soft[2], soft[1])
        apart = [float((s - soft[0]).abs().mean()) for s in soft[1:]]
        print(f"{step:4} " + " ".join(f"{float(s.mean()):11.3f}" for s in soft)
              + f"   {gap}   {apart[0]:.3f}, {apart[1]:.3f}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
