"""The state of a batch in the middle of sampling, and what may act on it: State, Run, Control."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, final

import torch
from torch import Tensor

from promptloop.schedules import Level
from promptloop.solvers import Denoise, Solver
from promptloop.transition import Transition

EMBEDDED = "embedded"  # memory named so was made by the run's denoiser; another one has to make its own
GROUP = "group"  # memory named so: samples with one number were made from one; copies part within it
Draw = Callable[["State", Transition], tuple[Tensor, Tensor]]  # -> x [B, ...], log p - log q [B]


@final
@dataclass(frozen=True)
class Run:
    """What all samples of a run share."""

    denoiser: Any
    levels: tuple[Level, ...]
    solver: Solver
    controls: tuple[Control, ...]


@final
@dataclass(frozen=True)
class State:
    """Everything that belongs to the samples, batch first. `take` is the only mover, and it moves all of it.

    step counts executed steps (0 before the first). queries are what the user asked, prompts what is in
    force, cond the embedding of `embedded` (None before the first step). transition is the last executed
    step's. memory is what controls keep: every value has one entry per sample (Tensor, tuple, or an object
    with take and join).
    """

    run: Run
    step: int
    level: Level
    x: Tensor
    seeds: Tensor
    queries: tuple[str, ...]
    prompts: tuple[str, ...]
    cond: Any | None = None
    embedded: tuple[str, ...] = ()
    transition: Transition | None = None
    memory: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.x)

    def take(self, index: Tensor | Sequence[int]) -> State:
        """The samples `index` (LongTensor, list, or bool mask), in that order, with all their belongings.

        A sample taken twice goes on as two: its second and later copies get seeds of their own, derived from
        the sample's seed, the step and the copy's number, so that stochastic steps part them.
        """
        rows = _rows(index, len(self))
        picked = rows.tolist()
        at = rows.to(self.x.device)
        return replace(
            self,
            x=self.x[at],
            seeds=torch.tensor(self._seeds(picked), dtype=torch.long),
            queries=tuple(self.queries[i] for i in picked),
            prompts=tuple(self.prompts[i] for i in picked),
            cond=None if self.cond is None else self.cond.take(at),
            embedded=tuple(self.embedded[i] for i in picked) if self.embedded else (),
            transition=None if self.transition is None else self.transition.take(at),
            memory={name: _take(value, at, picked) for name, value in self.memory.items()},
        )

    def say(self, prompts: Sequence[str]) -> State:
        """The state with these prompts in force from the next step on, one per sample."""
        return replace(self, prompts=as_texts("prompts", prompts, len(self)))

    def remember(self, **values: Any) -> State:
        """The state with these values in memory, each with one entry per sample."""
        for name, value in values.items():
            if isinstance(value, Tensor | tuple):
                if isinstance(value, Tensor) and value.ndim == 0 or len(value) != len(self):
                    raise ValueError(f"memory {name!r} needs one entry for each of the {len(self)} samples")
            elif not callable(getattr(value, "take", None)) or not callable(getattr(value, "join", None)):
                raise ValueError(
                    f"memory {name!r}: a {type(value).__name__} cannot follow its samples; "
                    "give a Tensor, tuple, or object with take(index) and join(others)"
                )
        return replace(self, memory={**self.memory, **values})

    def generator(self, i: int, purpose: str) -> torch.Generator:
        """A CPU generator for sample i at this step: a function of (seed, step, purpose) and nothing else.

        memory["<purpose> seeds"] [B], where it is there, stands for the seeds (controls.Streams).
        """
        seeds = self.memory.get(f"{purpose} seeds", self.seeds)
        return torch.Generator("cpu").manual_seed(seed_of(int(seeds[i]), self.step, purpose))

    def noise(self, purpose: str) -> Tensor:
        """Unit noise in x's shape, row i from generator(i, purpose)."""
        shape = self.x.shape[1:]
        rows = [torch.randn(shape, generator=self.generator(i, purpose)) for i in range(len(self))]
        return torch.stack(rows).to(self.x.device)

    def _seeds(self, picked: list[int]) -> list[int]:
        """Seeds of the picked samples; copies of a sample get fresh ones that no other of its group has.

        Not no other in the batch: a sample's copies would depend on which other samples have its seed.
        """
        known = self.seeds.tolist()
        groups = self.memory[GROUP].tolist() if GROUP in self.memory else [0] * len(known)
        taken = set(zip(groups, known, strict=True))
        result, used = [], set[int]()
        for i in picked:
            seed, copy = known[i], 0
            while i in used and (groups[i], seed) in taken:
                copy += 1
                seed = seed_of(known[i], self.step, f"copy {copy}")
            used.add(i)
            taken.add((groups[i], seed))
            result.append(seed)
        return result


