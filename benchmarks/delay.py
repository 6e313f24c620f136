"""What does it cost in quality that a prompt comes into force some steps later?

    OMP_NUM_THREADS=1 python benchmarks/delay.py [--backbone mini-turbo] [--queries 98] [--delays 0 1 2]

The oracle's soft and strict scores of training-side queries (noise seeds 0 and up) with the embedded policy's
likeliest drafts, and the paired difference to delay 0. The first prompt is delayed too, so with delay 1 the
first step is the query's.
"""

from __future__ import annotations

import argparse

import torch

from promptloop.bench.arms import Way, measured
from promptloop.bench.paired import difference
from promptloop.denoisers import load
from promptloop.recipes import parts
from promptloop.recipes.rewards import reward_named
from promptloop.recipes.usual import usual
from promptloop.world.queries import queries


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--backbone", default="mini-turbo")
    parser.add_argument("--policy", default="mini-policy")
    parser.add_argument("--queries", type=int, default=98)
    parser.add_argument("--refinements", type=int, nargs="*", default=[1, 5])
    parser.add_argument("--delays", type=int, nargs="*", default=[0, 1, 2])
    args = parser.parse_args()
    torch.set_num_threads(1)
    denoiser, its, device = load(args.backbone), usual(args.backbone), torch.device("cpu")
    policy = parts.policy(args.policy, device, torch.float32, 0.0).value
    asked = [query.text for query in queries(args.queries, 0, held_out=False)]
    rewards = {name: reward_named(name) for name in ("oracle", "oracle-strict")}
    print(f"{args.backbone}, {its.steps} steps: soft, strict; difference to the first (95 %)")
    for refinements in args.refinements:
        first = None
        for delay in args.delays:
            way = Way(refinements, its.window, steps=its.steps, guidance=its.guidance, delay=delay)
            scores = measured(denoiser, policy, way, asked, rewards, seed=0).scores
            first = scores if first is None else first
            gaps = [difference(scores[name][None], first[name][None]) for name in rewards]
            means = ", ".join(f"{float(scores[name].mean()):.3f}" for name in rewards)
            print(f"{refinements} refinements, delay {delay}: {means}; {gaps[0]}, {gaps[1]}", flush=True)


if __name__ == "__main__":
    main()
