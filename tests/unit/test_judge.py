"""The learned reward: better than chance, worse than the oracle, and nobody else's file is loaded."""

import pytest
import torch

from promptloop.rewards.contract import scored
from promptloop.world.autoencoder import pixels
from promptloop.world.judge import JudgeReward, pair
from promptloop.world.oracle import grade


def test_it_is_good_and_imperfect() -> None:
    """Accuracy against the oracle on fresh pairs. Fails when the score's sign or the text is lost."""
    judge, right, told = JudgeReward(), 0, 0
    made = [pair(0, f"test/{i}") for i in range(200)]
    images = [pixels([p[k] for p in made]) * 0.5 + 0.5 for k in (2, 3)]
    gold = grade(images[0], [p[1] for p in made]).soft - grade(images[1], [p[1] for p in made]).soft
    proxy = scored(judge, images[0], [p[0] for p in made]) - scored(judge, images[1], [p[0] for p in made])
    clear = gold.abs() > 0.1
    right, told = int(((gold > 0) == (proxy > 0))[clear].sum()), int(clear.sum())
    assert told > 50 and 0.65 < right / told < 0.98


def test_a_pair_is_a_function_of_its_number() -> None:
    assert pair(0, 3) == pair(0, 3) != pair(0, 4)


def test_a_folder_without_a_judge_is_refused(tmp_path) -> None:
    with pytest.raises(OSError):
        JudgeReward(tmp_path)
    assert torch.is_tensor(JudgeReward()(torch.zeros(1, 3, 64, 64), ["a red circle"]))
