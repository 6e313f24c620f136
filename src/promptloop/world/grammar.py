"""The first stage of ``mini-vlm``: words alone, many short turns, before it sees anything.

Which colour belongs to which shape is a matter of words, and turns without an image are cheap. Half the
batches are queries to be said in plain words, which has one right answer; half are the policy's own message,
answered with rewrites that keep what was asked.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from promptloop.world.chat_model import Spelling, told_loss
from promptloop.world.fit import fit
from promptloop.world.lessons import Lesson
from promptloop.world.tuning import plain_turn, writing_turn

PLAIN, WRITING = (20, 4), (10, 4)  # chats of a batch, turns of a chat
SHUFFLED = 0.3  # how often a rewrite has another order than the query


def chat(rng: random.Random, turns: int, *, plain: bool) -> Lesson:
    """A chat without an image."""
    if plain:
        return Lesson(tuple(plain_turn(None, rng) for _ in range(turns)), sees=False)
    progress = [0.0 if rng.random() < 0.5 else rng.random() for _ in range(turns)]
    return Lesson(tuple(writing_turn(None, done, rng, shuffled=SHUFFLED) for done in progress), sees=False)


def draw(seed: int, step: int | str) -> list[Lesson]:
    """The chats of one batch: plain words on even steps."""
    rng = random.Random(f"{seed}/grammar/{step}")
    plain = isinstance(step, int) and step % 2 == 0
    chats, turns = PLAIN if plain else WRITING
    return [chat(rng, turns, plain=plain) for _ in range(chats)]


def train(
    network: Any, words: Any, folder: Path, *, steps: int, seed: int, lr: float = 1.5e-3, device: str = "cpu"
) -> None:
    """Trains the language part of ``network`` in place, ``words`` its tokenizer; resumes from ``folder``."""
    torch.manual_seed(seed)
    network.to(device).train()
    spelling = Spelling(words)

    def loss_of(items: list[Lesson]) -> Tensor:
        return told_loss(network, spelling, items, None, device)

    def check(step: int) -> dict[str, float]:
        losses = [loss_of(draw(seed, f"check/{i}")).item() for i in range(4)]
        return {"held_out_loss": round(sum(losses) / len(losses), 4)}

    fit(
        network.model.language_model,
        lambda step: loss_of(draw(seed, step)),
        steps=steps,
        seed=seed,
        lr=lr,
        folder=folder,
        average=0.998,
        check=check,
        check_every=500,
    )
    network.eval()
