"""The text that a query asks for in quotes, read off the image: Flow-GRPO's reward (Liu et al., arXiv
2505.05470), with an OCR engine that installs everywhere (rapidocr, extra `ocr`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, final

import numpy as np
from torch import Tensor

from promptloop.rewards.rows import bitmaps, one_by_one

QUOTED = re.compile('"([^"]+)"|“([^”]+)”|«([^»]+)»')


@final
class OCR:
    """Images [B, 3, H, W] in [0, 1] to how much of the wanted text is there [B], 0 to 1.

    The wanted text is what the query has in double quotes; several texts are scored one by one and averaged.
    ValueError for a query without quotes: nothing was asked for. `read` gives the text on an 8-bit RGB
    picture [H, W, 3], "" where there is none; by default rapidocr does.
    """

    differentiable: ClassVar[bool] = False

    def __init__(self, read: Callable[[np.ndarray], str] | None = None) -> None:
        self.read = read or rapidocr()

    def __call__(self, images: Tensor, queries: Sequence[str]) -> Tensor:
        drawn = bitmaps(images)

        def score(k: int) -> float:
            texts = wanted(queries[k])
            seen = self.read(np.asarray(drawn[k]))
            return sum(alike(text, seen) for text in texts) / len(texts)

        return one_by_one("ocr", score, queries)


def wanted(query: str) -> list[str]:
    """The texts in double quotes (straight, curly or angular); ValueError where there are none."""
    found = [next(filter(None, groups)) for groups in QUOTED.findall(query)]
    found = [text for text in found if plain(text)]
    if not found:
        raise ValueError('the query has no text in double quotes to be read, as: a sign that says "OPEN"')
    return found


def alike(target: str, seen: str) -> float:
    """1 - d / len(target): d is 0 where the target is within what was seen, else the edit distance of the
    two, at most len(target). Case and blanks do not count.
    """
    target, seen = plain(target), plain(seen)
    if target in seen:
        return 1.0
    return 1 - min(distance(target, seen), len(target)) / len(target)


def plain(text: str) -> str:
    return "".join(text.lower().split())


def distance(one: str, other: str) -> int:
    """Levenshtein's: how many signs to put in, take out or change."""
    above = list(range(len(other) + 1))
    for row, a in enumerate(one, 1):
        here = [row]
        for column, b in enumerate(other, 1):
            here.append(min(above[column] + 1, here[-1] + 1, above[column - 1] + (a != b)))
        above = here
    return above[-1]


def rapidocr() -> Callable[[np.ndarray], str]:
    """A reader by rapidocr's own models, which lie in its package (PP-OCR, Apache-2.0), in one thread.

    What it reads with a confidence of 0.5 or more, line by line in its order.
    """
    try:
        from rapidocr import RapidOCR
    except ImportError as error:
        raise ValueError("reward ocr needs rapidocr: pip install 'promptloop[ocr]'") from error
    once = {f"EngineConfig.onnxruntime.{kind}_op_num_threads": 1 for kind in ("intra", "inter")}
    engine: Any = RapidOCR(params={"Global.log_level": "critical", **once})

    def read(picture: np.ndarray) -> str:
        lines = engine(np.ascontiguousarray(picture[..., ::-1])).txts  # it takes BGR
        return " ".join(lines or ())

    return read