def join(states: Sequence[State]) -> State:
    """One state with the samples of all, in order; they must be at the same step of the same run."""
    first = states[0]
    if len(states) == 1:
        return first
    if any(state.run != first.run or state.step != first.step for state in states):
        raise ValueError("only states at the same step of the same run can be joined")
    if any(state.memory.keys() != first.memory.keys() for state in states):
        raise ValueError(f"states remember different things: {[sorted(state.memory) for state in states]}")
    rest, transition = states[1:], first.transition
    return replace(
        first,
        x=torch.cat([state.x for state in states]),
        seeds=torch.cat([state.seeds for state in states]),
        queries=sum((state.queries for state in states), ()),
        prompts=sum((state.prompts for state in states), ()),
        cond=None if first.cond is None else first.cond.join([state.cond for state in rest]),
        embedded=sum((state.embedded for state in states), ()),
        transition=transition and transition.join([state.transition for state in rest if state.transition]),
        memory={name: _join(value, [s.memory[name] for s in rest]) for name, value in first.memory.items()},
    )


class Control:
    """Acts on the loop through five verbs, each the identity here.

    Settings are frozen; per-sample things go to state.memory. A control never runs the loop and never draws
    from a global generator (use state.generator or state.noise). The order of controls is the order of the
    list.
    """

    def start(self, state: State) -> State:
        """Before the first step: initial noise and prompt."""
        return state

    def condition(self, state: State) -> State:
        """Before every step: the prompt in force."""
        return state

    def guide(self, denoise: Denoise, state: State) -> Denoise:
        """What the denoiser answers: wraps (x, level, cond) -> clean, all [B, ...]."""
        return denoise

    def propose(self, draw: Draw, state: State) -> Draw:
        """Which point of the step's Gaussian: wraps (state, transition) -> (x, log p - log q [B])."""
        return draw

    def select(self, state: State) -> State:
        """After every step: who goes on (state.take)."""
        return state


def _rows(index: Tensor | Sequence[int], size: int) -> Tensor:
    """index as a LongTensor of rows, on the CPU."""
    rows = torch.as_tensor(index).cpu()
    if rows.is_floating_point() and len(rows):
        raise ValueError(f"index {index} is not made of whole numbers")
    if rows.dtype == torch.bool:
        if rows.shape != (size,):
            raise ValueError(f"a mask of shape {tuple(rows.shape)} cannot pick from {size} samples")
        rows = rows.nonzero()[:, 0]
    rows = rows.long()
    if rows.ndim != 1 or len(rows) == 0:
        raise ValueError(f"index of shape {tuple(rows.shape)}: give a list of at least one sample")
    if not bool(((rows >= 0) & (rows < size)).all()):
        raise ValueError(f"index {rows.tolist()} reaches outside the {size} samples 0 to {size - 1}")
    return rows


def _take(value: Any, at: Tensor, picked: list[int]) -> Any:
    if isinstance(value, Tensor):
        return value[at.to(value.device)]
    return tuple(value[i] for i in picked) if isinstance(value, tuple) else value.take(at)


def _join(value: Any, others: list[Any]) -> Any:
    if isinstance(value, Tensor):
        return torch.cat([value, *others])
    return sum(others, value) if isinstance(value, tuple) else value.join(others)


def as_texts(name: str, texts: Sequence[str], size: int | None) -> tuple[str, ...]:
    """texts as a tuple of strings, `size` of them."""
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{name} must be a list of strings, got {texts!r}")
    if size is not None and len(texts) != size:
        raise ValueError(f"{len(texts)} {name} for {size} samples")
    return tuple(texts)


def listed(controls: Any) -> tuple[Control, ...]:
    """The controls; ValueError for one that stands alone, or is none."""
    if isinstance(controls, Control):
        raise ValueError(
            f"controls is one {type(controls).__name__}; give a list: [{type(controls).__name__}(...)]"
        )
    for control in controls:
        if not isinstance(control, Control):
            raise ValueError(f"{control!r} among the controls is no control; give objects like CFG(5.0)")
    return tuple(controls)


def paired(prompts: Sequence[str], seeds: Sequence[int], noise: Tensor | None) -> None:
    """ValueError unless there is one seed, and one row of noise, for each prompt."""
    if isinstance(prompts, str):
        raise ValueError(f"prompts is the text {prompts!r}; give a list: [{prompts!r}]")
    if len(prompts) != len(seeds):
        raise ValueError(f"{len(seeds)} seeds for {len(prompts)} prompts; give two lists of the same length")
    if noise is not None and len(noise) != len(prompts):
        raise ValueError(f"noise of shape {tuple(noise.shape)} for {len(prompts)} prompts")


def finite(values: Tensor, what: str, first: int = 0) -> Tensor:
    """`values` [B, ...]; ValueError naming the sample, counted from `first`, where one is not finite."""
    if bool((whole := values.isfinite().flatten(1).all(1)).all()):
        return values
    rows = [first + i for i, fine in enumerate(whole.tolist()) if not fine]
    raise ValueError(
        f"the {what} of sample {rows[0]} is not finite ({len(rows)} of {len(values)} samples): a LoRA or "
        "guidance that is too strong, or a dtype that is too narrow (float16); lower the weight, or load "
        "with dtype bfloat16 or float32"
    )


def seed_of(seed: int, step: int, purpose: str) -> int:
    """The seed for one purpose of one sample at one step: a stable number of 63 bits."""
    digest = hashlib.blake2b(f"{seed}/{step}/{purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
