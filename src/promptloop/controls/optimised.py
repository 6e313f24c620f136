"""Gradient ascent on the starting noise, through the whole run and the decoder: ReNO, CARINOX.

`reno` and `carinox` are drivers above the loop; `climb` is one gradient of theirs and `Uphill` one step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from promptloop.controls.groups import check_number
from promptloop.controls.increments import ascent, check_differentiable
from promptloop.controls.search import tried
from promptloop.denoisers.memory import lowering, told
from promptloop.ledger import count, counting, uncounted
from promptloop.rewards.composite import Weighted
from promptloop.rewards.contract import Reward
from promptloop.sample import Sample, State, Turn, advance, sample
from promptloop.schedules import Level
from promptloop.state import seed_of

# --- the drivers


def reno(
    denoiser: Any,
    prompts: Sequence[str],
    *,
    reward: Reward,
    seeds: Sequence[int],
    iterations: int = 50,
    rate: float = 5.0,
    momentum: float = 0.9,
    limit: float = 0.1,
    norm_weight: float = 0.01,
    apart: bool = False,
    checkpointed: bool = True,
    **options: Any,
) -> Sample:
    """ReNO (Eyring et al., 2406.04312): the starting noise of few-step sampling climbs the reward.

    Ascends reward + norm_weight log p(|n|), p the chi density of the norm of unit noise, by Nesterov's
    momentum; a sample's gradient has a norm of at most `limit`, so a step is at most rate * limit (with
    momentum ten times that). `apart` bounds each term of a `Weighted` reward so by itself, then their sum
    (CARINOX). The noise of highest reward is kept, the first included: more iterations never give a worse
    reward. `options` are those of `sample` (not `noise`, `decode` and `gradients`). memory["reward"] [B],
    ["start"] [B, ...] (the noise kept), ["trace"] [B, iterations + 1] (the reward of every noise).
    iterations=0 is the plain sampler.

    `checkpointed` holds the activations of one step and not of all, for one more evaluation a step; the
    gradients are the same. Costs `iterations` runs with their backward passes (with `apart` one for each
    term), and one or two plain ones. Stochastic steps keep their noise. ValueError for a reward that is not
    differentiable, a gradient that is not finite, and a control that returns other samples than it was given.
    """
    check_number("iterations", iterations, 0, "a number of iterations from 0")
    uphill, terms = Uphill(rate, momentum, limit, norm_weight), terms_of(reward, apart)
    with counting() as tally:
        noise = denoiser.noise(seeds).float()
        speed, trail = torch.zeros_like(noise), []
        for _ in range(iterations):
            values, slopes = climb(
                denoiser, prompts, [r for _, r in terms], seeds, noise, checkpointed, **options
            )
            weights = torch.tensor([weight for weight, _ in terms]).to(values)
            trail.append((noise, weights @ values))
            noise, speed = uphill.step(noise, speed, _times(weights[:, None], slopes))
        made = tried(denoiser, prompts, reward, seeds, noise, options)
        trail.append((noise, made.state.memory["reward"]))
        trace = torch.stack([value for _, value in trail], dim=1)
        best = trace.argmax(1)  # of equals the first
        if bool((best < iterations).any()):
            noise = torch.stack([trail[int(k)][0][i] for i, k in enumerate(best)])
            made = tried(denoiser, prompts, reward, seeds, noise, options)
    return Sample(made.images, made.state.remember(trace=trace), tally.ledger)


def carinox(
    denoiser: Any,
    prompts: Sequence[str],
    *,
    reward: Reward,
    seeds: Sequence[int],
    starts: int = 5,
    kept: int | None = None,
    apart: bool = True,
    **settings: Any,
) -> Sample:
    """CARINOX (2509.17458): ReNO from several starting noises of each sample; the best of all is returned.

    Of `starts` noises, the first the sample's own and none dependent on how many there are, the `kept` of
    highest reward are optimised (None: all, as in the paper), with every term of a `Weighted` reward bounded
    apart. `settings` are those of `reno`. The state's seeds are those of the starts that won: with
    memory["start"] as their noise they give the images again. starts=1 is `reno`.

    Costs `kept` times ReNO, and `starts` plain runs where fewer than all are kept. ValueErrors as in `reno`.
    """
    check_number("starts", starts, 1, "a number of starting noises from 1")
    kept = starts if kept is None else kept
    if not 1 <= kept <= starts:
        raise ValueError(f"kept is {kept} of {starts} starts; give a number from 1 to {starts}")
    given = {"reward": reward, "apart": apart, **settings}
    with counting() as tally:
        many = [seed_of(int(s), 0, f"start {k}") if k else int(s) for s in seeds for k in range(starts)]
        texts = [prompt for prompt in prompts for _ in range(starts)]
        if kept < starts:
            plain = reno(denoiser, texts, seeds=many, **{**given, "iterations": 0})
            rows = _highest(plain.state.memory["reward"], starts, kept)
            many, texts = [many[i] for i in rows], [texts[i] for i in rows]
        made = reno(denoiser, texts, seeds=many, **given)
    rows = _highest(made.state.memory["reward"], kept, 1)
    assert made.images is not None
    return Sample(made.images[rows], made.state.take(rows), tally.ledger)


def _highest(values: Tensor, size: int, count: int) -> list[int]:
    """The rows of the `count` highest values in every group of `size`, best first; of equals the first."""
    order = values.view(-1, size).argsort(dim=1, descending=True, stable=True)[:, :count]
    return [row * size + int(k) for row, found in enumerate(order) for k in found]


# --- one gradient


def terms_of(reward: Reward, apart: bool) -> list[tuple[float, Reward]]:
    """What is differentiated by itself, with its weight: the reward, or `apart` every term of a Weighted.

    ValueError, naming it, for one that is not differentiable, and for `apart` without terms.
    """
    if apart and not isinstance(reward, Weighted):
        name = getattr(reward, "__name__", type(reward).__name__)
        raise ValueError(f"apart bounds the terms of a Weighted reward one by one, and {name} is none")
    each = [*reward.terms.values()] if isinstance(reward, Weighted) else [(1.0, reward)]
    for _, term in each:
        check_differentiable(term, "zero_order and find need its values only")
    check_differentiable(reward, "a sum has gradients on the raw scale alone, and without gates")
    return each if apart else [(1.0, reward)]


def climb(
    denoiser: Any,
    prompts: Sequence[str],
    rewards: Sequence[Reward],
    seeds: Sequence[int],
    noise: Tensor,
    checkpointed: bool = True,
    *,
    turn: Turn | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """Values [K, B] of K rewards of the run from `noise` [B, ...], and each one's gradient in it [K, B, ...].

    Through decoder, denoiser, guides and solver. One run, and for every reward a decode and a backward pass;
    the decoder is done with before the run is differentiated. ValueError for a gradient that is not finite.
    """
    point = noise.detach().clone().requires_grad_()
    turns = _Turns(advance if turn is None else turn, checkpointed)
    with counting() as tally:
        made = sample(
            denoiser, prompts, seeds=seeds, noise=point, decode=False, gradients=True, turn=turns, **options
        )
    state, held = made.state, options.get("max_batch") or len(point)
    if len(state) != len(point):
        raise ValueError("a control of this run returns other samples than it was given; climb without it")
    again = tally.ledger
    values, slopes = [], []
    for k, reward in enumerate(rewards):
        value, upward = ascent(reward, state, state.x, at_once=held)
        with told(f"differentiating {len(point)} runs", lowering(denoiser, held)), uncounted():
            last = k == len(rewards) - 1
            (slope,) = torch.autograd.grad(state.x, point, upward, retain_graph=not last, allow_unused=True)
        if slope is None:
            raise ValueError("the image does not depend on its starting noise: a control replaces it")
        count(backwards=turns.taken)
        if checkpointed:
            count(**{name: n for name, n in asdict(again).items() if name != "seconds"})
        values.append(value.to(slope.device))
        slopes.append(slope)
    found = torch.stack(slopes)
    broken = (~found.flatten(2).isfinite().all(2)).any(0).nonzero()
    if len(broken):
        i = int(broken[0, 0])
        raise ValueError(
            f"the gradient of the run of sample {i} ({prompts[i]!r}) is not finite; take fewer steps"
        )
    return torch.stack(values), found


@final
class _Turns:
    """Turns of one run that count their samples; checkpointed, a turn is made again for its gradient."""

    def __init__(self, turn: Turn, checkpointed: bool) -> None:
        self.turn, self.checkpointed, self.taken = turn, checkpointed, 0

    def __call__(self, state: State, level: Level) -> State:
        self.taken += len(state)
        if not self.checkpointed:
            return self.turn(state, level)
        said: list[tuple[str, ...]] = []

        def made(state: State, level: Level) -> State:
            after = self.turn(state, level)
            said.append(after.prompts)
            if said[0] != after.prompts:
                raise ValueError("asked a second time the policy wrote other prompts; set checkpointed=False")
            return after

        with set_checkpoint_early_stop(False):
            return checkpoint(made, state, level, use_reentrant=False, preserve_rng_state=False)


# --- one step


@final
@dataclass(frozen=True)
class Uphill:
    """One step of gradient ascent on noise, for each sample by itself; the settings are those of `reno`."""

    rate: float = 5.0
    momentum: float = 0.9
    limit: float = 0.1
    norm_weight: float = 0.01

    def __post_init__(self) -> None:
        if not (self.rate > 0 and self.limit > 0):
            raise ValueError(f"rate is {self.rate}, limit {self.limit}; give numbers above 0")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum is {self.momentum}; give a number from 0, below 1")
        check_number("norm_weight", self.norm_weight, 0, "a number from 0")

    def step(self, noise: Tensor, speed: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
        """The next noise and speed [B, ...], from gradients [K, B, ...] of the terms.

        Several terms are bounded one by one, and then their sum with the norm's, which is counted once.
        """
        each = [bounded(slope, self.limit) for slope in slopes] if len(slopes) > 1 else [*slopes]
        total = sum(each, self.norm_weight * norm_slope(noise))
        slope = bounded(total, self.limit)
        speed = self.momentum * speed + slope
        return noise + self.rate * (slope + self.momentum * speed), speed


def bounded(slope: Tensor, limit: float) -> Tensor:
    """The slope [B, ...], shortened where a sample's is longer than `limit`."""
    length = torch.linalg.vector_norm(slope.flatten(1).double(), dim=1).to(slope)
    return _times(limit / length.clamp(min=limit), slope)


def norm_density(noise: Tensor) -> Tensor:
    """[B] log-density of the norm of unit noise, the chi law, up to a constant: (d - 1) log|n| - |n|^2 / 2.

    Highest where |n|^2 = d - 1 (ReNO, eq. 4).
    """
    square = noise.flatten(1).float().square().sum(1)
    return (noise[0].numel() - 1) * square.log() / 2 - square / 2


def norm_slope(noise: Tensor) -> Tensor:
    """[B, ...] gradient of `norm_density`: n ((d - 1) / |n|^2 - 1)."""
    square = noise.flatten(1).float().square().sum(1)
    return _times((noise[0].numel() - 1) / square - 1, noise)


def _times(factor: Tensor, x: Tensor) -> Tensor:
    """x with each row multiplied by its factor, whatever follows the axes of `factor`."""
    return factor.reshape(*factor.shape, *[1] * (x.ndim - factor.ndim)) * x
