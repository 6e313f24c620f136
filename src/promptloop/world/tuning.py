"""The last stage of ``mini-vlm``: instruction tuning on the policy's own message.

Lessons (lessons.py) teach the world's language and seeing; after them two rewrites in five still mix up what
belongs to what (docs/log.md). Here half the chats are without an image, several short turns in each, which
is cheap: queries in plain words, which have one right answer, and the policy's own message, answered with
rewrites that keep what was asked (rewrites.py). The images are mostly what mini-turbo drew for a query
(tries.py), and then the message, or the question what is missing, is about that query.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
from torch import Tensor

from promptloop.policies.contract import Request
from promptloop.policies.message import KEEP, USER, percent
from promptloop.world.autoencoder import pixels
from promptloop.world.captions import phrase
from promptloop.world.chat_model import Spelling, loaded, told_loss
from promptloop.world.eyes import HELD_OUT, Pool
from promptloop.world.fit import fit
from promptloop.world.lessons import MEANS, MISSING, Lesson, any_query, lack, seeing_turn, user_says
from promptloop.world.rewrites import SHUFFLED, answer
from promptloop.world.scene import Scene, random_scene
from promptloop.world.tries import HELD_OUT as TRIES_HELD_OUT
from promptloop.world.tries import Tries, Wish

BLIND, SEEING = 24, 32  # chats in a batch without images, and with
TURNS = 5  # of a chat without an image


def writing_turn(
    scene: Scene | None, progress: float, rng: random.Random, *, shuffled: float = SHUFFLED
) -> tuple[str, str]:
    """The policy's own message about ``scene`` and an answer, ``shuffled`` so often."""
    ask = any_query(scene, rng)
    query = user_says(ask, rng)
    prompt = query if progress == 0 or rng.random() < 0.4 else answer(None, ask, rng, shuffled=shuffled)
    wish = Wish(ask, query, query if prompt == KEEP else prompt)
    return message(wish, progress), answer(scene, ask, rng, shuffled=shuffled)


def message(wish: Wish, progress: float) -> str:
    """The policy's own message about ``wish``."""
    asked = Request(wish.query, wish.prompt, None, progress)
    return USER.format(query=wish.query, prompt=wish.prompt, percent=percent(asked))


def plain_turn(scene: Scene | None, rng: random.Random) -> tuple[str, str]:
    """A query in the captions' words: there is one right answer, which teaches what belongs to what."""
    ask = any_query(scene, rng)
    return MEANS.format(query=user_says(ask, rng)), phrase(ask)


def instruction(scene: Scene | None, progress: float, rng: random.Random) -> Lesson:
    """A chat that asks for prompts and for plain words; one about an image also what is there or missing."""
    if scene is not None:
        seen = writing_turn(scene, progress, rng), seeing_turn(scene, rng), plain_turn(scene, rng)
        return Lesson(seen, sees=True)
    turns = []
    for _ in range(TURNS):
        progress = 0.0 if rng.random() < 0.5 else rng.random()
        turns.append(plain_turn(None, rng) if rng.random() < 0.5 else writing_turn(None, progress, rng))
    return Lesson(tuple(turns), sees=False)


def judging(scene: Scene, wish: Wish, progress: float, rng: random.Random) -> Lesson:
    """A chat about what was drawn for ``wish``: a new prompt for it, or what it lacks, and the other question
    about something else, so that neither answer gives away the other.
    """
    if rng.random() < 0.6:
        first = message(wish, progress), answer(scene, wish.ask, rng)
        second = seeing_turn(scene, rng)
    else:
        first = MISSING.format(query=wish.query), lack(scene, wish.ask)
        second = writing_turn(scene, progress, rng)
    return Lesson((first, second, writing_turn(scene, progress, rng), plain_turn(scene, rng)), sees=True)


def draw(
    pool: Pool, tries: Tries, seed: int, step: int, *, held_out: bool = False
) -> tuple[list[Lesson], Tensor | None]:
    """Chats without an image (even steps), or about the images [SEEING, 3, 64, 64] in [-1, 1]: one in four
    sharp, one in four of the ``pool``, the others ``tries``.
    """
    images, when, scenes = pool
    held = len(scenes) - HELD_OUT
    rng = random.Random(f"{seed}/tuning/{held_out}/{step}")
    if step % 2 == 0:
        return [instruction(None, 0.0, rng) for _ in range(BLIND)], None
    items, shown = [], []
    for k in range(SEEING):
        if k % 4 == 0:
            scene = random_scene(rng)
            items.append(instruction(scene, 1.0 if rng.random() < 0.3 else rng.random(), rng))
            shown.append(pixels([scene])[0])
        elif k % 4 == 1:
            i = rng.randrange(held, len(scenes)) if held_out else rng.randrange(held)
            items.append(instruction(scenes[i], float(when[i]), rng))
            shown.append(images[i].float() / 127.5 - 1)
        else:
            i, there = one_of(tries, rng, held_out=held_out)
            items.append(judging(there, tries.wishes[i], float(tries.when[i]), rng))
            shown.append(tries.images[i].float() / 127.5 - 1)
    return items, torch.stack(shown)


def one_of(tries: Tries, rng: random.Random, *, held_out: bool) -> tuple[int, Scene]:
    """A try by its number, and what stands there; those in which nothing can be read are passed over."""
    count = len(tries.scenes)
    rows = range(count - TRIES_HELD_OUT, count) if held_out else range(count - TRIES_HELD_OUT)
    while True:
        i = rng.choice(rows)
        scene = tries.scenes[i]
        if scene is not None:
            return i, scene


def train(
    folder: Path,
    taught: Path,
    pool: Pool,
    tries: Tries,
    *,
    steps: int,
    seed: int,
    lr: float = 1e-3,
    device: str = "cpu",
) -> None:
    """Goes on from the model of the lessons in ``taught``, its eyes as they are; saves ``folder/model``."""
    torch.manual_seed(seed)
    network, processor = loaded(taught)
    network.to(device).train()
    network.model.vision_tower.requires_grad_(False)  # mini-judge (judge.py) sees with them too
    spelling = Spelling(processor.tokenizer)

    def loss_of(items: list[Lesson], shown: Tensor | None) -> Tensor:
        return told_loss(network, spelling, items, shown, device)

    def save() -> None:
        network.eval()
        network.save_pretrained(folder / "model")
        processor.save_pretrained(folder / "model")

    def check(step: int) -> dict[str, float]:
        save()
        losses = [loss_of(*draw(pool, tries, seed, i, held_out=True)).item() for i in range(6)]
        network.train()
        return {"held_out_loss": round(sum(losses) / len(losses), 4)}

    fit(
        network,
        lambda step: loss_of(*draw(pool, tries, seed, step)),
        steps=steps,
        seed=seed,
        lr=lr,
        folder=folder,
        warmup=100,
        average=0.998,
        check=check,
        check_every=250,
    )
    save()
