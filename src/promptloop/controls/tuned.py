"""Between a base model and its tuned versions, at inference: RLG, and Diffusion Blend.

Tuned is a second denoiser, or a LoRA that is switched on and off on the network of the first. Every branch
runs under the guides of the controls listed before this one, so all have the same CFG.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, final

import torch
from torch import Tensor

from promptloop.controls.strength import Strength, check_strength, strength
from promptloop.denoisers.cond import Cond
from promptloop.denoisers.denoiser import Denoiser
from promptloop.denoisers.loras import in_force, switched
from promptloop.sample import Control, State, answers
from promptloop.schedules import Level
from promptloop.solvers import Denoise

Tuned = str | Mapping[str, float] | Denoiser  # a LoRA's name, several with their weights, or a whole denoiser
SEEDS = "blend seeds"  # in memory, where State.generator finds them


@final
@dataclass(frozen=True)
class RLG(Control):
    """RL Guidance (arXiv 2508.21016): base + w (tuned - base), both after the guides listed before it.

    Where tuned is the base tilted by exp(reward / b), w makes the KL weight b / w: 0 is the base, 1 the tuned
    model, more than 1 goes on. Exact for the law of x0 where both have one variance; elsewhere w > 1 sharpens
    more than that (docs/methods/rlg.md). Combining clean estimates equals combining epsilons, v's, velocities
    or scores.

    tuned: the name of a LoRA on the network (with the weight that it has in force, or 1 where it is off),
    a mapping from names to weights, or a second denoiser of the same family, which reads the same embeddings.
    w: a number, one for each step, or a function of progress in [0, 1). At 0 and 1 one branch alone is run
    and the samples are bitwise that model's. List it after CFG. ValueError, before the first step, for a LoRA
    that is not there or reaches a text encoder, and for a denoiser that reads other embeddings.
    """

    tuned: Tuned
    w: Strength

    def __post_init__(self) -> None:
        check_strength("w", self.w)

    def start(self, state: State) -> State:
        strength("w", self.w, state)
        _fits(state, [self.tuned])
        return state

    def guide(self, denoise: Denoise, state: State) -> Denoise:
        w = strength("w", self.w, state)
        return _mixed([1 - w, w], _branches(self, denoise, state, [self.tuned]))


@final
@dataclass(frozen=True)
class Blend(Control):
    """Diffusion Blend (arXiv 2505.18547): several tuned models at weights chosen at inference.

    base + strength sum_i weights_i (tuned_i - base), after the guides listed before it. With strength 1 that
    is DB-MPA (the reward sum_i weights_i r_i at the KL weight of training), with one tuned model DB-KLA (its
    KL weight divided by strength), which is RLG(tuned, strength).

    steps "all": every branch with a weight is run. "draw" (DB-MPA-LS): at each step each sample draws one
    branch with its weight as probability, which costs one evaluation and tends to the same as steps grow.
    The draws depend on a sample's starting seed alone; "draw" has to stand after CFG.
    ValueError for weights that do not sum to 1, and for "draw" with one below 0 or strength outside [0, 1].
    """

    tuned: Sequence[Tuned]
    weights: Sequence[float]
    strength: Strength = 1.0
    steps: Literal["all", "draw"] = "all"

    def __post_init__(self) -> None:
        if not self.tuned or len(self.tuned) != len(self.weights):
            raise ValueError(f"{len(self.weights)} weights for {len(self.tuned)} tuned models; one each")
        if not abs(sum(self.weights) - 1) < 1e-6:
            raise ValueError(f"the weights {[*self.weights]} do not sum to 1; divide them by their sum")
        if self.steps not in ("all", "draw"):
            raise ValueError(f"steps is {self.steps!r}; choose 'all' or 'draw'")
        if self.steps == "draw" and min(self.weights) < 0:
            raise ValueError(f"the weights {[*self.weights]} are drawn with, so none may be below 0")
        check_strength("strength", self.strength)

    def start(self, state: State) -> State:
        self._shares(state)
        _fits(state, self.tuned)
        return state.remember(**{SEEDS: state.seeds}) if self.steps == "draw" else state

    def guide(self, denoise: Denoise, state: State) -> Denoise:
        shares = self._shares(state)
        if self.steps == "all":
            return _mixed(shares, _branches(self, denoise, state, self.tuned))
        chances = torch.tensor(shares, dtype=torch.float64)
        drawn = [
            int(torch.multinomial(chances, 1, generator=state.generator(i, "blend")))
            for i in range(len(state))
        ]
        return self._divided(state, drawn)

    def _shares(self, state: State) -> list[float]:
        """The weight of the base, then of each tuned model; they sum to 1."""
        total = strength("strength", self.strength, state)
        if self.steps == "draw" and not 0 <= total <= 1:
            raise ValueError(f"strength is {total}; to draw with, it must be from 0 to 1")
        return [1 - total, *(total * weight for weight in self.weights)]

    def _divided(self, state: State, drawn: Sequence[int]) -> Denoise:
        """Each sample's answer from the branch it drew, one evaluation a branch of the samples that did."""

        groups = []
        for k in sorted({*drawn}):
            rows = [i for i, one in enumerate(drawn) if one == k]
            some = state if len(rows) == len(state) else state.take(rows)
            branch = _branches(self, answers(some, self), some, self.tuned)[k]
            groups.append((torch.tensor(rows, device=state.x.device), branch))
        order = torch.cat([rows for rows, _ in groups]).argsort()

        def divided(x: Tensor, level: Level, cond: Any) -> Tensor:
            if len(x) != len(state):
                raise ValueError("Blend(steps='draw') has to be listed after CFG, which doubles the batch")
            return torch.cat([branch(x[rows], level, cond.take(rows)) for rows, branch in groups])[order]

        return divided


