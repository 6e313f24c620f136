"""The words of the embedded world: a common word for each meaning, and synonyms that captions rarely use."""

from __future__ import annotations

from difflib import get_close_matches

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
COUNTS = {"a": 1, "an": 1, "one": 1, "two": 2, "three": 3, "four": 4}
COUNTS |= {"1": 1, "2": 2, "3": 3, "4": 4}
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


def plural(word: str) -> str:
    return {"box": "boxes"}.get(word, word + "s")


PLURALS = {plural(word): word for word, meaning in MEANING.items() if meaning in SHAPES}
NOUNS = ("shape", "shapes", "thing", "things", "object", "objects")  # of a thing whose shape is left open
FILLERS = (  # words that captions and queries may hold, and that ask for nothing
    *("a", "an", "the", "at", "on", "of", "with", "and", "in", "to", "is", "are", "there", "that", "which"),
    *("please", "make", "draw", "paint", "show", "give", "create", "generate", "me", "i", "we", "you", "can"),
    *("want", "would", "like", "see", "image", "images", "picture", "photo", "painting", "drawing", "some"),
    *("side", "corner"),
)
KNOWN = frozenset((*MEANING, *PLURALS, *COUNTS, *PLACES.values(), *NOUNS, "background", *FILLERS))


def singular(word: str) -> str:
    """``word`` without its plural ending, when it is a shape's word."""
    return PLURALS.get(word, word)


def is_colour(word: str) -> bool:
    return MEANING.get(word) in COLOURS


def nearest(word: str) -> str:
    """The known word (of three letters or more) that is spelled most like ``word``."""
    return get_close_matches(word, sorted(w for w in KNOWN if len(w) > 2), n=1, cutoff=0.0)[0]
