"""Controls that do nothing change nothing, order and batching do not matter."""

from dataclasses import dataclass

import pytest
import torch
from laws.bed import GRIDS, SOLVERS, Pick, words

from promptloop.controls.guidance import CFG
from promptloop.controls.prompt import PromptLoop
from promptloop.controls.record import Record
from promptloop.policies.fixed import Identity
from promptloop.sample import Control, State, sample, trajectory
from promptloop.schedules import flow, vp
from promptloop.solvers import CPS, DDIM, FlowSDE

PROMPTS = ["up", "down", "up", "far", ""]
SEEDS = [5, 6, 7, 8, 9]


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
@pytest.mark.parametrize("grid", GRIDS)
def test_controls_that_do_nothing_leave_every_sample_bitwise_unchanged(grid: str, solver) -> None:
    """Fails when CFG(1) evaluates u + 1 * (c - u), or when a verb of Control returns something new."""
    plain = sample(words(), PROMPTS, levels=GRIDS[grid], solver=solver, seeds=SEEDS)
    for control in (Control(), CFG(1), Record(), PromptLoop(Identity())):
        other = sample(words(), PROMPTS, levels=GRIDS[grid], solver=solver, seeds=SEEDS, controls=[control])
        assert torch.equal(plain.state.x, other.state.x), control
        assert torch.equal(plain.images, other.images), control


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
@pytest.mark.parametrize("controls", [(), (CFG(3.0), Record())], ids=["plain", "guided"])
def test_sample_i_does_not_depend_on_the_batch(solver, controls) -> None:
    """Fails when State.noise draws all rows from one generator, or hashes the row number into the seed."""
    options = {"levels": GRIDS["vp"], "solver": solver, "controls": controls}
    together = sample(words(), PROMPTS, seeds=SEEDS, **options)
    for size in (1, 2, 3, 4, 99):
        split = sample(words(), PROMPTS, seeds=SEEDS, max_batch=size, **options)
        assert torch.equal(together.images, split.images)
        assert torch.equal(together.state.x, split.state.x)
        assert split.state.prompts == together.state.prompts
        for name, value in together.state.memory.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value.nan_to_num(), split.state.memory[name].nan_to_num()), name
    alone = sample(words(), PROMPTS[3:4], seeds=SEEDS[3:4], **options)
    assert torch.equal(alone.state.x[0], together.state.x[3])
    backwards = sample(words(), PROMPTS[::-1], seeds=SEEDS[::-1], **options)
    assert torch.equal(backwards.state.x.flip(0), together.state.x)


def test_start_noise_is_one_cpu_generator_per_sample() -> None:
    """Fails when noise(seeds) draws [B, ...] from one generator; diffusers is given a list of generators."""
    from diffusers.utils.torch_utils import randn_tensor

    generators = [torch.Generator("cpu").manual_seed(seed) for seed in SEEDS]
    assert torch.equal(words().noise(SEEDS), randn_tensor((5, 3), generator=generators))


@pytest.mark.parametrize("solver", [DDIM(1.0), FlowSDE(), CPS()], ids=repr)
def test_a_control_that_moves_samples_commutes_with_record(solver) -> None:
    """Fails when Transition.take forgets the mean: log-probs then belong to other samples (15 nats off)."""
    ends = []
    for controls in ([Pick((2, 0, 0, 4, 1)), Record()], [Record(), Pick((2, 0, 0, 4, 1))]):
        end = sample(words(), PROMPTS, levels=vp(6), solver=solver, seeds=SEEDS, controls=controls).state
        ends.append(end)
    one, two = ends
    assert torch.equal(one.x, two.x) and one.prompts == two.prompts
    assert torch.equal(one.memory["path"], two.memory["path"])
    assert torch.equal(one.memory["path_log_prob"].nan_to_num(), two.memory["path_log_prob"].nan_to_num())
    assert one.memory["path_prompts"] == two.memory["path_prompts"]
    assert not torch.equal(one.x[1], one.x[2]), "copies of a sample must part"


def test_cfg_is_one_call_of_twice_the_batch_and_the_published_combination() -> None:
    """Fails when the two halves of the batch are swapped (scale 3 then gives 1 - 2 of it)."""
    bed, sizes = words(), []
    plain = bed.clean

    def counted(x, level, cond):
        sizes.append(len(x))
        return plain(x, level, cond)

    bed.clean = counted
    state = list(
        trajectory(bed, ["up"], levels=flow(3), solver=DDIM(), controls=[CFG(3.0, "down")], seeds=[1])
    )
    assert sizes == [2, 2, 2]
    x, level = state[0].x, state[0].level
    up, down = plain(x, level, bed.embed(["up"])), plain(x, level, bed.embed(["down"]))
    assert torch.allclose(state[1].transition.clean, down + 3 * (up - down))


@dataclass(frozen=True)
class Say(Control):
    """Prompts for the step given."""

    prompts: tuple[str, ...]
    step: int

    def condition(self, state: State) -> State:
        return state.say(self.prompts) if state.step == self.step else state


def test_each_distinct_prompt_is_embedded_once_and_only_when_prompts_change() -> None:
    """Fails when embed ignores the rows it already has: the second call would embed 'up' again."""
    bed, asked = words(), []
    plain = bed.embed
    bed.embed = lambda prompts: (asked.append(tuple(prompts)), plain(prompts))[1]
    late = Say(("far", "up", "up", "far", "down"), 3)
    end = sample(bed, PROMPTS, levels=vp(6), solver=DDIM(), seeds=SEEDS, controls=[late]).state
    assert asked == [("up", "down", "far", "")]
    assert torch.equal(end.cond.fields["added"], plain(late.prompts).fields["added"])
    asked.clear()
    swap = Say(("up", "up", "far", "", "down"), 2)
    end = sample(bed, ["up"] * 5, levels=vp(6), solver=DDIM(), seeds=SEEDS, controls=[swap]).state
    assert asked == [("up",), ("far", "", "down")]
    assert torch.equal(end.cond.fields["added"], plain(swap.prompts).fields["added"])


def test_verbs_act_in_the_order_of_the_list_and_at_their_place() -> None:
    """Fails when advance applies select before the draw, or walks the controls backwards."""
    said = []

    @dataclass(frozen=True)
    class Note(Control):
        name: str

        def start(self, state):
            return said.append((self.name, "start", state.step)) or state

        def condition(self, state):
            return said.append((self.name, "condition", state.step)) or state

        def guide(self, denoise, state):
            return said.append((self.name, "guide", state.step)) or denoise

        def propose(self, draw, state):
            return said.append((self.name, "propose", state.step)) or draw

        def select(self, state):
            return said.append((self.name, "select", state.step)) or state

    sample(words(), ["up"], levels=flow(1), solver=DDIM(), seeds=[0], controls=[Note("a"), Note("b")])
    verbs = ["start", "condition", "guide", "propose", "select"]
    assert said == [(name, verb, int(verb == "select")) for verb in verbs for name in "ab"]


def test_on_step_sees_every_state_and_decoding_can_be_left_out() -> None:
    """Fails when the state before the first step, or a later batch, is not shown."""
    seen = []
    made = sample(
        words(),
        PROMPTS,
        levels=flow(2),
        seeds=SEEDS,
        max_batch=3,
        decode=False,
        on_step=lambda state: seen.append((len(state), state.step)),
    )
    assert made.images is None and len(made.state) == 5
    assert seen == [(3, 0), (3, 1), (3, 2), (2, 0), (2, 1), (2, 2)]
