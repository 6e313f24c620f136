"""Laws of sums of rewards: z-scores, ranks, gates, the cache."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_reward import brightness, broken
from torch import Tensor

from promptloop.recipes.rewards import own_scale, reward_named
from promptloop.rewards import Cached, Gate, Weighted
from promptloop.rewards.composite import scored_by_term
from promptloop.rewards.contract import RewardFailed, scored
from promptloop.rewards.scales import Running, ranks

NUMBERS = st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=12)


def given_values(values: Tensor) -> Any:
    """A reward that gives these values in their order, call after call."""
    left = iter(values.tolist())
    return lambda images, queries: torch.tensor([next(left) for _ in queries])


def asked(reward: Any, *queries: str) -> Tensor:
    return reward(torch.zeros(len(queries), 3, 2, 2), queries)


@settings(max_examples=40, deadline=None)
@given(NUMBERS, st.integers(1, 4))
def test_ranks(values: list[float], queries: int) -> None:
    """Of three values 1, 2, 2 by hand; invariance and sums on any. Fails when other queries' images are
    compared, equals are ordered, or the scale depends on how many there are.
    """
    assert ranks(torch.tensor([2.0, 1.0, 2.0, 9.0]), ["a", "a", "a", "b"]).tolist() == [0.5, -1.0, 0.5, 0.0]
    names = [str(k % queries) for k in range(len(values))]
    found = ranks(torch.tensor(values), names)
    assert torch.equal(found, ranks(torch.tensor([8 * v for v in values]), names))
    sums = {name: float(found[[n == name for n in names]].double().sum()) for name in names}
    assert all(abs(total) < 1e-5 for total in sums.values()) and float(found.abs().max()) <= 1


@settings(max_examples=40, deadline=None)
@given(NUMBERS, st.integers(1, 11))
def test_running_statistics_are_those_of_all_values(values: list[float], cut: int) -> None:
    """Two batches against torch's own mean and deviation of all. Fails when the step between the batches'
    means is left out of the squares.
    """
    running, row = Running(), torch.tensor(values)
    for part in (row[:cut], row[cut:]):
        running.add("a", part)
    count, mean, squares = running.state()["a"].tolist()
    assert count == len(values)
    assert mean == pytest.approx(float(row.double().mean()), abs=1e-6)
    assert squares == pytest.approx(float(row.double().var(correction=0) * count), rel=1e-6, abs=1e-4)


def test_z_does_not_see_a_terms_unit() -> None:
    """Celsius or Fahrenheit, and by hand for the first call. Fails when the mean or the deviation is left
    out, or when a call is not taken in before it is scaled.
    """
    row = torch.tensor([1.0, 3.0, 5.0, 5.0])
    for unit in (row, row * 1.8 + 32):
        both = Weighted({"t": (2.0, given_values(unit))}, "z")
        first, second = asked(both, "q", "q"), asked(both, "q", "q")
        assert torch.allclose(first, torch.tensor([-2.0, 2.0]))
        assert torch.allclose(second, torch.full((2,), 2 * 1.5 / math.sqrt(2.75)))
    assert (
        asked(Weighted({"t": (1.0, given_values(torch.full((3,), 0.1)))}, "z"), "a", "b", "c").tolist()
        == [0] * 3
    )


def test_statistics_go_on_where_they_were() -> None:
    """Fails when a restore forgets a number, or goes on from those of another sum in silence."""
    row = torch.rand(12, generator=torch.Generator().manual_seed(0))
    whole = Weighted({"t": (1.0, given_values(row))}, "z")
    wanted = [asked(whole, *"abcd") for _ in range(3)]
    first = Weighted({"t": (1.0, given_values(row))}, "z")
    assert torch.equal(asked(first, *"abcd"), wanted[0])
    later = Weighted({"t": (1.0, given_values(row[4:]))}, "z")
    later.restore(first.state())
    assert torch.equal(torch.stack([asked(later, *"abcd") for _ in range(2)]), torch.stack(wanted[1:]))
    for state in ({}, {"u": first.state()["t"]}, first.state() | {"u": first.state()["t"]}):
        with pytest.raises(ValueError, match="cannot go on"):
            later.restore(state)
    with pytest.raises(ValueError, match="damaged"):
        later.restore({"t": torch.tensor([math.nan, 0, 0])})
    assert Weighted({"t": (1.0, brightness)}).state() == {}


def test_gates_at_their_thresholds() -> None:
    """Zero unless safe. Fails when `least` is left out or `below` let in, or a shut gate gives the sum."""
    safe = torch.tensor([0.4, 0.5, 0.9, 1.0])
    gates = {"safe": Gate(given_values(safe), 0.5, 1.0)}
    found, told = scored_by_term(
        Weighted({"t": (2.0, brightness)}, gates=gates), torch.ones(4, 3, 4, 4), list("abcd")
    )
    assert found.tolist() == [0, 2, 2, 0] and torch.equal(told["safe"], safe)
    low = Weighted({"t": (2.0, brightness)}, "rank", {"t": Gate(brightness, 0.5)}, -3.0)
    assert low.rewards == {"t": brightness}  # asked once
    grey = torch.linspace(0, 1, 4)[:, None, None, None].expand(4, 3, 4, 4)
    assert torch.allclose(low(grey, ["a"] * 4), torch.tensor([-3, -3, 2 / 3, 2]))
    with pytest.raises(RewardFailed, match="is nan"):  # else it would pass for shut
        Weighted({"t": (1.0, brightness)}, gates={"x": Gate(broken, 0.5)})(grey, ["a"] * 4)
    for wrong, says in (
        (lambda: Weighted({"t": (1.0, brightness)}, "z", gates), "0 is the middle"),
        (lambda: Weighted({"t": (1.0, brightness)}, shut=1.0), "give a gate"),
        (lambda: Weighted({"t": (1.0, brightness)}, "zscore"), "unknown normalisation 'zscore'"),
        (lambda: Weighted({"t": (1.0, brightness)}, gates={"t": Gate(broken, 0)}), "rename one"),
        (lambda: Gate(brightness), "needs a threshold"),
        (lambda: Gate(brightness, 1, 1), "never open"),
    ):
        with pytest.raises(ValueError, match=says):
            wrong()


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ("z(0.5*oracle + preference)", ("z", {"oracle": 0.5, "preference": 1.0}, {}, None)),
        ("rank(oracle)", ("rank", {"oracle": 1.0}, {}, None)),
        ("oracle if oracle>=0.5", ("raw", {"oracle": 1.0}, {"oracle": (0.5, math.inf)}, None)),
        (
            "z(2*oracle) if tiny_reward:brightness >= .1 and tiny_reward:brightness<1e0 else -3",
            ("z", {"oracle": 2.0}, {"tiny_reward:brightness": (0.1, 1.0)}, -3.0),
        ),
        ("mean(oracle)", "unknown normalisation 'mean'; known: z, rank"),
        ("z(oracle) + preference", "goes around the whole sum"),
        ("rank(oracle", "opens a bracket that is never closed: write rank(NAME + NAME)"),
        ("z(oracle + preference if oracle>=1)", "bracket that is never closed"),
        ("mean(oracle", "unknown normalisation 'mean'"),
        ("0.5*rank(oracle", "goes around the whole sum"),
        ("oracle if preference", "the gate 'preference', which is not NAME>=NUMBER"),
        ("oracle if orcale>=1", "did you mean 'oracle'"),
        ("oracle if preference>=1 and preference>=2", "twice"),
        ("oracle + oracle", "a term twice"),
        ("z(oracle) if preference>=0", "0 is the middle"),
    ],
)
def test_the_written_form(said: str, wanted: Any) -> None:
    """Fails when a gate's sign, a threshold or what a shut gate gives is read otherwise."""
    if isinstance(wanted, str):
        with pytest.raises(ValueError) as refused:
            reward_named(said)
        assert wanted in str(refused.value)
        return
    made = reward_named(said)
    gates = {name: (gate.least, gate.below) for name, gate in made.gates.items()}
    assert (made.norm, {n: w for n, (w, _) in made.terms.items()}, gates, made.shut) == wanted
    if made.norm != "raw":
        with pytest.raises(ValueError, match="a value of its own"):
            own_scale(made, said)


