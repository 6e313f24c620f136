"""The hacking watch: statistics that move with what they are named for, and a warning when the proxy parts
from gold.
"""

import json

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
from promptloop.world import WEIGHTS


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


def test_it_warns_when_the_proxy_rises_and_gold_falls_and_again_when_that_goes_on() -> None:
    """Fails when either side's sign is turned, when it falls silent for good, or tells every update."""
    for gold_change, warnings in ((-0.05, 2), (0.05, 0)):
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


def warned_of(rows: list[tuple[float, float]]) -> list[int]:
    """The updates at which (reward, gold) rows of one run are warned of."""
    lines: list[dict[str, float]] = []
    watch = HackingWatch(2, lambda images, queries: torch.zeros(2), lambda text: None, past=lambda: lines)
    found = []
    for update, (reward, gold) in enumerate(rows, 1):  # as a resumed run takes them in
        watch.seen.append((reward, gold))
        if watch._warning():
            found.append(update)
    return found


def test_noise_alone_does_not_warn() -> None:
    """At most 3 of 150 runs of 200 updates of nothing new (of 4,000: 0.5%), none where the two correlate.

    Fails when the spread between updates stands for the error of a mean, or when one looks often with the
    errors of one look.
    """
    drawn = torch.randn(150, 200, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for together, most in ((0.0, 3), (0.5, 0)):
        own, gold = drawn.unbind(-1)
        runs = torch.stack([own, together * own + (1 - together**2) ** 0.5 * gold], -1)
        assert sum(bool(warned_of(run.tolist())) for run in runs) <= most


def test_of_the_shipped_trainings_it_warns_of_the_hacked_and_of_no_other() -> None:
    """Trained on a judge that errs, preference-0 and -1 lose oracle: 0.84 to 0.69 and 0.86 to 0.68 (means of
    20 updates); preference-2 loses 0.03, which is noise, and elsewhere the gold rose. The settings were
    chosen on noise alone. Fails when the last updates stand against those just before: preference-1 falls
    slowly.
    """
    told = {}
    for log in sorted((WEIGHTS / "studies").glob("*/training_log.jsonl")):
        lines = [json.loads(row) for row in log.read_text().splitlines()]
        rows = [(line["reward"], line["watch/gold"]) for line in lines if "watch/gold" in line]
        told[log.parent.name] = warned_of(rows)
    assert len(told) >= 12
    assert [name for name, updates in told.items() if updates] == ["preference-0", "preference-1"]


def drafted():
    from promptloop.policies.contract import Draft, Request

    return Draft(Request("a", "a"), "a")


def test_a_resumed_watch_warns_as_the_uninterrupted_one() -> None:
    """Fails when what was seen before the resume is forgotten, told a second time, or needs a gold in every
    line: an update whose gold could not be measured has none.
    """
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    made = Rollout(("a", "a"), (0, 1), ((drafted(),), (drafted(),)), images, torch.zeros(2), ())
    level = {"gold": 0.5}

    def gold(images, queries):
        return torch.full((2,), level["gold"])

    lines: list[dict[str, float]] = []
    told: list[tuple[int, str]] = []
    for start, end in ((0, 4), (4, 10), (10, 12)):  # warned in the second part and at the end of the third
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
        if not start:
            lines.append({"reward": 9.0})
    assert [(start, text.split(":")[0]) for start, text in told] == [(4, "update 5"), (10, "update 11")]
