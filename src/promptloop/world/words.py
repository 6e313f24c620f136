"""The words of the embedded world: one common word for each meaning, and the synonyms that captions rarely use."""

from __future__ import annotations

from promptloop.world.scene import COLOURS, SHAPES

SYNONYMS: dict[str, tuple[str, ...]] = {
    "circle": ("disc", "ball"),
    "square": ("box", "block"),
    "triangle": ("wedge", "pyramid"),
    "star": ("asterisk", "starburst"),
    "red": ("crimson", "scarlet"),
    "green": ("emerald", "jade"),
    "blue": ("navy", "azure"),
    "yellow": ("golden", "lemon"),
    "purple": ("violet", "lilac"),
    "orange": ("amber", "tangerine"),
    "small": ("tiny", "little"),
    "large": ("big", "huge"),
    "striped": ("banded", "pinstriped"),
    "dotted": ("spotted", "speckled"),
    "outlined": ("bordered", "rimmed"),
    "checkered": ("chequered", "tiled"),
    "lined": ("ruled", "barred"),
    "plain": ("blank", "clean"),
    "above": ("over", "higher than"),
    "below": ("under", "beneath"),
    "left of": ("to the left of", "beside and left of"),
    "right of": ("to the right of", "beside and right of"),
}
MEANING = {word: meaning for meaning, words in SYNONYMS.items() for word in (meaning, *words)}
TEST_ONLY = {words[1] for words in SYNONYMS.values()}  # synonyms that only held-out queries use

NUMBERS = {1: "a", 2: "two", 3: "three", 4: "four"}
COUNTS = {"a": 1, "an": 1, "one": 1, "two": 2, "three": 3, "four": 4, "2": 2, "3": 3, "4": 4}
PLACES = {
    (0, 0): "top left",
    (1, 0): "top",
    (2, 0): "top right",
    (0, 1): "left",
    (1, 1): "centre",
    (2, 1): "right",
    (0, 2): "bottom left",
    (1, 2): "bottom",
    (2, 2): "bottom right",
}
RELATIONS = ("left of", "right of", "above", "below")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def plural(word: str) -> str:
    return {"box": "boxes"}.get(word, word + "s")


def singular(word: str) -> str:
    """``word`` without its plural ending, when that is a shape's word."""
    for candidate in (word, word[:-1], word[:-2]):
        if MEANING.get(candidate) in SHAPES:
            return candidate
    return word


def is_colour(word: str) -> bool:
    return MEANING.get(word) in COLOURS
