"""Files of choices between two images: .jsonl or .csv with prompt, chosen and rejected."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from promptloop.recipes import lists
from promptloop.recipes.gallery import Picture

if TYPE_CHECKING:
    from promptloop.objectives.bradley_terry import Choice

COLUMNS = ("prompt", "chosen", "rejected")
KINDS = (".jsonl", ".csv")


def choices_in(file: Path) -> list[Choice]:
    """The choices of the file, images beside it or by whole paths; ValueError naming the row."""
    from promptloop.objectives.bradley_terry import Choice

    if file.suffix not in KINDS:
        raise ValueError(f"{file}: pairs are read from {' and '.join(KINDS)}, with {', '.join(COLUMNS)}")
    found = []
    for k, row in enumerate(lists.rows(file, *COLUMNS), 1):
        prompt, *names = (row[column].strip() for column in COLUMNS)
        chosen, rejected = (str(lists.file_at(file.parent / name, file)) for name in names)
        if chosen == rejected:
            raise ValueError(f"row {k} of {file} has one image on both sides, {names[0]!r}")
        found.append(Choice(prompt, chosen, rejected))
    return found


def parted(choices: Sequence[Choice], held_out: float, seed: int) -> tuple[list[Choice], list[Choice]]:
    """(to learn from, to look at): apart by prompt, so that no prompt is on both sides, in capitals or not;
    which side is a function of the prompt and the seed. ValueError where a side has none.
    """
    sides: tuple[list[Choice], list[Choice]] = ([], [])
    for choice in choices:
        said = " ".join(choice.prompt.lower().split())  # as the tokenizers read it
        sides[zlib.crc32(f"{seed}/{said}".encode()) < held_out * 2**32].append(choice)
    if not sides[0] or (held_out > 0 and not sides[1]):
        raise ValueError(
            f"of {len(choices)} pairs, {len(sides[0])} are to learn from and {len(sides[1])} are held out "
            f"(held_out {held_out:g}, by prompt); give more prompts, or another held_out"
        )
    return sides


def judged(
    pictures: Sequence[Picture], reward: Any, *, alike: float, turned: float, seed: int
) -> list[dict[str, str]]:
    """A row for every two images of one prompt whose rewards differ by more than `alike`, a share of them
    `turned`: people err. ValueError where there is no such pair.
    """
    from promptloop.recipes.scoring import Asked, values_of

    asked = [Asked(picture.file, picture.prompt) for picture in pictures]
    values = values_of(reward, asked, torch.device("cpu"), 200)[0].tolist()
    of_prompt: dict[str, list[int]] = {}
    for k, picture in enumerate(pictures):
        of_prompt.setdefault(picture.prompt, []).append(k)
    rng = torch.Generator().manual_seed(seed)
    rows = []
    for prompt, own in of_prompt.items():
        for a, b in combinations(own, 2):
            if abs(values[a] - values[b]) > alike:
                turn = float(torch.rand((), generator=rng)) < turned
                chosen, rejected = (a, b) if (values[a] > values[b]) ^ turn else (b, a)
                rows.append({"prompt": prompt, "chosen": str(pictures[chosen].file),
                             "rejected": str(pictures[rejected].file)})  # fmt: skip
    if not rows:
        raise ValueError("the judge tells no two images of a query apart; there is no pair to learn from")
    return rows


def written(rows: Sequence[dict[str, str]], file: Path) -> None:
    """The rows as a .jsonl, images by their way from it, whole or not at all."""
    beside = file.parent.resolve()

    def from_here(name: str) -> str:
        path = Path(name).resolve()
        return path.relative_to(beside).as_posix() if path.is_relative_to(beside) else str(path)

    lines = [
        json.dumps(row | {side: from_here(row[side]) for side in COLUMNS[1:]}, ensure_ascii=False) + "\n"
        for row in rows
    ]
    part = file.with_name(f".{file.name}.part")
    part.write_text("".join(lines), encoding="utf-8")
    part.replace(file)
