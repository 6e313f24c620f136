"""The last stage of ``mini-vlm``: instruction tuning on the policy's own message.

Lessons (lessons.py) teach the world's language and seeing; after them two rewrites in five still mix up what
belongs to what (docs/log.md). Here half the chats are without an image, several short turns in each, which
is cheap: queries in plain words, which have one right answer, and the policy's own message, answered with
rewrites that keep what was asked: definite or not, with places or not, in any order; many of those beside an
image say first what the image lacks. None is preferred by a reward.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from promptloop.policies.contract import Request
from promptloop.policies.message import KEEP, USER, percent
from promptloop.policies.processor import load_processor
from promptloop.world.autoencoder import pixels
from promptloop.world.captions import Ask, Group, phrase
from promptloop.world.chat_model import Spelling, told_loss
from promptloop.world.eyes import HELD_OUT, Pool
from promptloop.world.fit import fit
from promptloop.world.lessons import (
    MEANS,
    Lesson,
    any_query,
    fits,
    missing,
    rewrite,
    seeing_turn,
    user_says,
    words,
)
from promptloop.world.scene import Scene, random_scene
from promptloop.world.scripted import bare, coloured, laid_out, readable
from promptloop.world.words import PLACES

BLIND, SEEING = 24, 32  # chats in a batch without images, and with
TURNS = 5  # of a chat without an image
SHUFFLED = 0.05  # how often an answer has another order than the query (docs/log.md, sixth session)


def mended(scene: Scene, ask: Ask, rng: random.Random) -> Ask | None:
    """``ask`` with what ``scene`` lacks perhaps sent to the place of a spare thing, seldom said first.

    What is there already may be named with the colour it has. None where nothing lacks, or where a relation
    fixes the places.
    """
    spare, said, lacking = list(scene.things), list[Group](), list[int]()
    for k, group in enumerate(ask.groups):
        there = [t for t in spare if fits(t, group)][: group.count]
        if len(there) < group.count:
            lacking.append(k)
            said.append(group)
            continue
        spare = [t for t in spare if t not in there]
        named = group.colour is None and group.count == 1 and rng.random() < 0.6
        said.append(replace(group, colour=there[0].colour) if named else group)
    if not lacking or ask.relation:
        return None
    if rng.random() < 0.6:
        said = list(coloured(Ask(tuple(said)), rng).groups)
    rng.shuffle(spare)
    if rng.random() < 0.6:
        for k, thing in zip(lacking, spare, strict=False):
            if said[k].count == 1:
                said[k] = replace(said[k], place=(thing.column, thing.row))
    if rng.random() < SHUFFLED:
        said = [said[k] for k in lacking] + [g for k, g in enumerate(said) if k not in lacking]
    return Ask(tuple(said), None, ask.ground)


def faithful(ask: Ask, rng: random.Random, *, shuffled: float = SHUFFLED) -> Ask:
    """``ask`` in one of many ways that keep it: coloured, laid out, reordered, seldom without details."""
    if rng.random() < 0.4:
        ask = coloured(ask, rng)
    layout = rng.random()
    if layout < 0.3 and not (ask.relation and rng.random() < 0.5):
        ask = laid_out(ask, rng)
    elif layout < 0.5:  # one thing sent somewhere
        groups = list(ask.groups)
        k = rng.randrange(len(groups))
        if groups[k].count == 1:
            groups[k] = replace(groups[k], place=rng.choice(tuple(PLACES)))
        ask = Ask(tuple(groups), ask.relation, ask.ground)
    if ask.relation is None and rng.random() < shuffled:
        ask = Ask(tuple(rng.sample(ask.groups, len(ask.groups))), None, ask.ground)
    return bare(ask) if rng.random() < 0.1 else ask


def answer(scene: Scene | None, ask: Ask, rng: random.Random, *, shuffled: float = SHUFFLED) -> str:
    """A prompt for ``ask`` where the image shows ``scene``."""
    kind = rng.random()
    if kind < 0.1 or (scene is not None and missing(scene, ask) is None and rng.random() < 0.3):
        return KEEP
    if kind < 0.18:  # the wide repertoire of the lessons: parts, single things
        return rewrite(ask, rng)
    better = mended(scene, ask, rng) if scene is not None and rng.random() < 0.6 else None
    said = faithful(ask, rng, shuffled=shuffled) if better is None else better
    say, terse = words(rng, 0.02), rng.random() < 0.5 or not readable(phrase(said))
    return phrase(said, say, terse=terse)


def writing_turn(
    scene: Scene | None, progress: float, rng: random.Random, *, shuffled: float = SHUFFLED
) -> tuple[str, str]:
    """The policy's own message about ``scene`` and an answer, ``shuffled`` so often."""
    ask = any_query(scene, rng)
    query = user_says(ask, rng)
    prompt = query if progress == 0 or rng.random() < 0.4 else answer(None, ask, rng, shuffled=shuffled)
    prompt = query if prompt == KEEP else prompt
    asked = Request(query, prompt, None, progress)
    return USER.format(query=query, prompt=prompt, percent=percent(asked)), answer(
        scene, ask, rng, shuffled=shuffled
    )


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


def draw(pool: Pool, seed: int, step: int, *, held_out: bool = False) -> tuple[list[Lesson], Tensor | None]:
    """Chats without an image (even steps), or about the images [SEEING, 3, 64, 64] in [-1, 1]."""
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
        else:
            i = rng.randrange(held, len(scenes)) if held_out else rng.randrange(held)
            items.append(instruction(scenes[i], float(when[i]), rng))
            shown.append(images[i].float() / 127.5 - 1)
    return items, torch.stack(shown)


def train(
    folder: Path,
    taught: Path,
    pool: Pool,
    *,
    steps: int,
    seed: int,
    lr: float = 1e-3,
    device: str = "cpu",
) -> None:
    """Goes on from the model of the lessons in ``taught``, its eyes as they are; saves ``folder/model``."""
    from transformers import AutoModelForImageTextToText

    torch.manual_seed(seed)
    network: Any = AutoModelForImageTextToText.from_pretrained(taught, dtype=torch.float32)
    processor = load_processor(str(taught))
    for where in ("is_local", "local_files_only"):  # how it was loaded, which is not to be saved
        processor.tokenizer.init_kwargs.pop(where, None)
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
        losses = [loss_of(*draw(pool, seed, i, held_out=True)).item() for i in range(6)]
        network.train()
        return {"held_out_loss": round(sum(losses) / len(losses), 4)}

    fit(
        network,
        lambda step: loss_of(*draw(pool, seed, step)),
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