def _mixed(shares: Sequence[float], branches: Sequence[Denoise]) -> Denoise:
    """sum_k shares_k branches_k, the shares summing to 1; a branch without a share is not run."""
    (_, first), *rest = [(s, branch) for s, branch in zip(shares, branches, strict=True) if s != 0]
    if not rest:
        return first

    def mixed(x: Tensor, level: Level, cond: Any) -> Tensor:
        start = first(x, level, cond)
        total = start
        for share, branch in rest:
            total = total + share * (branch(x, level, cond) - start)
        return total

    return mixed


def _branches(control: Control, denoise: Denoise, state: State, tuned: Sequence[Tuned]) -> list[Denoise]:
    """`denoise` as the base answers, then as each of the tuned models does.

    LoRAs named in `tuned` act in their own branch only; others stay as they are in force.
    """
    network = state.run.denoiser.network
    named = [_weights(network, one) for one in tuned if not isinstance(one, Denoiser)]
    names = {name for weights in named for name in weights}

    def under(weights: Mapping[str, float]) -> Denoise:
        def answer(x: Tensor, level: Level, cond: Any) -> Tensor:
            now = in_force([network])  # in its order, for the order of a layer's sum is felt in the last bit
            kept = {name: 0.0 if name in names else w for name, w in now.items()}
            with switched([network], {**kept, **weights}):
                return denoise(x, level, cond)

        return answer

    def second(denoiser: Denoiser) -> Denoise:
        return answers(replace(state, run=replace(state.run, denoiser=denoiser)), control)

    base = under({}) if names else denoise
    return [base, *(second(t) if isinstance(t, Denoiser) else under(_weights(network, t)) for t in tuned)]


def _weights(network: Any, tuned: str | Mapping[str, float]) -> dict[str, float]:
    """Name -> weight of the LoRAs that make the tuned model."""
    return {tuned: in_force([network]).get(tuned) or 1.0} if isinstance(tuned, str) else dict(tuned)


def _fits(state: State, tuned: Sequence[Tuned]) -> None:
    """ValueError where a tuned model could not answer in the base's place, with the same embeddings."""
    base = state.run.denoiser
    elsewhere = [module for module in base.modules if module is not base.network]
    for one in tuned:
        if isinstance(one, Denoiser):
            _reads_the_same(base, one, state.queries[0])
            continue
        weights = _weights(base.network, one)
        with switched([base.network], weights):  # ValueError for a name that is not there
            pass
        for name in weights.keys() & in_force(elsewhere).keys():
            raise ValueError(
                f"LoRA {name!r} reaches a text encoder, so base and tuned model would read different "
                "embeddings; give the tuned model's network alone"
            )


def _reads_the_same(base: Any, tuned: Denoiser, query: str) -> None:
    if base.latent_shape != tuned.latent_shape:
        raise ValueError(
            f"the tuned denoiser has latents {tuned.latent_shape}, the base {base.latent_shape}; "
            "give a tuned version of the same backbone, at the same size"
        )
    one, two = (_fields(denoiser.embed([query])) for denoiser in (base, tuned))
    same = one.keys() == two.keys() and all(one[name].shape == two[name].shape for name in one)
    if not same or any(float((one[n] - two[n]).abs().max()) > 0.02 * float(one[n].abs().max()) for n in one):
        raise ValueError(
            f"the tuned denoiser embeds {query!r} otherwise than the base; both branches are given one "
            "embedding, so give a tuned network with the base's text encoders"
        )


def _fields(cond: Cond) -> dict[str, Tensor]:
    return {name: value.float().cpu() for name, value in cond.fields.items()}
