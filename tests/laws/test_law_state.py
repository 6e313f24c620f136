"""State.take moves everything; Cond pads; advance, renoise and value are pure."""

import dataclasses

import pytest
import torch
from diffusers import DDPMScheduler
from laws.bed import STOCHASTIC, Pick, at, pair, words

from promptloop.controls.guidance import CFG
from promptloop.controls.record import Record
from promptloop.controls.streams import Streams
from promptloop.denoisers.cond import Cond
from promptloop.sample import State, Transition, advance, join, renoise, sample, trajectory, value
from promptloop.schedules import flow, vp
from promptloop.solvers import DDIM, FlowSDE, Scheduler

PROMPTS, SEEDS = ["up", "down", "far"], [5, 6, 7]


def middle(steps: int = 3) -> State:
    """A guided, recorded run after some of its six steps."""
    controls = [CFG(2.0), Record()]
    run = trajectory(words(), PROMPTS, levels=vp(6), solver=DDIM(1.0), controls=controls, seeds=SEEDS)
    for _ in range(steps + 1):
        state = next(run)
    return state


@torch.no_grad()
def test_take_moves_every_field() -> None:
    """Fails for any field of State or Transition that take forgets (each was left out once)."""
    order = [2, 0]
    state = middle().remember(mark=torch.arange(3), word=("a", "b", "c"))
    moved = state.take(order)
    assert {field.name for field in dataclasses.fields(State)} == {
        "run",
        "step",
        "level",
        "x",
        "seeds",
        "queries",
        "prompts",
        "cond",
        "embedded",
        "transition",
        "memory",
    }
    assert moved.run is state.run and moved.step == state.step and moved.level == state.level
    assert torch.equal(moved.x, state.x[order]) and moved.seeds.tolist() == [7, 5]
    assert moved.queries == moved.prompts == moved.embedded == ("far", "up")
    assert torch.equal(moved.cond.fields["added"], state.cond.fields["added"][order])
    assert {field.name for field in dataclasses.fields(Transition)} == {"mean", "std", "clean", "carry"}
    assert torch.equal(moved.transition.mean, state.transition.mean[order])
    assert torch.equal(moved.transition.clean, state.transition.clean[order])
    assert moved.memory.keys() == state.memory.keys()
    assert moved.memory["mark"].tolist() == [2, 0] and moved.memory["word"] == ("c", "a")
    assert torch.equal(moved.memory["path"], state.memory["path"][order])
    assert moved.memory["path_prompts"] == (("far",) * 3, ("up",) * 3)
    assert torch.equal(moved.memory["embedded negative None"].fields["added"], torch.zeros(2, 1))
    each = Transition(torch.zeros(3, 2), torch.tensor([[1.0], [2.0], [3.0]]), torch.zeros(3, 2))
    assert each.take(torch.tensor(order)).std.flatten().tolist() == [3.0, 1.0]


@torch.no_grad()
def test_take_accepts_masks_lists_and_tensors() -> None:
    """Fails when a mask is read as the indices 0 and 1."""
    state = middle()
    for index in ([0, 2], torch.tensor([0, 2]), torch.tensor([True, False, True]), [True, False, True]):
        assert torch.equal(state.take(index).x, state.x[[0, 2]])
    for index, message in [
        ([3], "outside"),
        ([-1], "outside"),
        ([], "at least one"),
        ([True], "mask"),
        ([[0]], "at least one"),
        ([0.5], "whole numbers"),
    ]:
        with pytest.raises(ValueError, match=message):
            state.take(index)


@torch.no_grad()
def test_taken_samples_go_on_as_if_nothing_happened_and_copies_part() -> None:
    """Fails when copies keep the seed of the original (they would stay equal for ever)."""
    state = middle()
    moved = state.take([2, 1, 1, 1])
    assert len(set(moved.seeds.tolist())) == 4
    assert torch.equal(moved.seeds, state.take([2, 1, 1, 1]).seeds), (
        "derived seeds are a function of the state"
    )
    again = moved.take([1, 2, 2, 1])
    assert len(set(again.seeds.tolist())) == 4, "copies of copies are new too"
    ahead, other = advance(state, vp(6)[4]), advance(moved, vp(6)[4])
    assert torch.equal(other.x[:2], ahead.x[[2, 1]])
    assert not torch.equal(other.x[1], other.x[2]) and not torch.equal(other.x[2], other.x[3])


@torch.no_grad()
def test_advance_is_pure() -> None:
    """Fails when a step writes into the state it came from, or draws from a generator that remembers."""
    state = middle()
    x, path = state.x.clone(), state.memory["path"].clone()
    one, two = advance(state, vp(6)[4]), advance(state, vp(6)[4])
    assert torch.equal(one.x, two.x) and torch.equal(state.x, x) and torch.equal(state.memory["path"], path)


@torch.no_grad()
def test_join_undoes_take() -> None:
    """Fails when join forgets the transition: the joined state could not be scored."""
    state = middle()
    joined = join([state.take([0]), state.take([1, 2])])
    for name in ("x", "seeds"):
        assert torch.equal(getattr(joined, name), getattr(state, name))
    assert joined.prompts == state.prompts and joined.embedded == state.embedded
    assert torch.equal(joined.cond.fields["added"], state.cond.fields["added"])
    assert torch.equal(joined.transition.log_prob(joined.x), state.transition.log_prob(state.x))
    assert torch.equal(joined.memory["path_log_prob"], state.memory["path_log_prob"])
    with pytest.raises(ValueError, match="same step"):
        join([state, middle(2)])
    with pytest.raises(ValueError, match="remember different things"):
        join([state, state.remember(mark=torch.arange(3))])
    each = [Transition(torch.zeros(n, 2), torch.tensor(float(n)), torch.zeros(n, 2)) for n in (1, 2)]
    assert each[0].join(each[1:]).std.flatten().tolist() == [1.0, 2.0, 2.0]


