"""Intervals, arms and the table of claims."""

import pytest
import tiny
import torch

from promptloop.bench.arms import Way, measured
from promptloop.bench.paired import difference, interval
from promptloop.denoisers import from_pipeline
from promptloop.policies.fixed import Identity
from promptloop.recipes.claims import CLAIMS, ROWS, TRAINED
from promptloop.solvers import Heun


def test_interval_has_the_bootstrap_width() -> None:
    """One seed: 1.96 standard errors each side. Fails when queries stay or seeds count twice."""
    scores = torch.randn(1, 400, generator=torch.Generator().manual_seed(0))
    found = interval(scores)
    error = float(scores.std() / 20)
    assert found.mean == pytest.approx(float(scores.mean()), abs=1e-6)
    assert found.high - found.low == pytest.approx(3.92 * error, rel=0.1)
    copies = interval(scores.expand(3, -1))  # seeds that agree tell nothing new
    assert copies.high - copies.low == pytest.approx(found.high - found.low, rel=0.1)
    apart = interval(torch.tensor([[0.0], [1.0]]).expand(2, 50))
    assert (apart.low, apart.high) == (0.0, 1.0)


def test_differences_are_paired() -> None:
    """Fails when the two sides are drawn apart: then the interval of a constant gap has a width."""
    scores = torch.rand(3, 50, generator=torch.Generator().manual_seed(0))
    gap = difference(scores + 0.1, scores)
    assert gap.low == pytest.approx(0.1, abs=1e-6) and gap.high == pytest.approx(0.1, abs=1e-6)
    with pytest.raises(ValueError, match="not pairs"):
        difference(scores, scores[:, :10])
    with pytest.raises(ValueError, match="not finite"):
        interval(scores * float("nan"))
    with pytest.raises(ValueError, match="seeds by queries"):
        interval(scores[0])


def test_an_arm_has_the_same_noise_as_the_others() -> None:
    """A policy that repeats the query scores as the query does. Fails when an arm draws noise of its own."""
    denoiser = from_pipeline(tiny.sd())
    rewards = {"mean": lambda images, queries: images.mean((1, 2, 3))}
    way = Way(refinements=2, window=(0.0, 1.0), steps=4, guidance=3.0)
    asked = ["a circle", "a star", "two squares"]
    alone = measured(denoiser, None, way, asked, rewards, seed=5)
    same = measured(denoiser, Identity(), way, asked, rewards, seed=5, max_batch=2)
    assert torch.allclose(alone.scores["mean"], same.scores["mean"], atol=1e-6)
    assert alone.cost["denoiser calls"] == 8 == same.cost["denoiser calls"]
    assert alone.cost["policy tokens"] == 0


def test_denoiser_calls_are_those_that_were_made() -> None:
    """Each of Heun's steps asks twice. Fails when calls are reckoned from steps and guidance."""
    denoiser = from_pipeline(tiny.sd())
    rewards = {"mean": lambda images, queries: images.mean((1, 2, 3))}
    for guidance, branches in ((3.0, 2), (1.0, 1)):
        way = Way(steps=4, guidance=guidance)
        made = measured(denoiser, None, way, ["a"] * 3, rewards, seed=5, solver=Heun(), max_batch=2)
        assert made.cost["denoiser calls"] == branches * 8


def test_claims_name_rows_that_are_there() -> None:
    for claim in CLAIMS.values():
        assert {*claim.rows, *(row for pair in claim.pairs for row in pair)} <= ROWS.keys()
    assert {row.policy for row in ROWS.values()} <= {None, "untrained", *TRAINED}
