"""What the sample sheet of a training run shows."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from promptloop.policies import Draft, Request
from promptloop.recipes.sheet import chosen, shot_of, write_sheet
from promptloop.rollout import Geometry, Rollout

REWARDS = torch.tensor([0.1, 0.9, 0.5, 0.5, 0.2, 0.2, 0.2, 0.2])


def draft(progress: float = 0.0, estimate: Tensor | None = None) -> Draft:
    request = Request("a star", "a star", estimate, progress)
    return Draft(request, "a red star", torch.ones(3, dtype=torch.long), torch.zeros(3))


def made(*drafts: Draft) -> Rollout:
    images = torch.linspace(0, 1, 8)[:, None, None, None].expand(8, 3, 8, 8)
    credited = (range(len(drafts)),) * 8
    return Rollout(("a star",) * 8, tuple(range(8)), (drafts,) * 8, images, REWARDS, credited)


def test_no_sample_twice_and_each_says_which_it_is() -> None:
    """Fails when a group of equal rewards gives its best and its worst, which are one."""
    rows = chosen(REWARDS, 4)
    assert [k for k, _ in rows] == [1, 0, 4]
    assert [which.split(" of")[0] for _, which in rows] == ["the best", "the worst", "one"]


def test_the_query_alone_stands_where_no_estimate_is() -> None:
    """Fails when the start is a grey square, and when it gets a tile of its own for the first draft."""
    base = torch.full((3, 8, 8), 0.25)
    shot = shot_of(made(draft(), draft(0.5, torch.ones(3, 8, 8))), 0, 4, base, 0.3)
    assert [frame.step for frame in shot.picture.frames] == [0, 2]
    assert shot.picture.frames[0].image.max() == 64 and "alone: reward 0.300" in shot.picture.frames[0].label
    assert [note.step for note in shot.picture.notes] == [0, 2]


def test_a_sheet_tells_the_rewards_with_and_without_the_policy(tmp_path: Path) -> None:
    """The query alone is drawn for the episodes that are shown, and for them alone."""
    asked: list[int] = []

    def alone(rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        asked.extend(rows)
        return torch.zeros(len(rows), 3, 8, 8), torch.full((len(rows),), 0.25)

    file = write_sheet(tmp_path, 7, made(draft()), Geometry(2, 4, 1), alone)
    told = json.loads(file.with_suffix(".json").read_text())
    assert asked == [1, 0, 4] and file.is_file()
    assert [round(row["reward"] - row["reward_alone"], 4) for row in told] == [0.65, -0.15, -0.05]
