"""The filmstrip's layout, the marking of changes, and grades from the oracle."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promptloop.recipes import filmstrip
from promptloop.recipes.score import score, unscored
from promptloop.recipes.shot import Frame, Note, Picture, Score, Shot, digest
from promptloop.world.captions import phrase
from promptloop.world.queries import held_out, queries


def note(before: str, after: str) -> Note:
    return Note(0, before, after, after, None, 1, 0.0)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.text(st.characters(codec="ascii", exclude_categories=("Cc", "Zs")), min_size=1, max_size=60))
)
def test_wrapping_keeps_every_letter_within_the_width(words: list[str]) -> None:
    """Fails if a long word is not broken, or if the space between words is not counted."""
    lines = filmstrip.wrap([(word, False) for word in words], 200, 17)
    assert "".join(word for line in lines for word, _ in line) == "".join(words)
    for line in lines:
        spaces = filmstrip.width_of(" ", 17) * (len(line) - 1)
        assert sum(filmstrip.width_of(word, 17) for word, _ in line) + spaces <= 200 + 1e-3


def test_changes_mark_new_and_gone_words() -> None:
    found = note("two red circles, a star", "two blue circles and a star").changes()
    assert [word for kind, word in found if kind == "new"] == ["blue", "and"]
    assert [word for kind, word in found if kind == "gone"] == ["red"]
    assert all(kind == "same" for kind, _ in note("a star", "a star").changes())


@pytest.mark.parametrize(
    ("size", "shown"), [((64, 64), (256, 256)), ((16, 8), (256, 128)), ((512, 1024), (128, 256))]
)
def test_small_images_grow_by_whole_factors_and_large_ones_shrink(
    size: tuple[int, int], shown: tuple[int, int]
) -> None:
    width, height = size
    image = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    picture = filmstrip.upscale(image)
    assert picture.size == shown
    if width < 256:
        factor = shown[0] // width
        assert np.array_equal(np.asarray(picture)[::factor, ::factor], image)


@pytest.mark.parametrize("count", [1, 5, 9])
def test_a_strip_holds_every_frame(count: int) -> None:
    """Each tile has a colour of its own, which must be found in the strip."""
    colours = [(20 * k + 10, 200 - 15 * k, 77) for k in range(count + 1)]
    tiles = [np.full((64, 64, 3), colour, dtype=np.uint8) for colour in colours]
    frames = tuple(Frame(step, tile) for step, tile in enumerate(tiles[:-1]))
    notes = tuple(Note(step, "a", f"word{step} " * 30, "", None, 1, 0.0) for step in range(count))
    picture = Picture(tiles[-1], frames, notes, Score(0.4, False, (("a star: colour", 0.1),)))
    strip = np.asarray(filmstrip.filmstrip(Shot(0, "a query " * 40, 3, picture, Picture(tiles[0], frames))))
    flat = {tuple(colour) for colour in strip.reshape(-1, 3)[::7].tolist()}
    assert set(colours) <= flat


def test_digest_tells_shapes_apart() -> None:
    image = np.zeros((2, 4, 3), dtype=np.uint8)
    assert digest(image) != digest(image.reshape(4, 2, 3)) and digest(image) == digest(image.copy())


def test_only_queries_of_the_world_are_scored() -> None:
    assert unscored("a red circle", embedded=True) is None
    assert "embedded backbones only" in str(unscored("a red circle", embedded=False))
    assert "cat" in str(unscored("a photo of a cat", embedded=True))
    assert [query for query in held_out(60, 0) if unscored(query, embedded=True)] == []


def test_scores_are_those_of_the_oracle() -> None:
    """Fails if images and queries are paired in another order."""
    from promptloop.world.captions import describe
    from promptloop.world.render import render
    from promptloop.world.scene import random_scene

    rng = random.Random(0)
    scenes = [random_scene(rng, 2) for _ in range(6)]
    texts = [phrase(describe(scene, rng, dense=1.0)) for scene in scenes]
    images = np.asarray(render(scenes))
    images = images if images.dtype == np.uint8 else (255 * images).round().astype(np.uint8)
    images = images if images.shape[-1] == 3 else images.transpose(0, 2, 3, 1)
    right, wrong = score(list(images), texts), score(list(images[::-1]), texts)
    assert np.mean([grade.soft for grade in right]) > 0.95 > np.mean([grade.soft for grade in wrong]) + 0.2
    assert len({query.task for query in queries(7, 0, held_out=True)}) == 7
