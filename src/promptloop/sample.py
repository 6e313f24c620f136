"""The sampling loop: noise becomes an image, and controls may act on every step.

`trajectory` is the loop, `advance` one turn of it, `sample` runs it to the end, `rescore` scores its path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor

from promptloop.denoisers.memory import lowering, told
from promptloop.ledger import Ledger, count, counting
from promptloop.schedules import Level, asked_for, check
from promptloop.solvers import Denoise, Solver, default_solver
from promptloop.state import EMBEDDED, Control, Draw, Run, State, as_texts, finite, join, listed, paired
from promptloop.transition import Transition

__all__ = [
    "Control",
    "Draw",
    "Level",
    "Run",
    "Sample",
    "State",
    "Transition",
    "advance",
    "answers",
    "begin",
    "default_solver",
    "embed",
    "gaussian",
    "join",
    "renoise",
    "rescore",
    "sample",
    "trajectory",
    "value",
]

Turn = Callable[[State, Level], State]

# --- the loop


def trajectory(
    denoiser: Any,
    prompts: Sequence[str],
    *,
    levels: Sequence[Level],
    solver: Solver,
    controls: Sequence[Control] = (),
    seeds: Sequence[int],
    noise: Tensor | None = None,
    turn: Turn | None = None,
) -> Iterator[State]:
    """Yields the state before the first step and after every step; its last x is the clean latent [B, ...].

    Sample i depends on prompts[i] and seeds[i] only. `noise` [B, ...] replaces the unit noise of the seeds.
    `turn` is how to get from a state to the next level, where that is not `advance` (controls/recurrence.py).
    Gradients are recorded as the caller's grad mode says (`sample` turns them off).
    """
    state = begin(Run(denoiser, check(levels), solver, listed(controls)), prompts, seeds, noise)
    for control in state.run.controls:
        state = control.start(state)
    yield state
    for level in state.run.levels[1:]:
        state = advance(state, level) if turn is None else turn(state, level)
        yield state


def advance(state: State, level: Level) -> State:
    """One whole step, from state.level to `level`."""
    run = state.run
    for control in run.controls:
        state = control.condition(state)  # what is asked for
    state = embed(state)
    transition = run.solver(answers(state), state, level)  # a step is a Gaussian
    draw: Draw = gaussian
    for control in run.controls:
        draw = control.propose(draw, state)  # which point of it
    x, log_weight = draw(state, transition)
    memory = {**state.memory, "log_weight": state.memory["log_weight"] + log_weight}
    state = replace(state, step=state.step + 1, level=level, x=x, transition=transition, memory=memory)
    for control in run.controls:
        state = control.select(state)  # who goes on
    return state


def answers(state: State, until: Control | None = None) -> Denoise:
    """What the run's denoiser answers under the guides of its controls, or of those listed before `until`.

    With another denoiser in the state's run it is that one under the same guides (controls/tuned.py).
    ValueError where `until` is none of the controls.
    """
    controls = state.run.controls
    if until is not None and all(control is not until for control in controls):
        raise ValueError(f"{type(until).__name__} is not in the run's list of controls; list it there itself")

    def counted(x: Tensor, level: Level, cond: Any) -> Tensor:
        count(evaluations=len(x))
        return state.run.denoiser.clean(x, level, cond)

    denoise: Denoise = counted
    for control in controls:
        if control is until:
            break
        denoise = control.guide(denoise, state)  # what the denoiser answers
    return denoise


def gaussian(state: State, transition: Transition) -> tuple[Tensor, Tensor]:
    """The default draw: x ~ N(mean, std^2) with each sample's own noise, and log p - log q = 0."""
    x = transition.mean
    if bool((transition.std > 0).any()):
        x = x + transition.std * state.noise("step")
    return x, torch.zeros(len(x), device=x.device)


