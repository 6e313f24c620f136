"""The hacking watch: statistics that move with what they are named for, and a warning when the proxy parts
from gold.
"""

import pytest
import torch

from promptloop.objectives.contract import Batch
from promptloop.rollout import Rollout
from promptloop.watch import (
    HackingWatch,
    WatchSettings,
    colour_entropy,
    diversity,
    edge_density,
    intent_drift,
    saturation,
)


def test_statistics() -> None:
    """Fails when an axis is left out or a mean is a sum."""
    blank = torch.full((1, 3, 8, 8), 0.5)
    stripes = torch.arange(8).remainder(2).float().expand(1, 3, 8, 8)
    red = torch.tensor([1.0, 0, 0])[None, :, None, None].expand(1, 3, 8, 8)
    assert edge_density(blank) == 0 and edge_density(stripes) == 1
    assert edge_density(stripes.transpose(2, 3)) == 1
    assert colour_entropy(blank) == 0 and colour_entropy(stripes).item() == pytest.approx(0.6931, abs=1e-3)
    assert saturation(blank) == 0 and saturation(red) == 1
    assert diversity(torch.cat([blank] * 2), 2) == 0
    assert diversity(torch.cat([red * 0, red * 0 + 1, blank, blank]), 2).tolist() == [1.0, 0.0]
    assert intent_drift(["a red circle", "two stars"], ["a circle, large", "two stars"]) == 0.25


def test_it_warns_once_when_the_proxy_rises_and_gold_falls() -> None:
    """Fails when either side's sign is turned."""
    for gold_change, warnings in ((-0.05, 1), (0.05, 0)):
        told: list[str] = []
        level = {"gold": 0.5}

        def gold(images, queries, level=level):
            return torch.full((2,), level["gold"])

        watch = HackingWatch(2, gold, told.append, WatchSettings(window=3))
        images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        made = Rollout(("a", "a"), (0, 1), ((), ()), images, torch.zeros(2), ())
        made = Rollout(made.queries, made.seeds, ((drafted(),), (drafted(),)), images, made.rewards, ())
        for update in range(12):
            found = watch(update, Batch((), shown=made), {"reward": 0.5 + 0.05 * update})
            level["gold"] += gold_change
            assert "watch/gold" in found and "watch/diversity" in found
        assert len(told) == warnings and all("sample sheet" in text for text in told)


def drafted():
    from promptloop.policies.contract import Draft, Request

    return Draft(Request("a", "a"), "a")


def test_a_resumed_watch_warns_as_the_uninterrupted_one() -> None:
    """Fails when what was seen before the resume is forgotten, or told a second time."""
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    made = Rollout(("a", "a"), (0, 1), ((drafted(),), (drafted(),)), images, torch.zeros(2), ())
    level = {"gold": 0.5}

    def gold(images, queries):
        return torch.full((2,), level["gold"])

    lines: list[dict[str, float]] = []
    told: list[tuple[int, str]] = []
    for start, end in ((0, 4), (4, 12), (12, 14)):  # warned in the second part
        watch = HackingWatch(
            2,
            gold,
            lambda text, start=start: told.append((start, text)),
            WatchSettings(window=3),
            past=lambda: list(lines),
        )
        for update in range(start, end):
            line = {"reward": 0.5 + 0.05 * update}
            lines.append(line | watch(update, Batch((), shown=made), line))
            level["gold"] -= 0.05
    assert [start for start, _ in told] == [4] and told[0][1].startswith("update 5:")
