"""The reward for rendered text: the score by hand; the real engine, where installed, on real letters."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from promptloop.recipes.rewards import reward_named
from promptloop.rewards.contract import scored
from promptloop.rewards.ocr import OCR, alike, distance, wanted

installed = importlib.util.find_spec("rapidocr") is not None


def sign(text: str) -> Tensor:
    """A white sign [1, 3, 64, 256] with a text."""
    picture = Image.new("RGB", (256, 64), "white")
    ImageDraw.Draw(picture).text((12, 12), text, fill="black", font=ImageFont.load_default(32))
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255


@pytest.mark.parametrize(
    ("target", "seen", "score"),
    [
        ("NASA 2049", "nasa2049xx", 1.0),
        ("NASA 2049", "nas", 1 - 5 / 8),
        ("NASA 2049", "", 0.0),
        ("ab", "xyxyxyxy", 0.0),
        ("kitten", "sitting", 1 - 3 / 6),
        ("OPEN", "0PEN", 0.75),
    ],
)
def test_the_score_by_hand(target: str, seen: str, score: float) -> None:
    """Flow-GRPO's rule. Fails if case or blanks count, or the score falls below 0."""
    assert alike(target, seen) == pytest.approx(score)


def test_edit_distances() -> None:
    """Fails if putting in, taking out and changing do not all cost 1."""
    known = {
        ("", "abc"): 3,
        ("abc", ""): 3,
        ("flaw", "lawn"): 2,
        ("intention", "execution"): 5,
        ("a", "a"): 0,
    }
    for (one, other), expected in known.items():
        assert distance(one, other) == distance(other, one) == expected


def test_the_text_is_what_the_query_has_in_quotes() -> None:
    """Fails if an apostrophe is a quote, or a query without any text is scored."""
    assert wanted('a sign that says "OPEN" and «zu» beside “Joe\'s bar”') == ["OPEN", "zu", "Joe's bar"]
    for query in ("the dog's sign", 'empty "" quotes', 'blank " "', 'one " only'):
        with pytest.raises(ValueError, match="no text in double quotes"):
            wanted(query)


def test_each_text_counts_and_failures_are_named() -> None:
    """Fails if only the first text counts, or an engine that breaks gives 0, as in the reference."""

    def read(picture: np.ndarray) -> str:
        assert picture.dtype == np.uint8 and picture.shape == (8, 8, 3)
        if picture[0, 0, 0] == 255:
            raise RuntimeError("engine gone")
        return "open"

    images = torch.zeros(2, 3, 8, 8)
    reward, queries = OCR(read), ['"OPEN" or "shut"', '"open"']
    assert scored(reward, images, queries).tolist() == [0.5, 1.0]
    images[1] = 1.0
    with pytest.raises(ValueError, match=r"""reward ocr of image 1 \('"open"'\) failed: engine gone"""):
        scored(reward, images, queries)
    with pytest.raises(ValueError, match=r"reward ocr of image 0 \('a dog'\) failed: the query has no text"):
        scored(reward, images, ["a dog", '"open"'])


@pytest.mark.skipif(not installed, reason="the extra ocr is not installed")
def test_gold_above_corrupted() -> None:
    """The real engine. Fails if colours or axes are turned, or another text is as good."""
    reward = reward_named("ocr")
    images = torch.cat([sign("NASA 2049"), sign("NADA 2047"), sign("")])
    found = scored(reward, images, ['a shuttle with "NASA 2049"'] * 3)
    assert found[0] == 1 and 0.4 < float(found[1]) < 0.8 and found[2] == 0
    assert float(reward(images[1:2], ['"NASA 2049"'])) == float(found[1])


@pytest.mark.skipif(installed, reason="the extra ocr is installed")
def test_without_its_extra_it_says_what_to_install() -> None:
    with pytest.raises(ValueError, match=r"reward ocr needs rapidocr: pip install 'promptloop\[ocr\]'"):
        reward_named("ocr")
