"""What mini-vlm is asked about drawings for queries: question, picture and answer belong together."""

import random

import pytest
import torch
from torch import Tensor

from promptloop.policies.message import USER
from promptloop.world import drills, tuning, weights
from promptloop.world.eyes import HELD_OUT
from promptloop.world.lessons import MISSING, Lesson, lack
from promptloop.world.oracle import grade
from promptloop.world.scene import random_scene
from promptloop.world.tries import Tries, tries


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Tries:
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(weights("mini-turbo"), torch_dtype=torch.float32)
    return tries(tmp_path_factory.mktemp("tries"), pipe, count=1024, seed=0)


def test_tries_are_told_by_the_oracles_rules(drawn: Tries) -> None:
    """Fails if rows and wishes are shifted against each other: what nothing is missing of is graded right."""
    rows = [i for i, scene in enumerate(drawn.scenes) if scene is not None]
    graded = grade(drawn.images[rows].float() / 255, [drawn.wishes[i].ask for i in rows])
    scenes = [drawn.scenes[i] for i in rows]
    said = [
        s is not None and lack(s, drawn.wishes[i].ask) == "nothing" for s, i in zip(scenes, rows, strict=True)
    ]
    assert (torch.tensor(said) == graded.strict.bool()).float().mean() > 0.95
    assert 0.2 < sum(said) / len(said) < 0.8


def about(drawn: Tries, chats: list[Lesson], shown: Tensor) -> int:
    """How many of the chats begin with the query that their picture was drawn for."""
    images = {drawn.images[i].numpy().tobytes(): wish for i, wish in enumerate(drawn.wishes)}
    found = 0
    for chat, picture in zip(chats, shown, strict=True):
        wish = images.get(((picture + 1) * 127.5).round().byte().numpy().tobytes())
        first = chat.turns[0][0]
        asked = wish and (
            MISSING.format(query=wish.query),
            USER.split("{prompt}")[0].format(query=wish.query),
        )
        found += bool(asked) and first.startswith(asked)
    return found


def test_questions_are_about_what_was_drawn(drawn: Tries) -> None:
    """Fails if a picture is shown with another's query, or a step is drawn twice differently."""
    sharp = [random_scene(random.Random(i)) for i in range(HELD_OUT + 8)]
    pool = torch.zeros(len(sharp), 3, 64, 64, dtype=torch.uint8), torch.zeros(len(sharp)), sharp
    chats, shown = tuning.draw(pool, drawn, 0, 1)
    assert shown is not None and len(chats) == len(shown) == tuning.SEEING
    assert (
        about(drawn, chats, shown) > 0.3 * tuning.SEEING
    )  # half of them, but for those that ask elsewhere first
    assert tuning.draw(pool, drawn, 0, 1)[0] == chats != tuning.draw(pool, drawn, 0, 3)[0]
    chats, shown = drills.draw("comparing", pool, drawn, 0, 1)
    assert about(drawn, chats, shown) == drills.DRILLS["comparing"].tried
    held, _ = drills.draw("comparing", pool, drawn, 0, 1, held_out=True)
    assert held != chats


def test_words_and_mending_take_turns(drawn: Tries) -> None:
    """Fails if every batch of "mending" has images: what belongs to what is forgotten then (docs/log.md)."""
    sharp = [random_scene(random.Random(i)) for i in range(HELD_OUT + 8)]
    pool = torch.zeros(len(sharp), 3, 64, 64, dtype=torch.uint8), torch.zeros(len(sharp)), sharp
    chats, shown = drills.draw("mending", pool, drawn, 0, 2)
    assert shown is None and not any(chat.sees for chat in chats)
    chats, shown = drills.draw("mending", pool, drawn, 0, 3)
    assert shown is not None and len(shown) == len(chats) and all(chat.sees for chat in chats)
