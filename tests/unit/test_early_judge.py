"""A judge of estimates: which of its judges answers, and that it comes back from its folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from promptloop.schedules import Level
from promptloop.world.early_judge import CONFIG, EarlyJudge
from promptloop.world.judge import Judge, Senses, Size


def level(share: float) -> Level:
    return Level(1 - share, share, 1000 * share)


def test_the_judge_of_the_nearest_level_answers_and_comes_back(tmp_path: Path) -> None:
    """Fails when the nearest is sought by t or sigma, or two judges are saved under one name."""
    torch.manual_seed(0)
    senses = Senses()
    made = EarlyJudge({share: Judge(Size(width=8, layers=1)).half().float() for share in (0.9, 0.5)}, senses)
    images, queries = torch.rand(2, 3, 64, 64), ["a red circle", "two blue stars"]
    high, low = (made(images, queries, level(share)) for share in (0.9, 0.5))
    assert high.shape == (2,) and not torch.allclose(high, low)
    for share, expected in ((1.0, high), (0.71, high), (0.69, low), (0.0, low)):
        assert torch.equal(made(images, queries, level(share)), expected), share
    scaled = Level(10.0, 14.0, 0.0)  # of any scale: its share is 0.58
    assert torch.equal(made(images, queries, scaled), low)
    made.save(tmp_path)
    again = EarlyJudge.load(tmp_path, senses)
    assert torch.equal(again(images, queries, level(0.9)), high)
    assert torch.equal(again(images, queries, level(0.5)), low)
    config = json.loads((tmp_path / CONFIG).read_text()) | {"senses": "others"}
    (tmp_path / CONFIG).write_text(json.dumps(config))
    with pytest.raises(ValueError, match="made with other encoders"):
        EarlyJudge.load(tmp_path, senses)
    with pytest.raises(ValueError, match="no early judge at"):
        EarlyJudge.load(tmp_path / "nowhere")
