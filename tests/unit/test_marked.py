"""The syntax of marks: what is read, step by step, and what is refused with its reason."""

from __future__ import annotations

import re

import pytest

from promptloop.controls.marked import Piece, at_step, parsed


@pytest.mark.parametrize(
    ("prompt", "first", "last"),
    [
        ("a red dog", "a red dog", "a red dog"),
        ("a (red:1.3) dog", "a red dog", "a red dog"),
        ("a [dog:cat:0.5]", "a dog", "a cat"),
        ("a dog [with a hat:0.5]", "a dog", "a dog with a hat"),
        ("a dog[ with a hat::0.5] here", "a dog with a hat here", "a dog here"),
        ("[foggy:0-0.5:1.25] hills", "foggy hills", "hills"),
        ("a [((old:1.2) dog):cat:0.5]", "a old dog", "a cat"),
        (r"a dog \(brown\), \[old\]", "a dog (brown), [old]", "a dog (brown), [old]"),
        ("at 3:30, dog: a tale", "at 3:30, dog: a tale", "at 3:30, dog: a tale"),
        ("[dog:cat:0]", "cat", "cat"),
        ("[dog:cat:1]", "dog", "dog"),
    ],
)
def test_the_text_in_force_begins_and_ends(prompt: str, first: str, last: str) -> None:
    """0 is the first step, pure noise. Fails when ranges count from the finished image."""
    assert at_step(parsed(prompt), 0, 10)[0] == first
    assert at_step(parsed(prompt), 9, 10)[0] == last


def test_weights_are_of_characters_and_multiply() -> None:
    text, weights = at_step(parsed("a (red (big:2)) [dim] [dog:0-1:0.5]"), 0, 4)
    assert text == "a red big dim dog" and len(text) == len(weights)
    found = {word: weights[text.index(word) + len(word) - 1] for word in ("a", "red", "big", "dim", "dog")}
    assert found == pytest.approx({"a": 1.0, "red": 1.1, "big": 2.2, "dim": 1 / 1.1, "dog": 0.5})
    assert parsed("(a:1)") == (Piece("a", 1.0),)


@pytest.mark.parametrize("steps", [1, 3, 7, 20])
def test_each_step_has_the_one_or_the_other(steps: int) -> None:
    """Fails when the step at the boundary has both, or none."""
    pieces = parsed("[dog:cat:0.4]")
    said = [at_step(pieces, step, steps)[0] for step in range(steps)]
    assert said == sorted(said, reverse=True) and set(said) <= {"dog", "cat"} and said[0] == "dog"
    assert said.count("dog") == -(-round(0.4 * steps, 6) // 1)


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("a (red dog", "is not closed"),
        ("a red) dog", "closes nothing"),
        ("a (red] dog", "is not closed"),
        ("a (red:big) dog", "is no weight"),
        ("a (red:1:2) dog", "more than one colon"),
        ("[dog:cat:12]", "not a step"),
        ("[dog:0.6-0.2:1]", "is empty"),
        ("[a:b:c:0.5]", "too many colons"),
    ],
)
def test_marks_that_cannot_be_read_are_refused(prompt: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)) as error:
        parsed(prompt)
    assert repr(prompt) in str(error.value)


def test_a_prompt_without_marks_is_left_as_it_is() -> None:
    """Fails when its spaces are tidied: some tokenizers keep them, and the plain run would be another."""
    assert at_step(parsed("a  red\ncube "), 0, 4) == ("a  red\ncube ", (1.0,) * 12)