@torch.no_grad()
def test_renoise_is_the_forward_process_and_value_sees_the_query() -> None:
    """Fails when renoise adds sigma' noise instead of the difference (std 0.86 for 0.75)."""
    levels = flow(8)
    x = levels[3].alpha * 0.7 + levels[3].sigma * pair(2).noise(range(1000))
    state = at(levels[3], x, denoiser=pair(2), levels=levels)
    noisier = renoise(state, levels[2])
    assert noisier.level == levels[2]
    assert noisier.x.mean().item() == pytest.approx(0.7 * levels[2].alpha, abs=0.1)
    assert noisier.x.std().item() == pytest.approx(levels[2].sigma, rel=0.05)
    assert torch.equal(renoise(state, levels[2]).x, noisier.x)
    with pytest.raises(ValueError, match="not noisier"):
        renoise(noisier, levels[3])
    state = middle().say(["up", "up", "up"])
    scored = value(
        state, lambda images, queries: images.mean((1, 2, 3)) + torch.tensor([len(q) for q in queries])
    )
    seen = words().decode(state.transition.clean).mean((1, 2, 3))
    assert torch.allclose(scored - seen, torch.tensor([2.0, 4.0, 3.0]))
    with pytest.raises(ValueError, match="before the first step"):
        value(middle(0), lambda images, queries: images.mean((1, 2, 3)))


@torch.no_grad()
def test_log_weights_add_up_and_move() -> None:
    """Fails when advance overwrites the log-weight, or propose's is dropped."""
    from dataclasses import dataclass

    from promptloop.sample import Control

    @dataclass(frozen=True)
    class Weigh(Control):
        def propose(self, draw, state):
            def weighed(state, transition):
                x, log_weight = draw(state, transition)
                return x + 0.0, log_weight + state.seeds * (state.step + 1)

            return weighed

    end = sample(
        words(),
        PROMPTS,
        levels=flow(3),
        solver=FlowSDE(),
        seeds=SEEDS,
        controls=[Weigh(), Pick((2, 2, 1), after=(3,))],
    ).state
    assert end.memory["log_weight"].tolist() == [42.0, 42.0, 36.0]


def test_memory_takes_only_what_can_move() -> None:
    """Fails when remember accepts a list, which take could not index by samples."""
    state = middle(0)
    for wrong in (torch.zeros(2), torch.zeros(()), ("a", "b"), ["a", "b", "c"], 3.0, "abc"):
        with pytest.raises(ValueError, match="memory 'thing'"):
            state.remember(thing=wrong)
    with pytest.raises(ValueError, match="2 prompts for 3 samples"):
        state.say(["a", "b"])
    with pytest.raises(ValueError, match="list of strings"):
        state.say("abc")


def test_cond_pads_texts_of_different_length() -> None:
    """Fails when padding goes to the front, or the mask is not padded with it."""
    short = Cond({"text": torch.ones(1, 2, 3), "mask": torch.ones(1, 2)})
    long = Cond({"text": 2 * torch.ones(2, 4, 3), "mask": torch.ones(2, 4)})
    both = Cond.cat([short, long])
    assert len(both) == 3 and both.fields["text"].shape == (3, 4, 3)
    assert both.fields["mask"][0].tolist() == [1, 1, 0, 0] and both.fields["text"][0, 2:].abs().sum() == 0
    assert len(both[[2, 0]]) == 2 and torch.equal(both[[2, 0]].fields["mask"], both.fields["mask"][[2, 0]])
    with pytest.raises(ValueError, match="mask"):
        Cond.cat([Cond({"text": torch.ones(1, 2, 3)}), Cond({"text": torch.ones(1, 4, 3)})])
    with pytest.raises(ValueError, match="different fields"):
        Cond.cat([short, Cond({"text": torch.ones(1, 2, 3)})])
    with pytest.raises(ValueError, match="batch axis"):
        both[0]
    with pytest.raises(ValueError, match="same number of rows"):
        Cond({"text": torch.ones(1, 2), "mask": torch.ones(2, 2)})


@pytest.mark.parametrize("solver", STOCHASTIC, ids=repr)
def test_samples_of_one_noise_seed_differ_by_their_prompts_alone(solver) -> None:
    """Also when the batch is split. Fails when a step draws from the sample's seed, or from one for all."""
    prompts, seeds = ["up", "up", "down", "up"], [1, 2, 3, 4]
    shared = Streams({1: 7, 2: 7, 3: 7, 4: 8})
    noise = words().noise([7, 7, 7, 8])
    run = {"levels": flow(5), "solver": solver, "seeds": seeds, "noise": noise}
    end = sample(words(), prompts, controls=[shared], **run).state
    assert torch.equal(end.x[0], end.x[1])
    assert not torch.allclose(end.x[0], end.x[2]) and not torch.allclose(end.x[0], end.x[3])
    split = sample(words(), prompts, controls=[shared], max_batch=1, **run).state
    assert torch.allclose(split.x, end.x, atol=1e-6)
    wrapped = {**run, "levels": None, "solver": Scheduler(DDPMScheduler(clip_sample=False)), "steps": 5}
    theirs = sample(words(), prompts, controls=[shared], **wrapped).state
    assert torch.equal(theirs.x[0], theirs.x[1]) and not torch.allclose(theirs.x[0], theirs.x[3])
    own = sample(words(), prompts, controls=[Streams({s: s for s in seeds})], **run).state
    assert torch.equal(own.x, sample(words(), prompts, **run).state.x)
    with pytest.raises(ValueError, match="sample of seed 2"):
        sample(words(), prompts, controls=[Streams({1: 7})], **run)
