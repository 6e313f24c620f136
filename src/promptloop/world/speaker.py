"""``mini-vlm`` learns to speak of what it sees: lessons (lessons.py) about sharp images and about denoised
estimates at every noise level. It has not seen a reward.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from promptloop.world import drills, eyes, grammar
from promptloop.world.autoencoder import pixels
from promptloop.world.chat_model import Spelling, blank, told_loss
from promptloop.world.eyes import HELD_OUT, Pool
from promptloop.world.fit import fit
from promptloop.world.lessons import Lesson, lesson
from promptloop.world.scene import SIDE, Scene, random_scene
from promptloop.world.tries import Tries

BATCH = 24


def draw(pool: Pool, seed: int, step: int | str, *, held_out: bool = False) -> tuple[list[Lesson], Tensor]:
    """Lessons and the images [M, 3, 64, 64] in [-1, 1] of those that see, in order.

    Four batches are drawn together and parted by length, so that little is spent on padding.
    """
    images, when, scenes = pool
    held = len(scenes) - HELD_OUT
    rng = random.Random(f"{seed}/speaker/{step // 4 if isinstance(step, int) else step}")
    drawn: list[tuple[Lesson, Scene | int | None]] = []
    for _ in range(4 * BATCH):
        kind = rng.random()
        if kind < 0.2:
            drawn.append((lesson(None, rng.random(), rng), None))
        elif kind < 0.5:
            scene = random_scene(rng)
            drawn.append((lesson(scene, 1.0 if rng.random() < 0.3 else rng.random(), rng), scene))
        else:
            i = rng.randrange(held, len(scenes)) if held_out else rng.randrange(held)
            drawn.append((lesson(scenes[i], float(when[i]), rng), i))
    drawn.sort(key=lambda row: sum(len(text) for turn in row[0].turns for text in turn))
    order = rng.sample(range(4), 4)
    part = order[step % 4 if isinstance(step, int) else 0] * BATCH
    rows = drawn[part : part + BATCH]
    sharp = iter(pixels([s for _, s in rows if isinstance(s, Scene)] or [random_scene(rng)]))
    shown = [
        next(sharp) if isinstance(s, Scene) else images[s].float() / 127.5 - 1
        for _, s in rows
        if s is not None
    ]
    return [item for item, _ in rows], torch.stack(shown or [torch.zeros(3, SIDE, SIDE)])


def train(
    folder: Path,
    pool: Pool,
    tries: Tries,
    *,
    steps: Mapping[str, int],
    seed: int,
    lr: float = 1.5e-3,
    device: str = "cpu",
) -> None:
    """Trains the words, the eyes, the naming, then all of it on lessons about ``pool`` and sharp images, and
    the comparing, of ``tries`` too; ``steps`` by these names. Saves ``folder/model``.
    """
    torch.manual_seed(seed)
    network, processor = blank(seed)
    words = processor.tokenizer
    grammar.train(network, words, folder / "words", steps=steps["words"], seed=seed, device=device)
    eyes.train(network, words, folder / "eyes", pool, steps=steps["eyes"], seed=seed, device=device)

    def drill(name: str) -> None:
        drills.train(
            name, network, words, folder / name, pool, tries, steps=steps[name], seed=seed, device=device
        )

    drill("naming")
    network.train()
    spelling = Spelling(words)

    def loss_of(items: list[Lesson], shown: Tensor) -> Tensor:
        return told_loss(network, spelling, items, shown, device)

    def loss_at(step: int) -> Tensor:
        return loss_of(*draw(pool, seed, step))

    def check(step: int) -> dict[str, float]:
        network.eval()
        network.save_pretrained(folder / "model")
        processor.save_pretrained(folder / "model")
        losses = [loss_of(*draw(pool, seed, f"check/{i}", held_out=True)).item() for i in range(6)]
        network.train()
        return {"held_out_loss": round(sum(losses) / len(losses), 4)}

    fit(
        network,
        loss_at,
        steps=steps["lessons"],
        seed=seed,
        lr=lr,
        folder=folder,
        average=0.999,
        check=check,
        check_every=500,
    )
    drill("comparing")
    network.eval()
    network.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
