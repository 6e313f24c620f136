"""What mini-vlm is told about the estimates it is shown, and the chats that teach it words."""

import random

import torch

from promptloop.world import estimates, grammar
from promptloop.world.autoencoder import pixels
from promptloop.world.captions import parse
from promptloop.world.scene import random_scene


def test_a_sharp_estimate_is_told_by_what_stands_there() -> None:
    """Fails if the label is what the prompt wanted, or if rows and labels are shifted against each other."""
    rng = random.Random(5)
    scenes = [random_scene(rng) for _ in range(80)]
    images = ((pixels(scenes) + 1) * 127.5).round().byte()
    right = 0
    for scene, told in zip(scenes, estimates.told(images, seed=0), strict=True):
        stands = {(t.column, t.row, t.shape, t.colour) for t in scene.things}
        right += stands == {(t.column, t.row, t.shape, t.colour) for t in told.things}
    assert right >= 78


def test_where_nothing_stands_the_wanted_scene_is_told() -> None:
    grey = torch.full((estimates.BATCH, 3, 64, 64), 200, dtype=torch.uint8)
    assert estimates.told(grey, seed=3) == estimates.wanted(3, 0)


def test_grammar_chats_have_no_image_and_one_right_answer_on_even_steps() -> None:
    """Fails if plain turns are answered with a rewrite, or the same step gives other chats."""
    chats = grammar.draw(0, 4)
    assert chats == grammar.draw(0, 4) != grammar.draw(0, 6)
    assert not any(chat.sees for chat in chats + grammar.draw(0, 5))
    for chat in chats:
        for question, answer in chat.turns:
            said = question.removeprefix("In plain words: ")
            assert parse(said) == parse(answer)