def begin(run: Run, prompts: Sequence[str], seeds: Sequence[int], noise: Tensor | None = None) -> State:
    """The state before the first step, before any control."""
    queries = as_texts("prompts", prompts, None)
    if not queries or len(seeds) != len(queries):
        raise ValueError(f"{len(seeds)} seeds for {len(queries)} prompts; give one seed for each prompt")
    if not all(int(seed) == seed and 0 <= seed < 2**63 for seed in seeds):
        raise ValueError(f"seeds {list(seeds)}: give whole numbers from 0 to 2**63 - 1")
    rows = torch.as_tensor(seeds, dtype=torch.long)
    noise = run.denoiser.noise(rows.tolist()) if noise is None else noise
    if len(noise) != len(queries):
        raise ValueError(f"noise of shape {tuple(noise.shape)} for {len(queries)} prompts")
    x = noise.float() * run.solver.noise_scale(run.levels)
    memory = {"log_weight": torch.zeros(len(x), device=x.device)}
    return State(run, 0, run.levels[0], x, rows, queries, queries, memory=memory)


def embed(state: State) -> State:
    """The state with cond made from the prompts in force; embeds what is new, each distinct prompt once."""
    if state.prompts == state.embedded:
        return state
    place = {prompt: i for i, prompt in reversed([*enumerate(state.embedded)])}  # where a row of it is
    new = [prompt for prompt in dict.fromkeys(state.prompts) if prompt not in place]
    cond: Any = state.cond
    if new:
        place |= {prompt: len(state.embedded) + i for i, prompt in enumerate(new)}
        made = state.run.denoiser.embed(new)
        cond = made if cond is None else cond.join([made])
    rows = torch.tensor([place[prompt] for prompt in state.prompts], device=state.x.device)
    return replace(state, cond=cond.take(rows), embedded=state.prompts)


# --- running it


@final
@dataclass(frozen=True)
class Sample:
    """images [N, 3, H, W] in [0, 1] (None if not decoded), the final state of all N samples, and the cost."""

    images: Tensor | None
    state: State
    ledger: Ledger


def sample(
    denoiser: Any,
    prompts: Sequence[str],
    *,
    seeds: Sequence[int],
    steps: int | None = None,
    levels: Sequence[Level] | None = None,
    solver: Solver | None = None,
    controls: Sequence[Control] = (),
    noise: Tensor | None = None,
    max_batch: int | None = None,
    decode: bool = True,
    lean: bool = False,
    turn: Turn | None = None,
    on_step: Callable[[State], None] | None = None,
    gradients: bool = False,
) -> Sample:
    """Runs the loop to the end, at most `max_batch` samples at a time, which changes no sample.

    Give `steps` (the solver's or the denoiser's own levels) or `levels`. The solver defaults to the one the
    denoiser's scheduler stands for; `turn` is `trajectory`'s. `on_step` sees every state of every batch. With
    `lean` a finished batch's embeddings (those that controls remember too) and last transition are let go:
    its state has no cond. With `gradients` the result is differentiable in `noise` and the network. A last
    latent or an image that is not finite is a ValueError.
    """
    solver = default_solver(denoiser) if solver is None else solver
    levels = asked_for(denoiser, solver, steps, levels)
    if max_batch is not None and max_batch < 1:
        raise ValueError(f"max_batch is {max_batch}; it must be at least 1")
    paired(prompts, seeds, noise)
    size, states, images = max_batch or max(len(prompts), 1), [], []
    with counting() as tally, torch.set_grad_enabled(gradients):
        for k in range(0, max(len(prompts), 1), size):
            part = slice(k, k + size)
            held = len(prompts[part])
            with told(f"sampling {held} at once", lowering(denoiser, held)):
                for state in trajectory(
                    denoiser,
                    prompts[part],
                    levels=levels,
                    solver=solver,
                    controls=controls,
                    seeds=seeds[part],
                    noise=None if noise is None else noise[part],
                    turn=turn,
                ):
                    if on_step is not None:
                        on_step(state)
            finite(state.x, "latent", k)
            states.append(lightened(state) if lean else state)
            if decode:
                with told(f"decoding {held} images", lowering(denoiser, held)):
                    images.append(decoded(denoiser, state.x, first=k))
    return Sample(torch.cat(images) if decode else None, join(states), tally.ledger)


