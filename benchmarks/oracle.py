"""How well the oracle reads: clean renders, one corrupted attribute, blur, noise, half-formed things, speed.

    python benchmarks/oracle.py --count 1000

Half-formed: the scene's image blended with another scene's, as an estimate early in a trajectory looks.
"""

from __future__ import annotations

import argparse
import random
import time
from dataclasses import replace
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter

from promptloop.world.captions import Ask, describe
from promptloop.world.oracle import grade
from promptloop.world.render import render
from promptloop.world.scene import COLOURS, PATTERNS, SHAPES, SIZES, Scene, random_scene

VALUES = {"shape": SHAPES, "colour": tuple(COLOURS), "size": tuple(SIZES), "pattern": PATTERNS}


def full_asks(scenes: list[Scene], seed: int) -> list[Ask]:
    rng = random.Random(f"{seed}/asks")
    return [describe(s, rng, dense=1.0) for s in scenes]


def corrupted(scene: Scene, ask: Ask, rng: random.Random) -> tuple[str, Scene] | None:
    """(attribute, the scene with that attribute of one thing changed) such that ``ask`` no longer holds.

    None if no attribute that ``ask`` names can be changed so.
    """
    group = ask.groups[0]
    named = [k for k in VALUES if getattr(group, k) is not None]
    if not named or group.count > 1:
        return None
    attribute = rng.choice(named)
    asked = {k: getattr(group, k) for k in VALUES if getattr(group, k) is not None}
    things = []
    for thing in scene.things:
        if all(getattr(thing, k) == v for k, v in asked.items()):  # every thing that would satisfy the group
            other: Any = rng.choice([v for v in VALUES[attribute] if v != getattr(thing, attribute)])
            thing = replace(thing, **{attribute: other})
        things.append(thing)
    return attribute, replace(scene, things=tuple(things))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    args = parser.parse_args()
    rng = random.Random("oracle")
    scenes = [random_scene(rng) for _ in range(args.count)]
    asks, images = full_asks(scenes, 0), render(scenes)
    began = time.time()
    grades = grade(images, asks)
    print(
        f"clean: soft {grades.soft.mean():.4f} strict {grades.strict.mean():.4f}, "
        f"{time.time() - began:.2f} s for {args.count}"
    )
    changed = [
        (i, c) for i, c in enumerate(corrupted(s, a, rng) for s, a in zip(scenes, asks, strict=True)) if c
    ]
    caught = 1 - grade(render([c[1] for _, c in changed]), [asks[i] for i, _ in changed]).strict.numpy()
    for attribute in VALUES:
        rows = [k for k, (_, c) in enumerate(changed) if c[0] == attribute]
        print(f"corrupted {attribute}: caught {caught[rows].mean():.4f} of {len(rows)}")
    print(f"corrupted, all: caught {caught.mean():.4f} of {len(changed)}")
    soft = images.astype(np.float32) / 255
    for sigma in (0.5, 0.75, 1.0, 1.5, 2.0):
        blurred = gaussian_filter(soft, (0, sigma, sigma, 0))
        print(f"blur {sigma} px: soft {score(blurred, asks):.3f}")
    noise = np.random.default_rng(0).normal(size=soft.shape).astype(np.float32)
    for level in (0.02, 0.05, 0.1, 0.2):
        print(f"noise {level}: soft {score(soft + level * noise, asks):.3f}")
    for part in (0.9, 0.7, 0.5, 0.3):
        print(f"formed to {part}: soft {score(part * soft + (1 - part) * soft[::-1], asks):.3f}")


def score(images: np.ndarray, asks: list[Ask]) -> float:
    return grade((images.clip(0, 1) * 255).astype(np.uint8), asks).soft.mean().item()


if __name__ == "__main__":
    main()
