"""Claim C7: what refinements cost on this machine, as ratios to the query alone.

    OMP_NUM_THREADS=1 python benchmarks/refinement_cost.py --queries 49 --rounds 5

Every way of writing is timed once in each round, one after the other, so that other load falls on all alike;
printed are medians of the seconds for an image, and of the ratios to the query alone in the same round.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from statistics import median

import torch

from promptloop.bench.arms import Way, measured
from promptloop.denoisers import load
from promptloop.recipes.claims import EIGHT, TWENTY
from promptloop.recipes.parts import load_policy
from promptloop.world.queries import queries

BACKBONES = {"mini-turbo": EIGHT, "mini-unet": TWENTY}
WAYS = [(1, "closed"), (3, "closed"), (5, "closed"), (1, "open"), (3, "open"), (5, "open")]


def seconds(denoiser: object, policy: object, way: Way, asked: list[str]) -> float:
    return measured(denoiser, policy, way, asked, {}, seed=0).cost["seconds"]  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--queries", type=int, default=49)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--policy", default="mini-policy")
    args = parser.parse_args()
    torch.set_num_threads(1)
    policy, asked = load_policy(args.policy), [q.text for q in queries(args.queries, 2, held_out=True)]
    for name, way in BACKBONES.items():
        denoiser = load(name, dtype=torch.bfloat16)
        seconds(denoiser, policy, way, asked)  # kernels are made in the first call
        rows: dict[str, list[float]] = {"alone": []}
        for _ in range(args.rounds):
            rows["alone"].append(seconds(denoiser, None, way, asked))
            for count, loop in WAYS:
                its = replace(way, refinements=count, loop=loop)  # type: ignore[arg-type]
                rows.setdefault(f"{count}, {loop}", []).append(seconds(denoiser, policy, its, asked))
        print(f"| {name} | seconds an image | ratio |\n|---|---|---|")
        for what, spent in rows.items():
            ratio = median(a / b for a, b in zip(spent, rows["alone"], strict=True))
            print(f"| {what} | {median(spent):.3f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