def decoded(denoiser: Any, x: Tensor, size: int | None = None, first: int = 0) -> Tensor:
    """Images [B, 3, H, W] of clean latents, counted and finite (else ValueError; `first` numbers them)."""
    count(decodes=len(x))
    return finite(denoiser.decode(x, size=size), "image", first)


def lightened(state: State) -> State:
    """A finished state without its embeddings (those that controls remember too) and last transition."""
    return replace(state, cond=None, embedded=(), transition=None, memory=_lasting(state))


def _lasting(state: State) -> dict[str, Any]:
    """The state's memory without what the run's denoiser has embedded."""
    return {name: value for name, value in state.memory.items() if not name.startswith(EMBEDDED)}


# --- scoring, and the pure functions for drivers above the loop


def rescore(
    denoiser: Any,
    state: State,
    *,
    controls: Sequence[Control] | None = None,
    solver: Solver | None = None,
    steps: Sequence[int] | None = None,
) -> Tensor:
    """[B, T] log-probs of the path that Record kept, under `denoiser` now; differentiable in its network.

    Deterministic steps stay nan and cost nothing. The prompts are those recorded; of the controls (None:
    those of the run) only `guide` acts, and it must not read memory that changed during the run. `steps`
    picks columns. ValueError without a recorded path, or with the reason when no step has a log-prob.
    """
    if "path" not in state.memory:
        raise ValueError("this state has no recorded path; put Record() among the controls")
    path, known, said = state.memory["path"], state.memory["path_log_prob"], state.memory["path_prompts"]
    if bool(known.isnan().all()):
        raise ValueError(
            f"no step of this path has a log-prob: {state.run.solver.without_density}; sample it with a "
            "solver of ours that draws: DDIM(eta=1), FlowSDE(), DanceSDE() or CPS()"
        )
    run = replace(state.run, denoiser=denoiser)
    run = run if controls is None else replace(run, controls=tuple(controls))
    run = run if solver is None else replace(run, solver=solver)
    memory = dict(state.memory) if denoiser is state.run.denoiser else _lasting(state)
    state = replace(state, run=run, cond=None, embedded=(), transition=None, memory=memory)
    columns = []
    for k in range(known.shape[1]) if steps is None else steps:
        if bool(known[:, k].isnan().all()):
            columns.append(known[:, k])
            continue
        prompts = tuple(row[k] for row in said)
        state = embed(replace(state, step=k, level=run.levels[k], x=path[:, k], prompts=prompts))
        transition = run.solver(answers(state), state, run.levels[k + 1])
        columns.append(transition.log_prob(path[:, k + 1]))
    return torch.stack(columns, dim=1)


def renoise(state: State, level: Level) -> State:
    """The state taken back to a noisier level by the forward process; step, prompts and memory stay."""
    kept = level.alpha / state.level.alpha
    added = level.sigma**2 - (kept * state.level.sigma) ** 2
    if level.share < state.level.share or added < 0:
        raise ValueError(f"cannot renoise from {state.level} to {level}: it is not noisier")
    return replace(state, level=level, x=kept * state.x + added**0.5 * state.noise("renoise"))


def value(state: State, reward: Callable[[Tensor, Sequence[str]], Tensor]) -> Tensor:
    """[B] the reward of the decoded estimate for the user's queries; ValueError before the first step."""
    if state.transition is None:
        raise ValueError("there is no estimate before the first step; advance the state once")
    count(rewards=len(state))
    return reward(decoded(state.run.denoiser, state.transition.clean), state.queries)
