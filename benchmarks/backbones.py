"""How well the embedded backbones draw what they are asked: training-style captions, and user queries.

    python benchmarks/backbones.py --backbone mini-unet --count 200

Prints soft and strict oracle scores (base, no policy) and the time of 16 images.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path
from typing import Any

import torch

from promptloop.controls import CFG
from promptloop.denoisers import load
from promptloop.recipes.usual import usual
from promptloop.sample import sample
from promptloop.world import weights
from promptloop.world.captions import Ask, Group, describe, phrase
from promptloop.world.oracle import Grades, grade
from promptloop.world.queries import TASKS, queries
from promptloop.world.scene import random_scene


def plain_pairs(count: int, seed: int) -> list[Ask]:
    """Dense captions of two-object scenes without fine attributes, as training captions name them."""
    rng = random.Random(f"{seed}/pairs")
    asks: list[Ask] = []
    while len(asks) < count:
        ask = describe(random_scene(rng, 2), rng, dense=1.0)
        if sum(g.count for g in ask.groups) == 2 and all(g.shape and g.colour for g in ask.groups):
            groups = tuple(Group(g.shape, g.count, g.colour, g.size, place=g.place) for g in ask.groups)
            asks.append(Ask(groups, ask.relation))
    return asks


def means(grades: Grades) -> str:
    return f"soft {grades.soft.mean():.3f} strict {grades.strict.mean():.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="mini-unet")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--steps", type=int, help="default: the backbone's usual number")
    parser.add_argument("--guidance", type=float, nargs="*", help="default: the backbone's usual scale")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    its = usual(args.backbone)
    steps, scales = args.steps or its.steps, args.guidance or [its.guidance]
    denoiser = load(Path(args.backbone) if Path(args.backbone).is_dir() else weights(args.backbone))
    rng = random.Random("phrasing")
    asks = plain_pairs(args.count, 0)
    texts = [phrase(a, terse=rng.random() < 0.35) for a in asks]
    asked = queries(args.count // len(TASKS) * len(TASKS), 1, held_out=True)
    for guidance in scales:
        kwargs: dict[str, Any] = {"steps": steps, "controls": [CFG(guidance)], "max_batch": 50}
        drawn = sample(denoiser, texts, seeds=range(len(texts)), **kwargs).images
        assert drawn is not None
        grades = grade(drawn, asks)
        print(f"CFG {guidance}: two plain objects, caption style: {means(grades)}")
        twins = torch.tensor([any(group.count > 1 for group in ask.groups) for ask in asks])
        for rows, what in ((twins, "twins"), (~twins, "two kinds")):
            strict = grades.strict[rows].float().mean()
            print(
                f"    {what:20s} soft {grades.soft[rows].mean():.3f} strict {strict:.3f} ({int(rows.sum())})"
            )
        images = sample(denoiser, [q.text for q in asked], seeds=range(len(asked)), **kwargs).images
        assert images is not None
        grades = grade(images, [q.ask for q in asked])
        print(f"CFG {guidance}: held-out queries: {means(grades)}")
        for task in TASKS:
            rows = torch.tensor([i for i, q in enumerate(asked) if q.task == task])
            print(
                f"    {task:20s} soft {grades.soft[rows].mean():.3f} strict {grades.strict[rows].mean():.3f}"
            )
    began = time.time()
    sample(denoiser, texts[:16], seeds=range(16), steps=steps, controls=[CFG(scales[0])])
    seconds = time.time() - began
    print(f"16 images, {steps} steps, CFG {scales[0]}, {args.threads} threads: {seconds:.1f} s")


if __name__ == "__main__":
    main()
