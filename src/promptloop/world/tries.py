"""What mini-turbo draws for users' queries, on its way: what mini-vlm is to judge by what was asked.

The estimates of estimates.py belong to captions, and the questions about them to anything; here image and
question belong together, so that what lacks is what a denoiser gets wrong. Told by the oracle's rules.
"""

from __future__ import annotations

import hashlib
import math
import random
from pathlib import Path
from typing import Any, NamedTuple, final

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from promptloop.policies.message import KEEP
from promptloop.world.captions import Ask
from promptloop.world.distil import LEVELS
from promptloop.world.estimates import BATCH, drawing, read_by, scene_of, seen
from promptloop.world.lessons import user_says
from promptloop.world.queries import TASKS, random_query
from promptloop.world.reading import read
from promptloop.world.rewrites import answer
from promptloop.world.scene import Scene

HELD_OUT = 512  # tries at the end, for checks: one batch of trajectories


@final
class Wish(NamedTuple):
    """What was asked, in the user's words, and the prompt that was drawn by."""

    ask: Ask
    query: str
    prompt: str


@final
class Tries(NamedTuple):
    """Estimates uint8 [N, 3, 64, 64], their progress [N], what stands there (None: nothing readable)."""

    images: Tensor
    when: Tensor
    scenes: list[Scene | None]
    wishes: list[Wish]


def wishes(seed: int, batch: int) -> list[Wish]:
    """What the trajectories of one batch are drawn for."""
    rng, out = random.Random(f"{seed}/tries/{batch}"), []
    for _ in range(BATCH):
        ask = random_query(rng.choice(TASKS), rng, held_out=False).ask
        query = user_says(ask, rng)
        prompt = query if rng.random() < 0.3 else answer(None, ask, rng)
        out.append(Wish(ask, query, query if prompt == KEEP else prompt))
    return out


@torch.no_grad()
def tries(out: Path, turbo: Any, *, count: int, seed: int) -> Tries:
    """At least ``count`` tries, whole batches of trajectories; the images are cached in ``out``."""
    batches = max(2, math.ceil(count / (LEVELS * BATCH)))
    asked = [wishes(seed, batch) for batch in range(batches)]
    said = hashlib.sha256(repr(asked).encode()).hexdigest()[:12]  # other wishes, other pictures
    file = out / f"tries-{seed}-{batches}-{said}.safetensors"
    if not file.exists():
        rows = []
        for batch, wanted in enumerate(asked):
            noise = torch.Generator().manual_seed(
                random.Random(f"{seed}/tries/noise/{batch}").getrandbits(60)
            )
            text = read_by(turbo, [wish.prompt for wish in wanted])
            rows += [seen(turbo, clean) for clean in drawing(turbo, text, noise)]
        save_file({"images": torch.cat(rows)}, f"{file}.part")
        Path(f"{file}.part").replace(file)
    images = load_file(file)["images"]
    scenes = []
    for part in images.split(BATCH):
        reading = read(part.float() / 255)
        scenes += [scene_of(reading, i) for i in range(len(part))]
    when = torch.arange(1, LEVELS + 1).repeat_interleave(BATCH).repeat(batches) / LEVELS
    return Tries(images, when, scenes, [wish for wanted in asked for wish in wanted * LEVELS])
