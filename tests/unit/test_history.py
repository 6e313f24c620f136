"""Proxy against gold over a training."""

import pytest

from promptloop.bench.history import over_training


def test_a_quarter_is_the_mean_of_its_updates() -> None:
    """Fails if updates are counted into the wrong quarter, or one without a gold counts as 0."""
    lines = [{"update": k, "reward": float(k), "watch/gold": 10.0 - k} for k in range(1, 9)]
    assert over_training(lines) == [(1.5, 8.5), (3.5, 6.5), (5.5, 4.5), (7.5, 2.5)]
    lines[1] = {"update": 2, "reward": 50.0}
    assert over_training(lines)[0] == (1.0, 9.0)


def test_a_training_without_gold_is_refused() -> None:
    with pytest.raises(ValueError, match="has no gold"):
        over_training([{"update": 1, "reward": 1.0}])
