"""Scheduled: given prompts at given steps."""

import pytest
import torch

from promptloop.controls.prompt import Scheduled
from promptloop.denoisers.exact import Gaussian
from promptloop.sample import State, sample, trajectory
from promptloop.schedules import vp
from promptloop.solvers import DDIM

BED = Gaussian(dim=2, prompts={"a": 0.0, "b": 2.0, "c": -3.0})


def run(*controls: Scheduled, **options: object) -> State:
    return sample(BED, ["a", "b"], seeds=[1, 2], steps=8, controls=controls, **options).state


def said(control: Scheduled) -> list[tuple[str, ...]]:
    states = trajectory(BED, ["a", "b"], levels=vp(8), solver=DDIM(), controls=[control], seeds=[1, 2])
    return [state.prompts for state in states]


def test_each_prompt_holds_until_the_next() -> None:
    assert said(Scheduled({2: "c", 5: "a"})) == [("a", "b")] * 3 + [("c", "c")] * 3 + [("a", "a")] * 3


def test_one_schedule_per_sample_or_per_query() -> None:
    listed = [{0: "c"}, {4: "a"}]
    expected = [("a", "b")] + [("c", "b")] * 4 + [("c", "a")] * 4
    assert said(Scheduled(listed)) == expected
    assert said(Scheduled(lambda query: listed[query == "b"])) == expected


def test_a_function_of_the_query_survives_batch_splitting() -> None:
    control = Scheduled(lambda query: {3: "c"} if query == "b" else {})
    assert torch.equal(run(control).x, run(control, max_batch=1).x)
    with pytest.raises(ValueError, match="2 schedules for a batch of 1"):
        run(Scheduled([{0: "c"}, {4: "a"}]), max_batch=1)


def test_scheduling_the_prompt_in_force_changes_nothing() -> None:
    """Bitwise; the null law of a control that has nothing to say."""
    assert torch.equal(run(Scheduled([dict.fromkeys(range(8), "a"), {}])).x, run().x)


def test_a_schedule_must_fit_the_run() -> None:
    with pytest.raises(ValueError, match="step 8 of a run with steps 0 to 7"):
        run(Scheduled({8: "a"}))
    with pytest.raises(ValueError, match="two Scheduled"):
        run(Scheduled({0: "a"}), Scheduled({0: "a"}))
