"""The policy's eyes: its vision tower, taught to name what stands in each cell before it learns to speak.

A pretrained MLLM brings a pretrained vision tower. Without one, lessons alone (speaker.py) taught the
language and almost no sight; some minutes of this supervision give it (docs/log.md). The heads are thrown
away.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from promptloop.world.autoencoder import pixels
from promptloop.world.fit import fit
from promptloop.world.scene import COLOURS, GROUNDS, PATTERNS, SHAPES, SIZES, Scene, random_scene

HALF = 24  # sharp images in a batch, and as many estimates
CLASSES = {"present": 2, "shape": len(SHAPES), "colour": len(COLOURS), "size": len(SIZES),
           "pattern": len(PATTERNS), "outlined": 2}  # fmt: skip
Pool = tuple[Tensor, Tensor, list[Scene]]  # estimates uint8 [N, 3, 64, 64], their progress [N], their scenes


@final
class Eyes(nn.Module):
    """A CLIP vision tower, and heads that read nine cells and the ground from its patches."""

    def __init__(self, vision: Any) -> None:
        super().__init__()
        width = vision.config.hidden_size
        self.vision = vision
        self.cells = nn.Parameter(0.02 * torch.randn(9, width))
        self.look = nn.MultiheadAttention(width, 6, batch_first=True)
        self.name = nn.Linear(width, sum(CLASSES.values()))
        self.ground = nn.Linear(width, len(GROUNDS))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, 9, classes] of the cells and [B, 3] of the ground, for images in [-1, 1]."""
        patches = self.vision(pixel_values=images).last_hidden_state[:, 1:]
        seen = self.look(self.cells.expand(len(images), -1, -1), patches, patches)[0]
        return self.name(seen), self.ground(patches.mean(1))


def truth(scene: Scene) -> Tensor:
    """What stands in each cell: [9, 6] class indices in the order of CLASSES, -1 where the cell is empty."""
    rows = torch.full((9, len(CLASSES)), -1)
    rows[:, 0] = 0
    for thing in scene.things:
        rows[thing.row * 3 + thing.column] = torch.tensor([
            1, SHAPES.index(thing.shape), tuple(COLOURS).index(thing.colour), tuple(SIZES).index(thing.size),
            PATTERNS.index(thing.pattern), int(thing.outlined)])  # fmt: skip
    return rows


def loss_and_accuracy(eyes: Eyes, images: Tensor, scenes: list[Scene]) -> tuple[Tensor, dict[str, float]]:
    """Summed cross-entropies, and the share of right answers for each attribute."""
    names, ground = eyes(images)
    rows = torch.stack([truth(s) for s in scenes]).to(images.device)
    total, right = torch.zeros((), device=images.device), {}
    parts = names.split(list(CLASSES.values()), -1)
    for k, (attribute, logits) in enumerate(zip(CLASSES, parts, strict=True)):
        total = total + F.cross_entropy(logits.flatten(0, 1), rows[..., k].flatten(), ignore_index=-1)
        there = rows[..., k] >= 0
        right[attribute] = (logits.argmax(-1) == rows[..., k])[there].float().mean().item()
    wanted = torch.tensor([GROUNDS.index(s.ground) for s in scenes], device=images.device)
    right["ground"] = (ground.argmax(-1) == wanted).float().mean().item()
    return total + F.cross_entropy(ground, wanted), right


def train(vision: Any, folder: Path, pool: Pool, *, steps: int, seed: int, device: str = "cpu") -> None:
    """Trains ``vision`` in place, half on sharp images, half on estimates; resumes from ``folder``."""
    torch.manual_seed(seed)
    eyes = Eyes(vision).to(device).train()
    images, when, scenes = pool
    held = len(scenes) - 256

    def loss_at(step: int) -> Tensor:
        rng = random.Random(f"{seed}/eyes/{step}")
        sharp = [random_scene(rng) for _ in range(HALF)]
        rows = [rng.randrange(held) for _ in range(HALF)]
        shown = torch.cat([pixels(sharp), images[rows].float() / 127.5 - 1]).to(device)
        return loss_and_accuracy(eyes, shown, sharp + [scenes[i] for i in rows])[0]

    def check(step: int) -> dict[str, float]:
        rng = random.Random(f"{seed}/eyes/check")
        sharp = [random_scene(rng) for _ in range(128)]
        found = loss_and_accuracy(eyes, pixels(sharp).to(device), sharp)[1]
        line = {f"sharp {k}": v for k, v in found.items()}
        late = [i for i in range(held, len(scenes)) if when[i] >= 0.25]
        shown = (images[late].float() / 127.5 - 1).to(device)
        found = loss_and_accuracy(eyes, shown, [scenes[i] for i in late])[1]
        return {k: round(v, 3) for k, v in (line | {f"estimate {k}": v for k, v in found.items()}).items()}

    fit(
        eyes,
        loss_at,
        steps=steps,
        seed=seed,
        lr=1e-3,
        folder=folder,
        average=0.998,
        check=check,
        check_every=500,
    )
    eyes.eval()