class Counted:
    """Brightness plus the query's length; what it was asked."""

    differentiable = True

    def __init__(self) -> None:
        self.seen: list[list[str]] = []

    def __call__(self, images: Tensor, queries: Sequence[str]) -> Tensor:
        self.seen.append(list(queries))
        return brightness(images, queries) + torch.tensor([float(len(q)) for q in queries])


def test_the_cache_asks_once() -> None:
    """By content, bounded, the last used stays. Fails when the query or the image is left out of the key, a
    gradient is lost, nan is kept, or an error names a place in what was left of the batch.
    """
    images = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    inner = Counted()
    cached = Cached(inner, 3)
    twice, queries = images[[0, 1, 0, 0]], ["a", "bb", "a", "bb"]
    assert torch.equal(cached(twice, queries), Counted()(twice, queries))
    assert inner.seen == [["a", "bb", "bb"]]
    assert (
        torch.equal(cached(images[:1].clone(), ["a"]), Counted()(images[:1], ["a"])) and len(inner.seen) == 1
    )
    cached(images[2:], ["a"])  # the fourth: what was unused for longest goes
    cached(images[:1], ["a"])
    assert len(inner.seen) == 2
    cached(images[1:2], ["bb"])
    assert len(inner.seen) == 3 and (cached.asked, cached.found) == (5, 3)
    leaf = images.clone().requires_grad_()
    cached(leaf, ["a"] * 3).sum().backward()
    assert leaf.grad is not None and cached.differentiable
    with pytest.raises(RewardFailed, match=r"broken of image 2 \('c'\) is nan"):
        scored(Cached(broken), images, ["a", "b", "c"])
    with pytest.raises(ValueError, match="leave the cache away"):
        Cached(Weighted({"t": (1.0, brightness)}, "rank"))


def test_a_reward_that_raises_is_blamed_on_an_image() -> None:
    """Fails when the first image of the batch is named, or a value takes the place."""

    def picky(images: Tensor, queries: Sequence[str]) -> Tensor:
        if "bad" in queries:
            raise KeyError("no such thing")
        return torch.zeros(len(queries))

    queries = ["a", "b", "bad"]
    images = torch.zeros(3, 3, 2, 2)
    for reward in (picky, Weighted({"t": (1.0, picky)}), Cached(picky)):
        with pytest.raises(
            RewardFailed, match=r"of image 2 \('bad'\) raised KeyError: 'no such thing'"
        ) as why:
            scored(reward, images, queries)
        assert why.value.index == 2 and why.value.query == "bad"
    with pytest.raises(ValueError, match=r"gave shape \(3, 1\) for 3 images"):
        scored(lambda i, q: torch.zeros(3, 1), images, queries)
    with pytest.raises(ValueError, match="2 more.*ConnectionError: off"):
        scored(lambda i, q: (_ for _ in ()).throw(ConnectionError("off")), images, queries)
