"""One kind of question about many images: to say what the eyes see, to compare it with what was asked, and to
write by what lacks.

Between eyes (eyes.py) and lessons, between lessons and tuning, and after tuning. Among other turns these
questions taught nothing in 1,000 steps (things named rightly: 1 in 10); by themselves they are learned in
some hundred (docs/log.md, seventh session).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from promptloop.policies.message import KEEP
from promptloop.world import tuning
from promptloop.world.autoencoder import pixels
from promptloop.world.captions import parse, phrase
from promptloop.world.chat_model import Spelling, loaded, told_loss
from promptloop.world.eyes import HELD_OUT, Pool
from promptloop.world.fit import fit
from promptloop.world.lessons import MISSING, THERE, Lesson, full, lack, missing, seeing_turn
from promptloop.world.rewrites import faithful, mended
from promptloop.world.scene import Scene, random_scene
from promptloop.world.scripted import readable
from promptloop.world.tries import Tries, Wish
from promptloop.world.tuning import message, one_of, plain_turn

Chat = Callable[[Scene, random.Random], Lesson]
TryChat = Callable[[Scene, Wish, float, random.Random], Lesson]


def naming(scene: Scene, rng: random.Random) -> Lesson:
    """What is there?"""
    return Lesson(((THERE, phrase(full(scene), terse=True)),), sees=True)


def comparing(scene: Scene, rng: random.Random) -> Lesson:
    """Where is it (now and then: what is there), what is missing, where is it, and a query in plain words.

    Without the last the words of the first stage would be lost.
    """
    first = "there" if rng.random() < 0.25 else "where"
    turns = [seeing_turn(scene, rng, kind) for kind in (first, "missing", "where")]
    return Lesson((*turns, plain_turn(scene, rng)), sees=True)


def judging(scene: Scene, wish: Wish, progress: float, rng: random.Random) -> Lesson:
    """The same about what was drawn for ``wish``: what it lacks is asked for first."""
    _, other, where, plain = comparing(scene, rng).turns
    return Lesson(((MISSING.format(query=wish.query), lack(scene, wish.ask)), other, where, plain), sees=True)


def mending(scene: Scene, wish: Wish, progress: float, rng: random.Random) -> Lesson:
    """The policy's own message about what was drawn for ``wish``, answered with what lacks first; now and
    then what is there before it, else what is missing of another query after it; a query in plain words.
    """
    said = mended(scene, wish.ask, rng, first=0.8, alike=True) if rng.random() < 0.85 else None
    if said is None and missing(scene, wish.ask) is None and rng.random() < 0.6:
        prompt = KEEP
    else:
        said = said or faithful(wish.ask, rng)
        prompt = phrase(said, terse=rng.random() < 0.5 or not readable(phrase(said)))
    asked = message(wish, progress), prompt
    turns = seeing_turn(scene, rng, "there"), asked
    if rng.random() < 0.75:
        turns = asked, seeing_turn(scene, rng, "missing")
    return Lesson((*turns, plain_turn(scene, rng)), sees=True)


@final
@dataclass(frozen=True)
class Drill:
    """What is said of a scene and of a try; how many of a batch's chats are about sharp images, estimates
    of the pool, tries.
    """

    chat: Chat
    try_chat: TryChat
    sharp: int
    pooled: int
    tried: int


DRILLS = {
    "naming": Drill(naming, judging, 32, 32, 0),
    "comparing": Drill(comparing, judging, 10, 10, 24),
    "mending": Drill(comparing, mending, 6, 6, 32),
}


def draw(
    drill: str, pool: Pool, tries: Tries, seed: int, step: int | str, *, held_out: bool = False
) -> tuple[list[Lesson], Tensor | None]:
    """Chats about sharp images, estimates of the pool and tries, and these [N, 3, 64, 64] in [-1, 1]; in
    "mending" every other batch is one of tuning's without images, or what belongs to what would be lost.
    """
    if drill == "mending" and isinstance(step, int) and step % 2 == 0:
        return tuning.draw(pool, tries, seed + 1, step)
    its = DRILLS[drill]
    images, _, scenes = pool
    rng, held = random.Random(f"{seed}/{drill}/{step}"), len(scenes) - HELD_OUT
    sharp = [random_scene(rng) for _ in range(its.sharp)]
    rows = [rng.randrange(held, len(scenes)) if held_out else rng.randrange(held) for _ in range(its.pooled)]
    chats = [its.chat(scene, rng) for scene in (*sharp, *(scenes[i] for i in rows))]
    drawn = [one_of(tries, rng, held_out=held_out) for _ in range(its.tried)]
    chats += [its.try_chat(there, tries.wishes[i], float(tries.when[i]), rng) for i, there in drawn]
    estimates = torch.cat([images[rows], tries.images[[i for i, _ in drawn]]]).float() / 127.5 - 1
    return chats, torch.cat([pixels(sharp), estimates])


@torch.no_grad()
def recall(network: Any, spelling: Spelling, images: Tensor, scenes: Sequence[Scene]) -> float:
    """The share of the things in ``images`` [N, 3, 64, 64] in [-1, 1] that are named in shape and colour."""
    ids, labels = spelling.spell(naming(scenes[0], random.Random(0)))
    asked = torch.tensor(ids[: next(k for k, label in enumerate(labels) if label != -100)])
    rows = asked.expand(len(images), -1).to(network.device)
    out = network.generate(
        input_ids=rows,
        attention_mask=torch.ones_like(rows),
        pixel_values=images.to(network.device),
        max_new_tokens=48,
        do_sample=False,
    )
    right = 0
    for answer, scene in zip(out[:, len(asked) :], scenes, strict=True):
        try:
            said = parse(spelling.words.decode(answer, skip_special_tokens=True)).groups
        except ValueError:
            continue
        names = Counter((group.shape, group.colour) for group in said)
        right += (names & Counter((thing.shape, thing.colour) for thing in scene.things)).total()
    return right / sum(len(scene.things) for scene in scenes)


def train(
    drill: str,
    network: Any,
    words: Any,
    folder: Path,
    pool: Pool,
    tries: Tries,
    *,
    steps: int,
    seed: int,
    lr: float = 1.5e-3,
    device: str = "cpu",
) -> None:
    """Trains ``network`` but for its eyes in place, ``words`` its tokenizer; resumes from ``folder``."""
    torch.manual_seed(seed)
    network.to(device).train()
    spelling = Spelling(words)
    network.model.vision_tower.requires_grad_(False)
    network.model.multi_modal_projector.requires_grad_(drill != "naming")  # whose words are learned first

    def loss_of(items: list[Lesson], shown: Tensor | None) -> Tensor:
        return told_loss(network, spelling, items, shown, device)

    def check(step: int) -> dict[str, float]:
        network.eval()
        losses = [
            loss_of(*draw(drill, pool, tries, seed, f"check/{i}", held_out=True)).item() for i in range(2)
        ]
        network.train()
        return {"held_out_loss": round(sum(losses) / len(losses), 4)}

    fit(
        network,
        lambda step: loss_of(*draw(drill, pool, tries, seed, step)),
        steps=steps,
        seed=seed,
        lr=lr,
        folder=folder,
        warmup=50,
        average=0.99,
        check=check,
        check_every=250,
    )
    network.model.multi_modal_projector.requires_grad_(True)


def finish(
    folder: Path, tuned: Path, pool: Pool, tries: Tries, *, steps: int, seed: int, device: str = "cpu"
) -> None:
    """The drill "mending" of the model in ``tuned``; saves ``folder/model``."""
    network, processor = loaded(tuned)
    train("mending", network, processor.tokenizer, folder, pool, tries, steps=steps, seed=seed, lr=1e-3,
          device=device)  # fmt: skip
    network.eval()
    network.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
